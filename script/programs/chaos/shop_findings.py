"""What a chaos run may have done wrong in the shop: to orders, stock, red packets and text messages."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from django.db.models import Sum

from orders.models import Campaign, Order, Product, RedPacket, TextMessage
from script.programs.chaos.shoppers import Attempt, Outcome
from script.services.sms_gateway import SmsGateway

#: Examples shown for each finding, at most.
EXAMPLES = 5


@dataclass(frozen=True)
class Finding:
    """One kind of violation, with everything that was found."""

    name: str
    #: What it means.
    meaning: str
    found: Sequence[str]

    @property
    def examples(self) -> str:
        """The first of them."""
        return ", ".join(self.found[:EXAMPLES]) + (", …" if len(self.found) > EXAMPLES else "")


def compare_told(attempts: Sequence[Attempt], orders: Sequence[Order]) -> list[Finding]:
    """Compare what shoppers were told with what was committed."""
    made = defaultdict(list)
    for order in orders:
        made[order.customer_name].append(order)
    lost, ghosts, doubled, kept = [], [], [], []
    for attempt in attempts:
        mine = made.pop(attempt.name, [])
        numbers = [order.number for order in mine]
        if attempt.outcome is Outcome.PLACED and attempt.order_number not in numbers:
            lost.append(attempt.order_number)
        if attempt.outcome in {Outcome.REFUSED, Outcome.GAVE_UP}:
            ghosts += numbers
        doubled += numbers[1:]
        if attempt.told_cancelled and not all(order.is_cancelled for order in mine):
            kept += numbers
    strangers = [order.number for mine in made.values() for order in mine]
    unserved = [f"{each.name}: {each.note}" for each in attempts if each.outcome in {Outcome.STRANGE, Outcome.GAVE_UP}]
    return [
        Finding("orders_lost", "the shop said placed, and they are not there", lost),
        Finding("orders_unasked", "the shop said that they were not placed", ghosts),
        Finding("orders_doubled", "placed twice", doubled),
        Finding("orders_of_nobody", "no shopper placed them", strangers),
        Finding("orders_not_cancelled", "the shop said cancelled, and they are not", kept),
        Finding("shoppers_unserved", "no sensible page, however often they asked", unserved),
    ]


class Shop:
    """Orders, stock, documents and red packets."""

    def __init__(self, stock_before: Mapping[str, int]) -> None:
        self.orders = list(Order.objects.prefetch_related("lines", "documents").order_by("pk"))
        self.packets = list(RedPacket.objects.all())
        self._stock_before = stock_before

    def counts(self) -> dict[str, dict[str, int]]:
        return {
            "orders": {
                "committed": len(self.orders),
                "cancelled": sum(order.is_cancelled for order in self.orders),
                "shipping_quoted": sum(order.shipping_source == Order.ShippingSource.QUOTED for order in self.orders),
            },
            "red_packets": {
                "settled": sum(order.red_packet_settled_at is not None for order in self.orders),
                "granted": len(self.packets),
                "void": sum(packet.voided_at is not None for packet in self.packets),
            },
        }

    def findings(self) -> list[Finding]:
        earned = {packet.order_id for packet in self.packets}
        valid = {packet.order_id for packet in self.packets if packet.voided_at is None}
        return [
            Finding("stock", "oversold, or pieces that vanished", self._wrong_stock()),
            self._orders("documents", "orders without their two", lambda order: len(order.documents.all()) != 2),
            self._orders(
                "red_packets_unsettled", "not decided for the order", lambda order: order.red_packet_settled_at is None
            ),
            self._orders(
                "red_packets_missing",
                "orders that earned one and have none",
                lambda order: not order.is_cancelled and order.pk not in earned,
            ),
            self._orders(
                "red_packets_left",
                "cancelled orders that still have one",
                lambda order: order.is_cancelled and order.pk in valid,
            ),
            Finding("red_packet_books", "the campaign spent another sum than it gave", self._wrong_books()),
        ]

    def _orders(self, name: str, meaning: str, is_wrong: Callable[[Order], bool]) -> Finding:
        return Finding(name, meaning, [order.number for order in self.orders if is_wrong(order)])

    def _wrong_stock(self) -> list[str]:
        sold: Counter[int] = Counter()
        for order in self.orders:
            for line in order.lines.all():
                sold[line.product_id] += 0 if order.is_cancelled else line.quantity
        return [
            f"{product.slug}: {product.stock} left + {sold[product.pk]} sold, {self._stock_before[product.slug]} before"
            for product in Product.objects.all()
            if product.stock < 0 or product.stock + sold[product.pk] != self._stock_before[product.slug]
        ]

    def _wrong_books(self) -> list[str]:
        given = RedPacket.objects.filter(voided_at=None).aggregate(total=Sum("amount", default=0))["total"]
        spent = Campaign.objects.aggregate(total=Sum("spent", default=0))["total"]
        return [] if given == spent else [f"{spent} spent, {given} given"]


class Texts:
    """The texts in the database, and those that the gateway really sent."""

    def __init__(self, gateway: SmsGateway, orders: Sequence[Order], unknown: set[str]) -> None:
        self._orders = orders
        self._knowable = gateway.honours_keys or gateway.can_be_asked
        self._written = Counter((text.order_id, str(text.kind)) for text in TextMessage.objects.all())
        self._unknown = {text.order_id for text in TextMessage.objects.filter(message_id__in=unknown)}
        self._sent: Counter[tuple[int, str]] = Counter()
        self._strangers: list[str] = []
        of = {str(order.phone.as_e164): order for order in orders}
        for text in gateway.ledger.texts():
            order = of.get(text.recipient)
            if order is None or order.number not in text.text:
                self._strangers.append(f"{text.recipient}: {text.text}")
            else:
                self._sent[order.pk, _kind(text.text)] += 1
        self._requests = len(gateway.ledger.requests())

    def counts(self) -> dict[str, int]:
        return {
            "written": sum(self._written.values()),
            "sent": sum(self._sent.values()),
            "gateway_requests": self._requests,
            "unknown": len(self._unknown),
        }

    def findings(self) -> list[Finding]:
        due = [(order, kind) for order in self._orders for kind in _kinds(order)]
        never_written = [_named(order, kind) for order, kind in due if not self._written[order.pk, kind]]
        missing = [
            _named(order, kind)
            for order, kind in due
            if not self._sent[order.pk, kind] and order.pk not in self._unknown
        ]
        twice = [_named(order, kind) for order, kind in due if self._sent[order.pk, kind] > 1]
        expected = {(order.pk, kind) for order, kind in due}
        strange = [f"{key}" for key in self._sent if key not in expected] + self._strangers
        # If the gateway honours keys or can be asked, no text has to stay in doubt.
        unknown = sorted(map(str, self._unknown)) if self._knowable else []
        return [
            Finding("texts_unwritten", "they are not in the database", never_written),
            Finding("texts_missing", "the gateway never sent them", missing),
            Finding("texts_doubled", "the gateway sent them twice", twice),
            Finding("texts_strange", "they should not have been sent", strange),
            Finding("unknown", "texts in doubt, without need", unknown),
        ]


def _kinds(order: Order) -> list[str]:
    """The kinds of text that follow from an order."""
    kinds = [TextMessage.Kind.PLACED, *([TextMessage.Kind.CANCELLED] if order.is_cancelled else [])]
    return [str(kind) for kind in kinds]


def _kind(text: str) -> str:
    return str(TextMessage.Kind.CANCELLED if "is cancelled" in text else TextMessage.Kind.PLACED)


def _named(order: Order, kind: str) -> str:
    return f"{order.number} {kind}"

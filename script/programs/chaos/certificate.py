"""The certificate: what came of a chaos run, judged from the database and the gateway's ledger alone.

To be imported once Django is set up.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from django.db.models import Count, Q, Sum

from messaging import consumers
from messaging.consumers import Consumer
from messaging.models import DeliveryAttempt, Effect, InboxMessage, OutboxMessage
from orders.models import Campaign, Order, Product, RedPacket, TextMessage
from script.programs.chaos.naive.models import Handling
from script.programs.chaos.shoppers import Attempt, Outcome
from script.services.sms_gateway import SmsGateway

#: Things named for each finding, at most.
EXAMPLES = 5

Inbox = InboxMessage.State
Outbox = OutboxMessage.State


@dataclass(frozen=True)
class Finding:
    """One kind of thing that must not be, with those that are."""

    name: str
    #: What it would mean.
    meaning: str
    found: Sequence[str]

    @property
    def examples(self) -> str:
        """The first of them."""
        return ", ".join(self.found[:EXAMPLES]) + (", …" if len(self.found) > EXAMPLES else "")


@dataclass(frozen=True)
class Certificate:
    """Counts, and findings of which each must be empty."""

    #: By section, what there is.
    counts: Mapping[str, Mapping[str, int]]
    findings: Sequence[Finding]

    @property
    def is_clean(self) -> bool:
        """Whether nothing is off."""
        return not any(finding.found for finding in self.findings)


def still_moving() -> dict[str, int]:
    """What will move on by itself, by kind; empty once all is quiet. The broker's queues are not in it."""
    counts = {
        "to be published": OutboxMessage.objects.filter(state__in=[Outbox.PENDING, Outbox.UNROUTABLE]).count(),
        "effects due": InboxMessage.objects.filter(state=Inbox.EFFECTS_DUE).count(),
    }
    return {what: count for what, count in counts.items() if count}


def lost() -> set[tuple[str, str]]:
    """Return (consumer, message id) of what was published and left no trace at a consumer, or not the attempt that it
    waits for. To be asked when all is at rest."""
    ledger = _Messages()
    waiting = {key for key, row in ledger.inbox.items() if row.state == Inbox.RETRYING}
    return waiting | {(consumer.name, row.message_id) for row, consumer in ledger.lost()}


def judge(
    attempts: Sequence[Attempt],
    gateway: SmsGateway,
    stock_before: Mapping[str, int],
    lost_meanwhile: Sequence[str] = (),
    reconciled_wrongly: Sequence[str] = (),
) -> Certificate:
    """Hold the database and the gateway's ledger against what shoppers were told and what must always be true.

    `lost_meanwhile` is what had to be sent again, and should not have had to; `reconciled_wrongly` what the command
    that did so was wrong about.
    """
    ledger = _Messages()
    shop = _Shop(stock_before)
    texts = _Texts(gateway, shop.orders, ledger.unknown)
    findings = [
        *_told(attempts, shop.orders),
        *shop.findings(),
        *ledger.findings({order.number for order in shop.orders}, lost_meanwhile),
        *texts.findings(),
        Finding("reconcile", "what it named and what was lost differ", reconciled_wrongly),
    ]
    outcomes = Counter(attempt.outcome for attempt in attempts)
    counts = {
        "shoppers": {
            "came": len(attempts),
            **{outcome.value: outcomes[outcome] for outcome in Outcome},
            "presses": sum(attempt.presses for attempt in attempts),
        },
        **shop.counts(),
        **ledger.counts(),
        "texts": texts.counts(),
    }
    return Certificate(counts, findings)


def _told(attempts: Sequence[Attempt], orders: Sequence[Order]) -> list[Finding]:
    """What shoppers were told against what was committed."""
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


class _Shop:
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
            Finding(
                "documents", "orders without their two", _numbers(o for o in self.orders if len(o.documents.all()) != 2)
            ),
            Finding(
                "red_packets_unsettled",
                "nobody decided about the order's",
                _numbers(order for order in self.orders if order.red_packet_settled_at is None),
            ),
            Finding(
                "red_packets_missing",
                "orders that earned one and have none",
                _numbers(order for order in self.orders if not order.is_cancelled and order.pk not in earned),
            ),
            Finding(
                "red_packets_left",
                "cancelled orders that still have one",
                _numbers(order for order in self.orders if order.is_cancelled and order.pk in valid),
            ),
            Finding("red_packet_books", "the campaign spent another sum than it gave", self._wrong_books()),
        ]

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


class _Messages:
    """Outbox, inbox, attempts and effects."""

    def __init__(self) -> None:
        self.outbox = list(OutboxMessage.objects.defer("body"))
        self.events = [row for row in self.outbox if row.origin == OutboxMessage.Origin.EVENT]
        self.inbox = {
            (row.consumer, row.message_id): row
            for row in InboxMessage.objects.defer("body").annotate(
                handlings=Count("attempts", filter=Q(attempts__outcome=DeliveryAttempt.Outcome.HANDLED))
            )
        }
        self.effects = list(Effect.objects.all())
        #: Ids of messages of which an effect is unknown.
        self.unknown = {effect.message_id for effect in self.effects if effect.state == Effect.State.UNKNOWN}

    def counts(self) -> dict[str, dict[str, int]]:
        outcomes = Counter(DeliveryAttempt.objects.values_list("outcome", flat=True))
        return {
            "messages": {
                "events": len(self.events),
                "outbox_rows": len(self.outbox),
                "publish_attempts": sum(row.publish_attempts for row in self.outbox),
                "handled": sum(row.state == Inbox.HANDLED for row in self.inbox.values()),
            },
            "handlers": {
                "failures": outcomes[DeliveryAttempt.Outcome.FAILED],
                "crashes": outcomes[DeliveryAttempt.Outcome.CRASHED],
            },
            "effects": {
                "intended": len(self.effects),
                "attempts": sum(effect.attempts for effect in self.effects),
            },
        }

    def findings(self, numbers: set[str], lost_meanwhile: Sequence[str]) -> list[Finding]:
        rows = self.inbox.values()
        return [
            Finding("events_missing", "orders without exactly one event", self._without_event(numbers)),
            Finding(
                "events_unasked",
                "events of orders that were not committed",
                sorted({row.subject for row in self.events} - numbers),
            ),
            Finding("lost", "published messages without a trace at a consumer", lost_meanwhile or self._lost()),
            Finding(
                "duplicates", "handled twice", [str(row) for row in rows if row.handlings > 1] + self._naive_doubles()
            ),
            Finding("undone", "handled by the books, and nothing was done", self._naive_gaps()),
            Finding("dead", "messages given up", [str(row) for row in rows if row.state == Inbox.DEAD]),
            Finding("stuck", "neither done nor given up", self._stuck()),
            Finding(
                "effects_failed", "given up", [str(each) for each in self.effects if each.state == Effect.State.FAILED]
            ),
        ]

    def _without_event(self, numbers: set[str]) -> list[str]:
        told = Counter(row.subject for row in self.events if row.type == "order.placed")
        return sorted(number for number in numbers if told[number] != 1)

    def lost(self) -> list[tuple[OutboxMessage, Consumer]]:
        """Return what was published and has not come to a consumer that wants it."""
        return [
            (row, consumer)
            for row in self.events
            if row.state == Outbox.PUBLISHED
            for consumer in consumers.registered()
            if consumer.wants(row.type) and (consumer.name, row.message_id) not in self.inbox
        ]

    def _lost(self) -> list[str]:
        return [f"{row} at {consumer.name}" for row, consumer in self.lost()]

    def _naive_doubles(self) -> list[str]:
        runs = _naive_runs()
        return [
            f"{message_id} at naive, which did it {runs[message_id]} times"
            for message_id in runs
            if runs[message_id] > 1
        ]

    def _naive_gaps(self) -> list[str]:
        runs = _naive_runs()
        handled = [row for row in self.inbox.values() if row.consumer == "naive" and row.state == Inbox.HANDLED]
        return [str(row) for row in handled if row.message_id not in runs]

    def _stuck(self) -> list[str]:
        waiting = [
            f"{row}: {row.state} {row.last_error}".strip() for row in self.outbox if row.state != Outbox.PUBLISHED
        ]
        open_states = {Inbox.RETRYING, Inbox.WAITING, Inbox.EFFECTS_DUE}
        return waiting + [f"{row}: {row.state}" for row in self.inbox.values() if row.state in open_states]


class _Texts:
    """What was written down to be sent, and what the gateway really sent."""

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
        # Where the gateway tells repetitions by their key, or answers questions, nothing has to stay unknown.
        unknown = sorted(map(str, self._unknown)) if self._knowable else []
        return [
            Finding("texts_unwritten", "no text was written down", never_written),
            Finding("texts_missing", "the gateway never sent them", missing),
            Finding("texts_doubled", "the gateway sent them twice", twice),
            Finding("texts_strange", "nobody should have got them", strange),
            Finding("unknown", "texts of which nobody knows whether they were sent", unknown),
        ]


def _naive_runs() -> Counter[str]:
    return Counter(Handling.objects.values_list("message_id", flat=True))


def _kinds(order: Order) -> list[str]:
    """The kinds of text that follow from an order."""
    kinds = [TextMessage.Kind.PLACED, *([TextMessage.Kind.CANCELLED] if order.is_cancelled else [])]
    return [str(kind) for kind in kinds]


def _kind(text: str) -> str:
    return str(TextMessage.Kind.CANCELLED if "is cancelled" in text else TextMessage.Kind.PLACED)


def _named(order: Order, kind: str) -> str:
    return f"{order.number} {kind}"


def _numbers(orders: Iterable[Order]) -> list[str]:
    return [order.number for order in orders]

"""Placing, cancelling and shipping orders. Each function is one transaction: all of it commits, or nothing.

Locks are always taken in this order, so that no two functions wait for each other in a circle: cart, order, products
by rising key, red packets, campaign.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING
from uuid import UUID

from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from messaging import outbox
from messaging.logs import get_logger
from orders import red_packets
from orders.events import OrderCancelled, OrderedProduct, OrderPlaced, OrderShipped
from orders.exceptions import NotPayable, OutOfStock, PriceChanged, Refused, TooLate
from orders.models import Cart, Document, Order, OrderLine, Product
from orders.money import is_payable, rounded
from orders.numbers import new_order_number
from orders.shipping import ShippingQuote

if TYPE_CHECKING:
    from django.contrib.auth.models import User

log = get_logger(__name__)

#: How often a random order number is drawn, if it is taken.
NUMBER_DRAWS = 5
_DOCUMENT_PREFIXES = {Document.Kind.RECEIPT: "R", Document.Kind.PACKING_SLIP: "P"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A product and how many pieces. With `unit_price`, the order is refused if the price has changed. `in_cart` says
    how many pieces the cart held, if more: all of them are removed."""

    product_id: int
    quantity: int
    unit_price: Decimal | None = None
    in_cart: int = 0


def place_order(
    *,
    checkout_token: UUID,
    wanted: Sequence[Wanted],
    customer_name: str,
    phone: str,
    destination: str,
    shipping: ShippingQuote,
    red_packet_code: str = "",
    user: User | None = None,
    visitor_key: str = "",
    language: str = "",
) -> Order:
    """Commit an order with its stock, lines, documents, red packet and event, or nothing.

    A second call with the same token, from any process at any time, returns the first one's order, which is new only
    once (`is_new`). The cart with that token, if there is one, loses what was ordered and gets a new token in the same
    transaction. `phone` is E.164. In `language` (default: LANGUAGE_CODE) the shop writes to the customer.
    Raises OutOfStock, PriceChanged, NotPayable, RedPacketRefused (all Refused).
    """
    if not wanted:
        raise Refused(_("Your cart is empty."))
    order = Order(
        checkout_token=checkout_token,
        user=user,
        visitor_key=visitor_key,
        customer_name=customer_name,
        phone=phone,
        destination=destination,
        language=language or settings.LANGUAGE_CODE,
        currency=settings.SHOP_CURRENCY,
        shipping=rounded(shipping.amount),
        shipping_source=shipping.source,
    )
    for draws_left in range(NUMBER_DRAWS, 0, -1):
        order.pk, order.number = None, new_order_number()
        try:
            with transaction.atomic():
                made = _place(order, wanted, red_packet_code)
            break
        except IntegrityError:
            # A parallel call committed the token first, or the number is taken.
            if twin := Order.objects.made_of(checkout_token):
                return twin
            if draws_left == 1:
                raise
    if made is order:
        order.is_new = True
        log.info("order_placed", order=order.number, total=str(order.total), lines=len(wanted))
    return made


def cancel_order(order_number: str) -> Order:
    """Cancel an order that is not shipped: stock back, red packets withdrawn and given back, event added.

    Repeating it changes nothing. Raises TooLate, Order.DoesNotExist.
    """
    with transaction.atomic():
        order = Order.objects.lock(order_number)
        if order.is_cancelled:
            return order
        if order.status == Order.Status.SHIPPED:
            raise TooLate(_("This order is on its way and can no longer be cancelled."))
        order.status, order.cancelled_at = Order.Status.CANCELLED, timezone.now()
        order.save(update_fields=["status", "cancelled_at"])
        lines = list(order.lines.all())
        Product.objects.lock(line.product_id for line in lines)
        for line in lines:
            Product.objects.give_back(line.product_id, line.quantity)
        red_packets.undo(order)
        outbox.add(OrderCancelled(order_number=order.number, cancelled_at=order.cancelled_at), subject=order.number)
    log.info("order_cancelled", order=order.number)
    return order


def ship_order(order_number: str) -> Order:
    """Mark an order as shipped and add the event. Repeating it changes nothing.

    Raises TooLate for a cancelled order, Order.DoesNotExist.
    """
    with transaction.atomic():
        order = Order.objects.lock(order_number)
        if order.status == Order.Status.SHIPPED:
            return order
        if order.is_cancelled:
            raise TooLate(_("This order was cancelled and must not be shipped."))
        order.status, order.shipped_at = Order.Status.SHIPPED, timezone.now()
        order.save(update_fields=["status", "shipped_at"])
        outbox.add(OrderShipped(order_number=order.number, shipped_at=order.shipped_at), subject=order.number)
    log.info("order_shipped", order=order.number)
    return order


def _place(order: Order, wanted: Sequence[Wanted], red_packet_code: str) -> Order:
    """Take the stock, write the order and empty its cart. Return it, or the order of a parallel call with its token."""
    cart = Cart.objects.select_for_update().filter(token=order.checkout_token).first()
    products = Product.objects.lock(line.product_id for line in wanted)
    # An order takes its cart's token away. Looked up only now: a parallel call held the same locks until its commit.
    if cart is None and (twin := Order.objects.made_of(order.checkout_token)):
        return twin
    _take_stock(wanted, products)
    _write(order, wanted, products, red_packet_code)
    if cart:
        cart.has_become(order, {line.product_id: max(line.quantity, line.in_cart) for line in wanted})
    return order


def _take_stock(wanted: Sequence[Wanted], products: dict[int, Product]) -> None:
    for line in wanted:
        if line.quantity < 1:
            raise ValueError(f"quantity is {line.quantity}; it is at least 1")
        product = products.get(line.product_id)
        if product is None or not product.active:
            raise OutOfStock(product.translated_name if product else _("This product"), left=0)
        if line.unit_price is not None and line.unit_price != product.price:
            raise PriceChanged(product.translated_name)
        if not is_payable(product.price):
            raise NotPayable(product.translated_name)
        # Conditional even under the lock: some databases lock nothing, and stock must never go below zero.
        if not Product.objects.take(product.pk, line.quantity):
            raise OutOfStock(product.translated_name, left=product.stock)


def _write(order: Order, wanted: Sequence[Wanted], products: dict[int, Product], red_packet_code: str) -> None:
    """Write the order and everything that commits with it."""
    order.subtotal = sum((products[line.product_id].price * line.quantity for line in wanted), Decimal(0))
    packet = red_packets.lock_spendable(red_packet_code) if red_packet_code else None
    order.discount = red_packets.discount_of(packet, order.subtotal) if packet else Decimal(0)
    order.total = order.subtotal + order.shipping - order.discount
    order.save(force_insert=True)
    if packet:
        red_packets.spend(packet, order)
    lines = OrderLine.objects.bulk_create(_line(order, products[line.product_id], line.quantity) for line in wanted)
    Document.objects.bulk_create(
        # Numbered by the order's key: no counter to lock, and gaps only for rolled-back orders.
        Document(order=order, kind=kind, number=f"{prefix}-{order.pk:08d}", created_at=order.placed_at)
        for kind, prefix in _DOCUMENT_PREFIXES.items()
    )
    outbox.add(
        OrderPlaced(
            order_number=order.number,
            placed_at=order.placed_at,
            currency=order.currency,
            total=order.total,
            lines=tuple(
                OrderedProduct(sku=line.sku, quantity=line.quantity, unit_price=line.unit_price) for line in lines
            ),
        ),
        subject=order.number,
    )


def _line(order: Order, product: Product, quantity: int) -> OrderLine:
    return OrderLine(
        order=order,
        product=product,
        sku=product.sku,
        product_name=product.name_in(order.language),
        unit_price=product.price,
        quantity=quantity,
    )

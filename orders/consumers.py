"""The consumers of the shop's events.

Events may arrive in any order, late or repeated. Each handler reads the order as it is now, and repeats nothing.
"""

from __future__ import annotations

from messaging.consumers import consumer
from messaging.exceptions import Reject
from messaging.message import Delivery
from messaging.retry import RetryPolicy
from orders import red_packets
from orders.events import OrderCancelled, OrderPlaced, OrderShipped
from orders.models import Order, TextMessage
from orders.sms import send_text

_KINDS = {
    OrderPlaced: TextMessage.Kind.PLACED,
    OrderCancelled: TextMessage.Kind.CANCELLED,
    OrderShipped: TextMessage.Kind.SHIPPED,
}


@consumer("sms", OrderPlaced, OrderCancelled, OrderShipped, retry=RetryPolicy(max_attempts=8))
def sms(event: OrderPlaced | OrderCancelled | OrderShipped, delivery: Delivery) -> None:
    """Send one text per event."""
    order = Order.objects.filter(number=event.order_number).first()
    if order is None:
        raise Reject(f"There is no order {event.order_number}.")
    send_text(order, _KINDS[type(event)], delivery)


@consumer("red_packet", OrderPlaced, OrderCancelled, retry=RetryPolicy(max_attempts=8))
def red_packet(event: OrderPlaced | OrderCancelled, delivery: Delivery) -> None:
    """Grant a red packet for an order, and withdraw it with a cancelled one."""
    try:
        if isinstance(event, OrderPlaced):
            red_packets.grant_red_packet(event.order_number)
        else:
            red_packets.withdraw_red_packet(event.order_number)
    except Order.DoesNotExist:
        raise Reject(f"There is no order {event.order_number}.") from None

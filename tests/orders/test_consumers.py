"""The handlers, with messages repeated, late and in the wrong order."""

from collections.abc import Callable
from itertools import permutations

import pytest
from django.db import transaction

from messaging.exceptions import Reject
from messaging.message import Delivery
from orders import consumers
from orders.events import OrderCancelled, OrderPlaced, OrderShipped
from orders.models import Campaign, Order, Product, RedPacket, TextMessage
from orders.services import cancel_order, ship_order

OrderOf = Callable[..., Order]
AnyEvent = OrderPlaced | OrderCancelled | OrderShipped


def placed(order: Order) -> OrderPlaced:
    return OrderPlaced(
        order_number=order.number, placed_at=order.placed_at, currency="CNY", total=order.total, lines=()
    )


def cancelled(order: Order) -> OrderCancelled:
    return OrderCancelled(order_number=order.number, cancelled_at=order.placed_at)


def handle(handler: Callable[[AnyEvent, Delivery], None], event: AnyEvent, delivery: Delivery) -> None:
    with transaction.atomic():
        handler(event, delivery)


def kinds() -> list[str]:
    return sorted(TextMessage.objects.values_list("kind", flat=True))


def test_each_event_brings_its_own_text(order_of: OrderOf, tea: Product, delivery: Delivery) -> None:
    order = order_of(tea)
    for _ in range(3):  # repeated, it brings no second text
        handle(consumers.sms, placed(order), delivery)
    ship_order(order.number)
    handle(consumers.sms, OrderShipped(order_number=order.number, shipped_at=order.placed_at), delivery)
    assert kinds() == ["placed", "shipped"]
    text = TextMessage.objects.get(kind="placed")
    assert text.phone.as_e164 == "+8613800138000"
    assert order.number in text.body
    assert "CN¥48.00" in text.body
    assert text.message_id == "id-1"


@pytest.mark.parametrize("arrivals", sorted(set(permutations(["placed", "placed", "cancelled"]))), ids=" ".join)
@pytest.mark.parametrize("cancelled_after", [0, 1, 2])
def test_whatever_the_order_of_arrival_a_cancelled_order_keeps_no_red_packet(
    order_of: OrderOf,
    tea: Product,
    campaign: Campaign,
    delivery: Delivery,
    arrivals: tuple[str, ...],
    cancelled_after: int,
) -> None:
    order = order_of(tea)
    for turn, arrival in enumerate(arrivals):
        if turn == cancelled_after:
            cancel_order(order.number)
        event = placed(order) if arrival == "placed" else cancelled(order)
        handle(consumers.red_packet, event, delivery)
        handle(consumers.sms, event, delivery)
    campaign.refresh_from_db()
    assert campaign.spent == 0
    assert not RedPacket.objects.filter(voided_at=None).exists()
    assert kinds() == ["cancelled", "placed"]


def test_a_text_about_an_order_cancelled_since_says_so(order_of: OrderOf, tea: Product, delivery: Delivery) -> None:
    order = order_of(tea)
    cancel_order(order.number)
    handle(consumers.sms, placed(order), delivery)
    assert "cancelled meanwhile" in TextMessage.objects.get().body


def test_a_late_cancellation_event_leaves_an_order_alone_that_is_not_cancelled(
    order_of: OrderOf, tea: Product, campaign: Campaign, delivery: Delivery
) -> None:
    order = order_of(tea)
    handle(consumers.red_packet, placed(order), delivery)
    handle(consumers.red_packet, cancelled(order), delivery)
    assert RedPacket.objects.get().state == "ready"


@pytest.mark.parametrize("handler", [consumers.sms, consumers.red_packet])
def test_an_event_about_an_order_that_does_not_exist_is_dead_at_once(
    db: None, delivery: Delivery, handler: Callable[..., None]
) -> None:
    event = OrderCancelled.model_validate({"order_number": "W-222222", "cancelled_at": "2026-01-01T00:00:00Z"})
    with pytest.raises(Reject, match="W-222222"):
        handler(event, delivery)

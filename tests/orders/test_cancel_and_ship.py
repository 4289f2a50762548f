"""Cancelling and shipping, repeated and in every order."""

from collections.abc import Callable

import pytest

from messaging.models import OutboxMessage
from orders.exceptions import RedPacketRefused, TooLate
from orders.models import Campaign, Order, Product, RedPacket
from orders.red_packets import grant_red_packet
from orders.services import cancel_order, ship_order

OrderOf = Callable[..., Order]


def event_types() -> list[str]:
    return list(OutboxMessage.objects.order_by("pk").values_list("type", flat=True))


def granted(order: Order) -> RedPacket:
    packet = grant_red_packet(order.number)
    assert packet
    return packet


def test_cancelling_puts_the_stock_back_and_adds_an_event_once(order_of: OrderOf, tea: Product, pot: Product) -> None:
    order = cancel_order(order_of(tea, pot, quantity=3).number)
    tea.refresh_from_db()
    pot.refresh_from_db()
    assert (tea.stock, pot.stock) == (10, 4)
    assert order.status == Order.Status.CANCELLED
    assert order.cancelled_at == cancel_order(order.number).cancelled_at, "again changes nothing"
    assert event_types() == ["order.placed", "order.cancelled"]
    with pytest.raises(TooLate):
        ship_order(order.number)


def test_an_order_is_shipped_once_and_can_then_not_be_cancelled(order_of: OrderOf, tea: Product) -> None:
    number = order_of(tea).number
    assert ship_order(number).shipped_at == ship_order(number).shipped_at
    assert event_types() == ["order.placed", "order.shipped"]
    with pytest.raises(TooLate):
        cancel_order(number)
    tea.refresh_from_db()
    assert tea.stock == 9


def test_cancelling_withdraws_the_unused_red_packet_and_frees_its_budget(
    order_of: OrderOf, tea: Product, campaign: Campaign
) -> None:
    order = order_of(tea)
    packet = granted(order)
    cancel_order(order.number)
    packet.refresh_from_db()
    campaign.refresh_from_db()
    assert packet.state == "void"
    assert campaign.spent == 0
    with pytest.raises(RedPacketRefused, match="withdrawn"):
        order_of(tea, red_packet_code=packet.code)


def test_cancelling_gives_the_used_red_packet_back(order_of: OrderOf, tea: Product, campaign: Campaign) -> None:
    packet = granted(order_of(tea))
    cancel_order(order_of(tea, red_packet_code=packet.code).number)
    packet.refresh_from_db()
    assert packet.state == "ready"
    assert order_of(tea, red_packet_code=packet.code).discount == packet.amount


def test_a_spent_red_packet_stays_spent_when_the_order_that_earned_it_is_cancelled(
    order_of: OrderOf, tea: Product, campaign: Campaign
) -> None:
    earner = order_of(tea)
    packet = granted(earner)
    order_of(tea, red_packet_code=packet.code)
    cancel_order(earner.number)
    packet.refresh_from_db()
    assert packet.state == "used"


def test_a_red_packet_given_back_is_void_if_the_order_that_earned_it_is_cancelled_too(
    order_of: OrderOf, tea: Product, campaign: Campaign
) -> None:
    earner = order_of(tea)
    packet = granted(earner)
    spender = order_of(tea, red_packet_code=packet.code)
    cancel_order(earner.number)
    cancel_order(spender.number)
    packet.refresh_from_db()
    campaign.refresh_from_db()
    assert packet.state == "void"
    assert campaign.spent == 0

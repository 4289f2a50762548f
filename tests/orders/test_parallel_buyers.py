"""Many at once, on the database that the run uses."""

import threading
from collections.abc import Callable
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
from django.db import transaction
from django.test import Client

from messaging.models import OutboxMessage
from orders.exceptions import Refused
from orders.models import Campaign, Document, Order, Product, RedPacket
from orders.red_packets import grant_red_packet
from orders.services import cancel_order
from script.environment import UNLIMITED_ORDERS
from tests.orders.shop import Buyer, all_at_once
from tests.support.running import InThread
from tests.support.waiting import eventually, locks_waited_for

OrderOf = Callable[..., Order]
pytestmark = pytest.mark.django_db(transaction=True)


def test_forty_buyers_of_ten_pieces_make_ten_orders(quoted: object, tea: Product, settings: Any) -> None:
    for limit in UNLIMITED_ORDERS:  # they all have one phone number and one address
        setattr(settings, limit, 0)
    Product.objects.update(stock=10)
    ready = []
    for _ in range(40):
        buyer = Buyer(Client())
        buyer.put_into_cart(tea)
        ready.append((buyer, buyer.open_checkout()))

    answers = all_at_once([lambda b=buyer, o=offer: b.press_place_order(o) for buyer, offer in ready])

    assert [answer for answer in answers if isinstance(answer, Exception)] == []
    assert {answer.status_code for answer in answers} == {302}
    placed = [answer for answer in answers if answer.url.startswith("/orders/W-")]
    tea.refresh_from_db()
    assert (len(placed), Order.objects.count(), tea.stock) == (10, 10, 0)
    assert Document.objects.count() == 20
    assert OutboxMessage.objects.count() == 10


def test_a_button_pressed_twenty_times_at_once_makes_one_order(order_of: OrderOf, tea: Product) -> None:
    token = uuid4()
    made = all_at_once([lambda: order_of(tea, checkout_token=token) for _ in range(20)])
    assert len({order.number for order in made}) == 1
    tea.refresh_from_db()
    assert tea.stock == 9
    assert OutboxMessage.objects.count() == 1


def test_one_token_with_two_different_carts_makes_one_order(order_of: OrderOf, tea: Product, pot: Product) -> None:
    Product.objects.update(stock=10)  # neither is sold out, whichever wins
    for _ in range(5):
        token = uuid4()
        made = all_at_once([
            lambda t=token: order_of(tea, checkout_token=t),
            lambda t=token: order_of(pot, checkout_token=t),
        ])  # fmt: skip
        assert made[0] == made[1]
    assert Order.objects.count() == 5
    tea.refresh_from_db()
    pot.refresh_from_db()
    assert (10 - tea.stock) + (10 - pot.stock) == 5


def test_carts_filled_in_opposite_order_do_not_deadlock(order_of: OrderOf, tea: Product, pot: Product) -> None:
    Product.objects.update(stock=200)
    there = [lambda: order_of(tea, pot)] * 16
    back = [lambda: order_of(pot, tea)] * 16
    made = all_at_once([action for pair in zip(there, back, strict=True) for action in pair])
    assert [result for result in made if not isinstance(result, Order)] == []
    tea.refresh_from_db()
    assert tea.stock == 168


def test_a_red_packet_used_by_many_at_once_pays_one_order(order_of: OrderOf, tea: Product, campaign: Campaign) -> None:
    Product.objects.update(stock=100)
    packet = grant_red_packet(order_of(tea).number)
    assert packet
    made = all_at_once([lambda: order_of(tea, red_packet_code=packet.code) for _ in range(20)])
    assert len([result for result in made if isinstance(result, Order)]) == 1
    assert len([result for result in made if isinstance(result, Refused)]) == 19
    tea.refresh_from_db()
    assert tea.stock == 98


@pytest.mark.only_on("postgresql")  # SQLite has one writer
def test_a_red_packet_used_for_two_different_products_pays_one_order(
    order_of: OrderOf, tea: Product, pot: Product, campaign: Campaign
) -> None:
    """Nothing but the red packet keeps the two orders apart."""
    packet = grant_red_packet(order_of(tea).number)
    assert packet
    placed, commit = threading.Event(), threading.Event()

    def first() -> None:
        with transaction.atomic():
            order_of(tea, red_packet_code=packet.code)
            placed.set()
            assert commit.wait(60)

    one = InThread(first, "tea")
    assert placed.wait(60)
    two = InThread(lambda: order_of(pot, red_packet_code=packet.code), "pot")
    eventually(lambda: locks_waited_for() and two.thread.is_alive())
    commit.set()
    one.join(60)
    with pytest.raises(Refused):
        two.join(60)
    assert Order.objects.count() == 2  # the one that earned it, and the one that it paid


def test_grants_and_cancellations_at_once_neither_overspend_nor_leave_a_red_packet(
    order_of: OrderOf, tea: Product, campaign: Campaign
) -> None:
    Product.objects.update(stock=100)
    Campaign.objects.update(budget=Decimal(20), min_amount=Decimal(3), max_amount=Decimal(3))
    numbers = [order_of(tea).number for _ in range(20)]
    doomed = numbers[::2]
    actions: list[Callable[[], Any]] = [lambda n=number: grant_red_packet(n) for number in numbers + numbers]
    actions += [lambda n=number: cancel_order(n) for number in doomed + doomed]

    results = all_at_once(actions[::2] + actions[1::2])

    assert [result for result in results if isinstance(result, Exception)] == []
    valid = RedPacket.objects.filter(voided_at=None)
    campaign.refresh_from_db()
    assert campaign.spent == sum(packet.amount for packet in valid) <= Decimal(20)
    assert not valid.filter(order__number__in=doomed).exists()
    tea.refresh_from_db()
    assert tea.stock == 90


def test_an_order_cancelled_by_many_at_once_gives_its_stock_back_once(order_of: OrderOf, tea: Product) -> None:
    number = order_of(tea, quantity=4).number
    results = all_at_once([lambda: cancel_order(number) for _ in range(20)])
    assert [result for result in results if isinstance(result, Exception)] == []
    tea.refresh_from_db()
    assert tea.stock == 10
    assert OutboxMessage.objects.filter(type="order.cancelled").count() == 1

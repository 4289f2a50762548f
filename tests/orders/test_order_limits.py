"""Orders are limited: each sends texts to a typed number. A refused order says so, and keeps its cart."""

from collections.abc import Callable
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from django.db import OperationalError
from django.test import Client
from django.utils import timezone

from orders.models import Guess, Order, Product, TextMessage
from orders.sms import wording
from orders.views import checkout
from tests.orders.shop import Buyer, number_in, text_of

OrderOf = Callable[..., Order]
pytestmark = [pytest.mark.django_db, pytest.mark.only_on("sqlite")]


@pytest.fixture(autouse=True)
def plenty(tea: Product, quoted: object, settings: Any) -> None:
    """More pieces than are ordered here, and low limits."""
    Product.objects.update(stock=1000)
    settings.ORDERS_PER_BROWSER, settings.ORDERS_PER_ADDRESS = 6, 7


def phone(number: int) -> str:
    return f"138001380{number:02}"


def press(tea: Product, *, address: int = 1, buyer: Buyer | None = None, **typed: str) -> Any:
    """Order by a new browser, unless one is given."""
    buyer = buyer or Buyer(Client(REMOTE_ADDR=f"203.0.113.{address}"))
    buyer.put_into_cart(tea)
    return buyer.press_place_order(buyer.open_checkout(), **typed)


def placed(answers: list[Any]) -> int:
    """How many orders there are, after some that were placed or refused."""
    assert {answer.status_code for answer in answers} <= {302, 429}
    return Order.objects.count()


def test_one_phone_one_browser_and_one_address_place_few_orders(tea: Product) -> None:
    assert placed([press(tea, address=number) for number in range(8)]) == 5
    buyer = Buyer(Client())
    assert placed([press(tea, buyer=buyer, phone=phone(number)) for number in range(20, 28)]) == 5 + 6
    assert placed([press(tea, address=99, phone=phone(number)) for number in range(40, 49)]) == 5 + 6 + 7
    assert press(tea, phone=phone(70), address=100).status_code == 302


def test_one_phone_gets_few_texts_a_day(tea: Product) -> None:
    for _ in range(3):
        for number in range(6):
            press(tea, address=number)
        Guess.objects.update(created_at=timezone.now() - timedelta(hours=1))
    assert Order.objects.count() == 10
    assert "Press the button again in 23 hours." in text_of(press(tea))


def test_over_the_limit_the_page_says_what_to_do_and_the_cart_is_kept(tea: Product) -> None:
    for number in range(5):
        press(tea, address=number)
    buyer = Buyer(Client())
    answer = press(tea, buyer=buyer, customer_name="Keep Me")

    assert answer.status_code == 429
    assert int(answer.headers["Retry-After"]) in range(800, 901)
    assert "Your order was not placed: too many orders came for this phone number" in text_of(answer)
    assert "Your cart is kept. Press the button again in 15 minutes." in text_of(answer)
    assert 'value="Keep Me"' in text_of(answer)
    assert buyer.cart() == {"Tea": 1}
    Guess.objects.update(created_at=timezone.now() - timedelta(minutes=15))
    assert number_in(buyer.press_place_order(buyer.open_checkout()))


def test_presses_that_made_no_order_do_not_count(tea: Product, monkeypatch: pytest.MonkeyPatch) -> None:
    buyer = Buyer(Client())
    buyer.put_into_cart(tea)
    for _ in range(6):
        offer = buyer.open_checkout()
        Product.objects.update(price=tea.price + 1)
        assert buyer.press_place_order(offer).url == "/checkout/"
        Product.objects.update(price=tea.price)
    offer = buyer.open_checkout()
    with monkeypatch.context() as patch:

        def locked(**_: Any) -> Order:
            raise OperationalError("database is locked")

        patch.setattr(checkout, "place_order", locked)
        for _ in range(6):
            assert buyer.press_place_order(offer).status_code == 503
    assert not Guess.objects.exists()
    first = buyer.press_place_order(offer).url
    for _ in range(6):
        assert buyer.press_place_order(offer).url == first


def test_commands_are_not_limited_and_limits_can_be_lifted(tea: Product, settings: Any) -> None:
    call_command("place_order", count=6, stdout=StringIO())
    assert Order.objects.count() == 6
    settings.ORDERS_PER_PHONE = settings.ORDERS_PER_PHONE_A_DAY = 0
    settings.ORDERS_PER_BROWSER = settings.ORDERS_PER_ADDRESS = 0
    assert {press(tea).status_code for _ in range(6)} == {302}
    assert not Guess.objects.exists()


def test_an_unknown_address_has_no_limit(tea: Product) -> None:
    answers = [press(tea, buyer=Buyer(Client(REMOTE_ADDR="")), phone=phone(number)) for number in range(8)]
    assert {answer.status_code for answer in answers} == {302}


@pytest.mark.parametrize("kind", TextMessage.Kind)
def test_a_text_holds_nothing_that_the_visitor_typed(order_of: OrderOf, tea: Product, kind: TextMessage.Kind) -> None:
    order = order_of(tea, customer_name="WIN AT HTTPS://EVIL.EXAMPLE")
    assert "WIN" not in wording(order, kind)
    assert order.number in wording(order, kind)


def test_no_phone_number_is_kept_in_plain_for_a_limit(tea: Product) -> None:
    press(tea)
    assert not Guess.objects.filter(key__contains="138").exists()

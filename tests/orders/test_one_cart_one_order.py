"""One cart becomes one order, whatever comes at once, and whichever request saves the session last."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.test import Client

from orders import shipping
from orders.models import Cart, Order, Product
from orders.services import place_order
from orders.views import checkout
from tests.orders.shop import Buyer, all_at_once, many_at_once, number_in, text_of

pytestmark = pytest.mark.django_db


def other_tab(buyer: Buyer) -> Buyer:
    """The same browser once more, for another thread."""
    client = Client()
    client.cookies = buyer.client.cookies
    return Buyer(client)


@contextmanager
def session_written_back(buyer: Buyer) -> Iterator[None]:
    """After the block the session is as before: a slower request, which had loaded it, saves it last."""
    key = buyer.client.session.session_key
    before = Session.objects.get(session_key=key).session_data
    yield
    Session.objects.filter(session_key=buyer.client.session.session_key).update(session_data=before)


def let_quotes_come_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two checkout pages wait for the shipping service at the same time."""
    together = threading.Barrier(2)

    def call(*_: Any, **__: Any) -> dict[str, str]:
        together.wait(30)
        return {"amount": "12.00", "currency": "CNY"}

    monkeypatch.setattr(shipping.rpc, "call", call)


@many_at_once
def test_two_checkout_pages_opened_at_once_and_pressed_each_make_one_order(
    buyer: Buyer, tea: Product, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = buyer.buy(tea)
    buyer.put_into_cart(tea)
    tabs = [other_tab(buyer), other_tab(buyer)]
    let_quotes_come_together(monkeypatch)

    offers = all_at_once([tab.open_checkout for tab in tabs])
    answers = all_at_once([
        lambda t=tab, o=offer: t.press_place_order(o) for tab, offer in zip(tabs, offers, strict=True)
    ])  # fmt: skip

    assert len({number_in(answer) for answer in answers}) == 1
    assert Order.objects.exclude(number=earlier).count() == 1


@many_at_once
def test_two_presses_of_the_button_that_fills_the_cart_make_one_cart(buyer: Buyer, tea: Product) -> None:
    buyer.client.force_login(User.objects.create_user("ann"))  # a session without a cart
    tabs = [other_tab(buyer), other_tab(buyer)]
    for answer in all_at_once([lambda t=tab: t.put_into_cart(tea) for tab in tabs]):
        assert answer.status_code == 200

    assert buyer.cart() == {"Tea": 2}
    assert Cart.objects.count() == 1


def test_a_session_save_that_is_lost_loses_no_cart(buyer: Buyer, tea: Product, pot: Product) -> None:
    buyer.client.force_login(User.objects.create_user("ann"))
    with session_written_back(buyer):
        buyer.put_into_cart(tea)
        offer = buyer.open_checkout()
    with session_written_back(buyer):
        buyer.put_into_cart(pot)

    assert buyer.cart() == {"Tea": 1, "Pot": 1}
    assert number_in(buyer.press_place_order(offer))


@pytest.mark.parametrize("lost", ["checkout", "order", "checkout and order"])
def test_a_reload_and_a_press_after_a_lost_answer_and_a_lost_session_save_lead_to_the_same_order(
    buyer: Buyer, tea: Product, lost: str
) -> None:
    buyer.put_into_cart(tea)
    with session_written_back(buyer):
        offer = buyer.open_checkout()
        if "and" in lost:
            url = buyer.press_place_order(offer).url
    if not Order.objects.exists():
        with session_written_back(buyer):
            url = buyer.press_place_order(offer).url

    assert buyer.client.get("/checkout/").url == url
    assert buyer.press_place_order(offer).url == url
    assert Order.objects.count() == 1


def test_what_is_added_while_the_order_is_placed_is_in_the_next_cart(
    buyer: Buyer, tea: Product, pot: Product, monkeypatch: pytest.MonkeyPatch
) -> None:
    buyer.put_into_cart(tea)
    offer = buyer.open_checkout()

    def slow(**arguments: Any) -> Order:
        other_tab(buyer).put_into_cart(pot)
        other_tab(buyer).put_into_cart(tea)
        return place_order(**arguments)

    with monkeypatch.context() as patch:
        patch.setattr(checkout, "place_order", slow)
        first = number_in(buyer.press_place_order(offer))

    assert buyer.cart() == {"Tea": 1, "Pot": 1}
    assert number_in(buyer.press_place_order(buyer.open_checkout())) != first
    assert buyer.cart() == {}


def test_a_tab_that_orders_other_contents_a_moment_too_late_is_told_so(
    buyer: Buyer, tea: Product, pot: Product, monkeypatch: pytest.MonkeyPatch
) -> None:
    buyer.put_into_cart(tea)
    first = buyer.open_checkout()
    buyer.put_into_cart(pot)
    second, other = buyer.open_checkout(), other_tab(buyer)

    with monkeypatch.context() as patch:

        def order_of_the_other_tab_first(**wanted: Any) -> Order:
            patch.undo()
            other.press_place_order(first)
            return place_order(**wanted)

        patch.setattr(checkout, "place_order", order_of_the_other_tab_first)
        answer = buyer.press_place_order(second)

    assert str(checkout.OTHER_CONTENTS) in text_of(buyer.client.get(answer.url))
    assert Order.objects.count() == 1


def test_signing_in_between_the_page_and_the_button_keeps_cart_and_offer(buyer: Buyer, tea: Product) -> None:
    User.objects.create_user("ann", password="correct horse")
    buyer.put_into_cart(tea)
    offer = buyer.open_checkout()
    buyer.client.post("/accounts/sign-in/", {"username": "ann", "password": "correct horse"})

    assert buyer.cart() == {"Tea": 1}
    first = buyer.press_place_order(offer).url
    assert buyer.press_place_order(offer).url == first
    assert Order.objects.get().user is not None


def test_an_order_is_not_called_malformed_when_its_visitor_signs_up_in_another_tab_meanwhile(
    buyer: Buyer, tea: Product, monkeypatch: pytest.MonkeyPatch
) -> None:
    buyer.put_into_cart(tea)
    offer, other = buyer.open_checkout(), other_tab(buyer)

    def sign_up_meanwhile(**wanted: Any) -> Order:
        password = {"password1": "a long secret", "password2": "a long secret"}
        assert other.client.post("/accounts/sign-up/", {"username": "ann", **password}).status_code == 302
        return place_order(**wanted)

    monkeypatch.setattr(checkout, "place_order", sign_up_meanwhile)
    answer = buyer.press_place_order(offer)

    assert answer.status_code == 400
    assert "look at your orders before you do it again" in text_of(answer)
    assert number_in(buyer.press_place_order(offer)) == Order.objects.get().number


def test_an_account_has_a_cart_on_each_device(tea: Product, quoted: object) -> None:
    user = User.objects.create_user("ann")
    devices = [Buyer(Client()), Buyer(Client())]
    for device in devices:
        device.client.force_login(user)
        device.put_into_cart(tea)
    offers = [device.open_checkout() for device in devices]

    numbers = {number_in(d.press_place_order(o)) for d, o in zip(devices, offers, strict=True) for _ in range(2)}

    assert len(numbers) == 2


@pytest.mark.parametrize(
    "engine", ["django.contrib.sessions.backends.signed_cookies", "django.contrib.sessions.backends.cache"]
)
def test_one_cart_is_one_order_wherever_sessions_are_kept(
    client: Client, tea: Product, quoted: object, settings: Any, engine: str
) -> None:
    settings.SESSION_ENGINE = engine
    buyer = Buyer(client)
    buyer.put_into_cart(tea)
    tabs = [buyer.open_checkout(), buyer.open_checkout()]
    assert len({number_in(buyer.press_place_order(tab)) for tab in tabs}) == 1
    assert buyer.cart() == {}


def test_a_cart_holds_no_more_products_than_an_order_can(
    buyer: Buyer, tea: Product, pot: Product, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orders.cart.MOST_PRODUCTS", 1)
    buyer.put_into_cart(tea)
    assert "The cart is full" in text_of(buyer.put_into_cart(pot))
    assert buyer.cart() == {"Tea": 1}

"""From the cart to the order page: one order, at the total that was shown, whatever happens in between."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from django.db import OperationalError
from django.test import Client

from messaging import rpc
from orders import shipping
from orders.models import Campaign, Order, Product, RedPacket
from orders.red_packets import grant_red_packet
from orders.views import checkout
from tests.orders.shop import Buyer, number_in, offer_in, text_of

OrderOf = Callable[..., Order]
# Pages: the SQL behind them is tested on both databases where it is written.
pytestmark = pytest.mark.only_on("sqlite")


@pytest.fixture
def packet(buyer: Buyer, tea: Product, campaign: Campaign) -> RedPacket:
    """A red packet earned by an order of this very visitor."""
    granted = grant_red_packet(buyer.buy(tea))
    assert granted
    return granted


def test_an_order_is_placed_and_its_page_opens(buyer: Buyer, tea: Product) -> None:
    buyer.put_into_cart(tea, 2)
    assert "Place order · CN¥88.00" in text_of(buyer.client.get("/checkout/"))
    response = buyer.press_place_order(buyer.open_checkout(), customer_name="  张  伟 ", phone="１３８００１３８０００")
    order = Order.objects.get()
    assert response.url == f"/orders/{order.number}/"
    assert (order.customer_name, order.phone.as_e164) == ("张 伟", "+8613800138000")
    assert (order.total, order.shipping, order.shipping_source) == (Decimal("88.00"), Decimal("12.00"), "quoted")
    page = text_of(buyer.client.get(response.url))
    assert order.number in page
    assert "CN¥88.00" in page
    assert "Your cart is empty" in text_of(buyer.client.get("/cart/"))
    assert buyer.client.get("/checkout/").status_code == 302, "an empty cart has no checkout"


def test_the_button_takes_no_more_statements_than_it_needs(
    buyer: Buyer, tea: Product, pot: Product, django_assert_max_num_queries: Any
) -> None:
    buyer.put_into_cart(tea)
    buyer.put_into_cart(pot)
    offer = buyer.open_checkout()
    with django_assert_max_num_queries(22):
        buyer.press_place_order(offer)
    assert Order.objects.get().lines.count() == 2


def test_pressing_twice_or_going_back_gives_the_same_order(buyer: Buyer, tea: Product) -> None:
    buyer.put_into_cart(tea)
    offer = buyer.open_checkout()
    first = buyer.press_place_order(offer)
    assert buyer.press_place_order(offer).url == first.url
    assert buyer.press_place_order(offer, customer_name="", phone="nonsense").url == first.url
    buyer.put_into_cart(tea, 2)
    assert buyer.press_place_order(offer).url == first.url
    assert "other contents" not in text_of(buyer.client.get(first.url))
    assert buyer.cart() == {"Tea": 2}, "the next cart is left alone"
    assert Order.objects.count() == 1


def test_a_product_that_another_tab_added_is_not_ordered(buyer: Buyer, tea: Product, pot: Product) -> None:
    buyer.put_into_cart(tea)
    first_tab = buyer.open_checkout()
    buyer.put_into_cart(pot)
    second_tab = buyer.open_checkout()
    number = number_in(buyer.press_place_order(first_tab))
    answer = buyer.press_place_order(second_tab)
    assert number_in(answer) == number
    assert "This cart was ordered before with other contents" in text_of(buyer.client.get(answer.url))
    assert buyer.cart() == {"Pot": 1}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"price": Decimal("39.00")}, "price of Tea has changed"),
        ({"stock": 1}, "Tea: only 1 left"),
    ],
)
def test_a_change_after_the_page_was_shown_is_said_before_anything_is_charged(
    buyer: Buyer, tea: Product, change: dict[str, Any], said: str
) -> None:
    buyer.put_into_cart(tea, 2)
    offer = buyer.open_checkout()
    Product.objects.update(**change)
    response = buyer.press_place_order(offer, customer_name="Keep Me")
    assert response.url == "/checkout/"
    assert not Order.objects.exists()
    again = buyer.client.get("/checkout/")
    assert said in text_of(again)
    assert 'value="Keep Me"' in text_of(again)
    assert number_in(buyer.press_place_order(offer_in(again)))
    assert Order.objects.get().total in {Decimal("90.00"), Decimal("50.00")}


def test_a_product_that_sold_out_after_the_page_was_shown_leads_back_to_the_cart(buyer: Buyer, tea: Product) -> None:
    buyer.put_into_cart(tea)
    offer = buyer.open_checkout()
    Product.objects.update(stock=0)
    response = buyer.client.get(buyer.press_place_order(offer).url, follow=True)
    assert response.redirect_chain[-1][0] == "/cart/"
    assert "sold out" in text_of(response)


def test_another_country_or_region_means_another_total_which_is_shown_first(
    buyer: Buyer, tea: Product, quoted: list[dict[str, Any]]
) -> None:
    there = {"destination": "US", "phone": "(650) 253-0000"}
    buyer.put_into_cart(tea, 2)
    response = buyer.press_place_order(buyer.open_checkout(), **there)
    assert not Order.objects.exists()
    again = buyer.client.get(response.url)
    assert "total has changed" in text_of(again)
    assert quoted == [{"weight_grams": 500, "destination": "CN"}, {"weight_grams": 500, "destination": "US"}]
    assert number_in(buyer.press_place_order(offer_in(again), **there))
    assert len(quoted) == 2, "the button asks for no quote"

    buyer.put_into_cart(tea)
    typed = {"customer_name": "Ann", "phone": "138", "destination": "JP", "red_packet": ""}
    page = text_of(buyer.client.post("/checkout/update/", typed, follow=True))
    assert "Shipping to Japan" in page
    assert 'value="138"' in page


def test_without_a_shipping_quote_the_page_shows_the_flat_rate_and_says_so(
    client: Client, tea: Product, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(*args: Any, **kwargs: Any) -> None:
        raise rpc.RpcTimeout("nobody")

    monkeypatch.setattr(shipping.rpc, "call", call)
    buyer = Buyer(client)
    buyer.put_into_cart(tea)
    page = client.get("/checkout/")
    assert "does not answer at the moment" in text_of(page)
    buyer.press_place_order(offer_in(page))
    order = Order.objects.get()
    assert (order.shipping, order.shipping_source) == (Decimal("25.00"), "flat_rate")


def test_wrong_input_is_a_field_error_and_stays(buyer: Buyer, tea: Product) -> None:
    buyer.put_into_cart(tea)
    response = buyer.press_place_order(buyer.open_checkout(), customer_name="Evil\u202ename", phone="020 8888 8888")
    page = text_of(response)
    assert "invisible character" in page
    assert "not a mobile number" in page
    assert 'value="020 8888 8888"' in page
    assert not Order.objects.exists()


@pytest.mark.parametrize("offer", ["", "rubbish", "\x00", "eyJ0b2tlbiI6MX0:1:x" * 50, "another visitor's"])
def test_a_forged_or_stolen_offer_orders_nothing_and_shows_the_page_again(
    buyer: Buyer, tea: Product, offer: str
) -> None:
    if "visitor" in offer:
        victim = Buyer(Client())
        victim.put_into_cart(tea)
        offer = victim.open_checkout()
    buyer.put_into_cart(tea)
    buyer.open_checkout()
    response = buyer.press_place_order(offer, customer_name="Keep Me")
    assert response.url == "/checkout/"
    assert "Keep Me" in text_of(buyer.client.get("/checkout/"))
    assert not Order.objects.exists()


def test_a_red_packet_lowers_the_total_that_is_shown_and_charged(buyer: Buyer, tea: Product, packet: RedPacket) -> None:
    buyer.put_into_cart(tea)
    assert packet.code in text_of(buyer.client.get("/checkout/"))
    page = buyer.client.get(buyer.press_place_order(buyer.open_checkout(), red_packet=packet.code).url)
    total = Decimal("50.00") - packet.amount
    assert f"Place order · CN¥{total}" in text_of(page)
    number = number_in(buyer.press_place_order(offer_in(page), red_packet=packet.code.lower()))
    assert Order.objects.get(number=number).total == total
    assert "Spent on" in text_of(buyer.client.get("/red-packets/"))


@pytest.mark.parametrize("code", ["NOSUCHCODE", "\x00", "红包"])
def test_a_red_packet_that_cannot_be_used_is_said_and_nothing_is_ordered(buyer: Buyer, tea: Product, code: str) -> None:
    buyer.put_into_cart(tea)
    response = buyer.press_place_order(buyer.open_checkout(), red_packet=code)
    assert response.context["form"].errors["red_packet"]
    assert response.context["form"]["red_packet"].value() == code
    assert not Order.objects.exists()
    page = text_of(buyer.client.post("/checkout/update/", {"red_packet": code}, follow=True))
    assert "cannot be used" in page


def test_a_red_packet_spent_in_another_tab_is_a_field_error(
    buyer: Buyer, tea: Product, packet: RedPacket, order_of: OrderOf
) -> None:
    buyer.put_into_cart(tea)
    page = buyer.client.get(buyer.press_place_order(buyer.open_checkout(), red_packet=packet.code).url)
    order_of(tea, red_packet_code=packet.code)
    response = buyer.press_place_order(offer_in(page), red_packet=packet.code)
    assert "already used" in text_of(response)
    assert Order.objects.count() == 2


def test_a_database_that_is_too_busy_is_said_and_pressing_again_places_the_order(
    buyer: Buyer, tea: Product, monkeypatch: pytest.MonkeyPatch
) -> None:
    buyer.put_into_cart(tea)
    offer = buyer.open_checkout()
    with monkeypatch.context() as patch:

        def locked(**kwargs: Any) -> Order:
            raise OperationalError("database is locked")

        patch.setattr(checkout, "place_order", locked)
        response = buyer.press_place_order(offer)
    assert response.status_code == 503
    assert response.headers["Retry-After"].isdecimal()
    assert "you pay only once" in text_of(response)
    assert number_in(buyer.press_place_order(offer_in(response)))

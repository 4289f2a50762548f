"""No amount is finer than the currency."""

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from io import StringIO
from typing import Any

import pytest
from django.core.checks import run_checks
from django.core.management import call_command
from django.test import Client
from django.utils import timezone

from orders import money, shipping
from orders.checks import check_amounts
from orders.exceptions import NotPayable
from orders.models import Campaign, Order, Product, RedPacket
from orders.procedures import shipping_quote
from orders.red_packets import grant_red_packet
from orders.shipping import ShippingQuote, flat_rate
from tests.orders.shop import Buyer, text_of

OrderOf = Callable[..., Order]
# Pages: the SQL behind them is tested on both databases where it is written.
pytestmark = pytest.mark.only_on("sqlite")
NEW = {"name": "Ink", "slug": "ink", "sku": "INK", "stock": "7", "weight_grams": "50", "active": "on"}
CAMPAIGN = {"name": "Odd", "valid_days": "9", "active": "on", "starts_at_0": "2026-01-01", "starts_at_1": "00:00",
            "ends_at_0": "2027-01-01", "ends_at_1": "00:00"}  # fmt: skip


@pytest.mark.parametrize(
    ("currency", "price", "taken"),
    [
        ("CNY", "10.50", True),
        ("CNY", "10.505", False),
        ("JPY", "10.50", False),
        ("JPY", "10.00", True),
        ("KWD", "10.50", True),
        ("KWD", "10.505", False),
        ("JPY", "NaN", False),
    ],
)
def test_the_admin_takes_prices_that_can_be_paid(
    admin_client: Client, settings: Any, currency: str, price: str, taken: bool
) -> None:
    settings.SHOP_CURRENCY = currency
    response = admin_client.post("/admin/orders/product/add/", {**NEW, "price": price})
    assert (response.status_code == 302) == taken
    assert Product.objects.exists() == taken
    if (currency, taken) == ("JPY", False) and price != "NaN":
        assert "The smallest amount of JPY is 1: enter a multiple of it, such as 11." in text_of(response)


@pytest.mark.parametrize("field", ["budget", "min_amount", "max_amount"])
def test_a_campaign_gives_away_what_can_be_paid(admin_client: Client, settings: Any, field: str) -> None:
    settings.SHOP_CURRENCY = "JPY"
    form = {**CAMPAIGN, "budget": "100", "min_amount": "1", "max_amount": "9"}
    response = admin_client.post("/admin/orders/campaign/add/", {**form, field: "5.50"})
    assert "The smallest amount of JPY is 1" in text_of(response)
    assert admin_client.post("/admin/orders/campaign/add/", form).status_code == 302


def test_shipping_costs_whole_units(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.SHOP_CURRENCY = "JPY"
    monkeypatch.setattr(shipping, "FLAT_RATE", Decimal("25.50"))
    monkeypatch.setattr(shipping, "_ask", lambda payload: {"amount": "12.50", "currency": "JPY"})
    assert flat_rate().amount == 26
    assert shipping.get_quote(weight_grams=1, destination="CN").amount == 13
    assert money.is_payable(Decimal(shipping_quote(1, "CN")["amount"]))


def test_an_order_is_made_of_amounts_that_can_be_paid(
    order_of: OrderOf, tea: Product, campaign: Campaign, settings: Any
) -> None:
    packet = grant_red_packet(order_of(tea).number)
    assert packet
    RedPacket.objects.update(amount=Decimal("5.55"))
    settings.SHOP_CURRENCY = "JPY"
    quote = ShippingQuote(amount=Decimal("12.50"), source="quoted")
    order = order_of(tea, red_packet_code=packet.code, shipping=quote)
    assert (order.subtotal, order.shipping, order.discount, order.total) == (38, 13, 5, 46)


def test_a_price_that_cannot_be_paid_is_shown_as_it_is_and_not_ordered(
    buyer: Buyer, tea: Product, settings: Any
) -> None:
    settings.SHOP_CURRENCY = "JPY"
    Product.objects.update(price=Decimal("10.50"))
    assert "¥10.5<" in text_of(buyer.client.get("/p/tea/"))
    page = text_of(buyer.put_into_cart(tea, 3))
    assert "¥31.5<" in page
    answer = buyer.client.get(buyer.press_place_order(buyer.open_checkout()).url)
    assert "Tea cannot be ordered: its price has more decimals than JPY has." in text_of(answer)
    assert not Order.objects.exists()


def test_commands_order_and_seed_what_can_be_paid(order_of: OrderOf, tea: Product, settings: Any) -> None:
    settings.SHOP_CURRENCY = "JPY"
    Product.objects.update(price=Decimal("10.50"))
    with pytest.raises(NotPayable):
        order_of(tea)
    Product.objects.all().delete()
    call_command("seed_demo", stdout=StringIO())
    assert check_amounts(databases=["default"]) == []


def test_rows_that_do_not_fit_a_new_currency_are_named(
    tea: Product, pot: Product, campaign: Campaign, settings: Any
) -> None:
    Product.objects.filter(pk=pot.pk).update(price=Decimal("10.50"))
    assert check_amounts(databases=["default"]) == []
    settings.SHOP_CURRENCY = "JPY"
    found = run_checks(tags=["database"], databases=["default"])
    warnings = [str(each.msg) for each in found if each.id == "orders.W002"]
    assert warnings == [
        f"1 products have amounts that cannot be paid in JPY, such as number {pot.pk}.",
        f"1 campaigns have amounts that cannot be paid in JPY, such as number {campaign.pk}.",
    ]


@pytest.mark.parametrize(("currency", "unit"), [("CNY", "0.01"), ("JPY", "1"), ("KWD", "0.01"), ("CLF", "0.01")])
def test_the_smallest_amount_is_the_currencys_or_the_columns(currency: str, unit: str) -> None:
    assert money.smallest_unit(currency) == Decimal(unit)


def test_a_campaign_with_fractions_gives_away_whole_units(order_of: OrderOf, tea: Product, settings: Any) -> None:
    settings.SHOP_CURRENCY = "JPY"
    Campaign.objects.create(
        name="Old", budget=Decimal("3.50"), min_amount=Decimal("0.50"), max_amount=Decimal("1.50"),
        ends_at=timezone.now() + timedelta(days=1),
    )  # fmt: skip
    packets = [grant_red_packet(order_of(tea).number) for _ in range(4)]
    assert [packet and packet.amount for packet in packets] == [1, 1, 1, None]

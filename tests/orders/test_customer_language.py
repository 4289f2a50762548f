"""The language of an order: kept from placing on, and spoken by its texts, products, amounts and times."""

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connection
from django.test import Client
from django.utils import timezone, translation

from orders import times
from orders.models import Order, Product, TextMessage
from orders.money import written
from orders.services import cancel_order, ship_order
from orders.sms import send_text, wording
from tests.orders.shop import Buyer, arrival, text_of

OrderOf = Callable[..., Order]
Kind = TextMessage.Kind
PLACED_AT = datetime(2026, 11, 29, 18, 13, tzinfo=UTC)


@pytest.fixture
def in_shanghai(settings: Any) -> None:
    """The shop's time zone is eight hours ahead of UTC."""
    settings.TIME_ZONE = "Asia/Shanghai"


@pytest.fixture
def tea_in_chinese(tea: Product) -> Product:
    Product.objects.update(name_zh_hans="茶叶", name_zh_hant="茶葉")
    tea.refresh_from_db()
    return tea


TEXTS = {
    ("en", Kind.PLACED): "Thank you. We have your order {number} of 30 Nov, 02:13 (UTC+8): CN¥48.00.",
    ("en", Kind.SHIPPED): "Your order {number} is on its way to you.",
    ("en", Kind.CANCELLED): "Your order {number} is cancelled. CN¥48.00 will not be charged.",
    ("zh-hans", Kind.PLACED): "感谢惠顾！我们已收到您于 11月30日 02:13（UTC+8）提交的订单 {number}，合计 ¥48.00。",
    ("zh-hans", Kind.SHIPPED): "您的订单 {number} 已发货，正在配送途中。",
    ("zh-hans", Kind.CANCELLED): "您的订单 {number} 已取消，不会向您收取 ¥48.00。",
    (
        "zh-hant",
        Kind.PLACED,
    ): "感謝您的訂購！我們已收到您於 11月30日 02:13（UTC+8）送出的訂單 {number}，總計 CN¥48.00。",
    ("zh-hant", Kind.SHIPPED): "您的訂單 {number} 已出貨，正在配送途中。",
    ("zh-hant", Kind.CANCELLED): "您的訂單 {number} 已取消，不會向您收取 CN¥48.00。",
}


@pytest.mark.parametrize(("language", "kind"), TEXTS)
@pytest.mark.parametrize("active", ["en", "zh-hans"])
def test_a_text_speaks_the_order_s_language_whatever_the_process_speaks(
    order_of: OrderOf, tea: Product, in_shanghai: None, language: str, kind: Kind, active: str
) -> None:
    order = order_of(tea, language=language)
    Order.objects.update(placed_at=PLACED_AT)
    {Kind.PLACED: str, Kind.SHIPPED: ship_order, Kind.CANCELLED: cancel_order}[kind](order.number)
    with translation.override(active):
        text = send_text(Order.objects.get(), kind, arrival("id"))
        assert translation.get_language() == active
    assert text
    assert text.body == "【Warren】" + TEXTS[language, kind].format(number=order.number)


@pytest.mark.parametrize(
    ("language", "words"),
    [("en", "was cancelled meanwhile. CN¥48.00 will not"), ("zh-hans", "已取消，不会"), ("zh-hant", "已取消，不會")],
)
def test_a_late_text_says_that_the_order_was_cancelled(
    order_of: OrderOf, tea: Product, language: str, words: str
) -> None:
    order = cancel_order(order_of(tea, language=language).number)
    assert words in wording(order, Kind.PLACED)


@pytest.mark.parametrize(
    ("language", "phone", "signature"),
    [
        ("en", "+16502530000", "Warren: "),
        ("en", "+85291234567", "Warren: "),
        ("en", "+8613800138000", "【Warren】"),
        ("zh-hans", "+16502530000", "【Warren】"),
        ("zh-hant", "+886912345678", "【Warren】"),
    ],
)
def test_a_text_is_signed_as_carriers_and_readers_expect(
    order_of: OrderOf, tea: Product, language: str, phone: str, signature: str
) -> None:
    text = wording(order_of(tea, language=language, phone=phone), Kind.SHIPPED)
    assert text.startswith((f"{signature}Your", f"{signature}您的"))


@pytest.mark.only_on("sqlite")
def test_an_order_keeps_the_language_in_which_it_was_placed(
    quoted: list[dict[str, Any]], tea_in_chinese: Product
) -> None:
    client = Client(headers={"Accept-Language": "zh-TW"})
    number = Buyer(client).buy(tea_in_chinese)
    order = Order.objects.get()
    assert order.language == "zh-hant"
    assert order.lines.get().product_name == "茶葉"

    page = text_of(client.get(f"/orders/{number}/", headers={"Accept-Language": "en"}))

    assert "What you ordered" in page, "the page speaks the visitor's language"
    assert '1 × <span lang="zh-hant">茶葉</span>' in page, "the order's lines are what was ordered"
    assert "茶葉" in text_of(client.get(f"/orders/{number}/print/", headers={"Accept-Language": "en"}))


def test_an_order_without_a_language_speaks_the_project_s_one(order_of: OrderOf, tea: Product) -> None:
    assert order_of(tea).language == "en"


def test_a_process_of_the_version_before_may_still_write_orders(order_of: OrderOf, tea: Product) -> None:
    order_of(tea)
    written_anew = {"id", "language", "number", "checkout_token"}
    columns = ", ".join(f.column for f in Order._meta.concrete_fields if f.column not in written_anew)
    token = uuid4() if connection.vendor == "postgresql" else uuid4().hex
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO orders_order (number, checkout_token, {columns}) SELECT %s, %s, {columns} FROM orders_order",
            ["W-222222", token],
        )
    assert Order.objects.get(number="W-222222").language == "en"


@pytest.mark.parametrize("language", ["en", "zh-hans", "zh-hant"])
def test_place_order_takes_a_language(tea_in_chinese: Product, language: str) -> None:
    call_command("place_order", "--language", language)
    order = Order.objects.get()
    assert order.language == language
    assert order.lines.get().product_name == {"en": "Tea", "zh-hans": "茶叶", "zh-hant": "茶葉"}[language]


def test_place_order_refuses_a_language_that_the_shop_does_not_speak(tea: Product) -> None:
    with pytest.raises(CommandError, match=r"--language.*invalid choice: 'fr'"):
        call_command("place_order", "--language", "fr")
    assert not Order.objects.exists()


# --- Products ----------------------------------------------------------------------------------------------


def test_products_are_found_in_every_language_and_sorted_by_the_name_that_is_shown(tea: Product, pot: Product) -> None:
    Product.objects.filter(pk=tea.pk).update(name_zh_hans="Z", description_zh_hant="茶葉")
    found = [[product.name for product in Product.objects.having(words)] for words in ("te", "Z", "茶", "x")]
    assert found == [["Tea"], ["Tea"], ["Tea"], []]
    names = {}
    for language in ("en", "zh-hans", "zh-hant", "fr"):
        with translation.override(language):
            names[language] = [product.translated_name for product in Product.objects.by_name()]
    others = ["Pot", "Tea"]
    assert names == {"en": others, "zh-hans": ["Pot", "Z"], "zh-hant": others, "fr": others}


# --- Amounts and times -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("language", "amounts"),
    [
        ("en", ["CN¥12.50", "¥12", "$12.50"]),
        ("zh-hans", ["¥12.50", "JP¥12", "US$12.50"]),
        ("zh-hant", ["CN¥12.50", "¥12", "US$12.50"]),
    ],
)
def test_a_currency_has_the_sign_that_readers_of_the_language_know(language: str, amounts: list[str]) -> None:
    with translation.override(language):
        found = [written(Decimal(amount), code) for amount, code in [("12.5", "CNY"), ("12", "JPY"), ("12.5", "USD")]]
    assert found == amounts


@pytest.mark.parametrize(
    ("language", "zone", "expected"),
    [
        ("en", "Asia/Shanghai", ("30 Nov 2026", "30 Nov 2026, 02:13:00", "China Standard Time (UTC+8)")),
        ("zh-hans", "Asia/Shanghai", ("2026年11月30日", "2026年11月30日 02:13:00", "中国标准时间（UTC+8）")),
        ("zh-hant", "Asia/Taipei", ("2026年11月30日", "2026年11月30日 02:13:00", "台北標準時間（UTC+8）")),
        ("en", "UTC", ("29 Nov 2026", "29 Nov 2026, 18:13:00", "Coordinated Universal Time (UTC)")),
        ("zh-hans", "UTC", ("2026年11月29日", "2026年11月29日 18:13:00", "协调世界时（UTC）")),
        ("en", "America/St_Johns", ("29 Nov 2026", "29 Nov 2026, 14:43:00", "Newfoundland Standard Time (UTC-3:30)")),
        ("en", "Etc/GMT+5", ("29 Nov 2026", "29 Nov 2026, 13:13:00", "UTC-5")),
    ],
)
def test_times_are_the_shop_s_and_name_its_zone(
    settings: Any, language: str, zone: str, expected: tuple[str, ...]
) -> None:
    settings.TIME_ZONE = zone
    with translation.override(language):
        assert (times.day(PLACED_AT), times.second(PLACED_AT), times.zone(PLACED_AT)) == expected


def test_a_zone_with_summer_time_has_the_offset_of_that_day(settings: Any) -> None:
    settings.TIME_ZONE = "Europe/Berlin"
    assert times.zone(datetime(2026, 7, 1, tzinfo=UTC)) == "Central European Summer Time (UTC+2)"
    assert times.zone(datetime(2026, 1, 1, tzinfo=UTC)) == "Central European Standard Time (UTC+1)"


@pytest.mark.only_on("sqlite")
@pytest.mark.parametrize(
    ("language", "time", "zone"),
    [
        ("en", "30 Nov 2026, 02:13", "China Standard Time (UTC+8)"),
        ("zh-hans", "2026年11月30日 02:13", "中国标准时间（UTC+8）"),
        ("zh-hant", "2026年11月30日 02:13", "中國標準時間（UTC+8）"),
    ],
)
def test_order_and_receipt_show_the_shop_s_time_and_say_which_it_is(
    quoted: list[dict[str, Any]], tea: Product, in_shanghai: None, monkeypatch: pytest.MonkeyPatch,
    language: str, time: str, zone: str,
) -> None:  # fmt: skip
    client = Client(headers={"Accept-Language": language})
    number = Buyer(client).buy(tea)
    order = Order.objects.get()
    Order.objects.update(placed_at=PLACED_AT)
    order.documents.update(created_at=PLACED_AT)
    for path in ("", "timeline/", "print/"):
        page = text_of(client.get(f"/orders/{number}/{path}"))
        assert time in page, path
        assert zone in page, path
    assert time in text_of(client.get("/orders/"))
    assert timezone.get_current_timezone_name() == "Asia/Shanghai"

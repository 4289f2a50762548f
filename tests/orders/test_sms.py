"""Backends of text messages."""

from collections.abc import Callable

import pytest
from django.core.management import call_command
from django.core.management.base import SystemCheckError

from orders.models import Order, Product, TextMessage
from orders.sms import send_text

OrderOf = Callable[..., Order]


class BrokenBackend:
    """Not a backend at all."""


def test_the_console_backend_prints_the_text(
    order_of: OrderOf, tea: Product, settings: object, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.SMS_BACKEND = "orders.sms.ConsoleBackend"  # type: ignore[attr-defined]
    order = order_of(tea)
    send_text(order, TextMessage.Kind.PLACED, message_id="id")
    printed = capsys.readouterr().out
    assert "+8613800138000" in printed
    assert order.number in printed


def test_a_text_of_the_same_kind_is_not_sent_again(order_of: OrderOf, tea: Product) -> None:
    order = order_of(tea)
    assert send_text(order, TextMessage.Kind.PLACED, message_id="first")
    assert send_text(order, TextMessage.Kind.PLACED, message_id="second") is None
    assert TextMessage.objects.get().message_id == "first"


@pytest.mark.parametrize(
    ("name", "value", "identifier"),
    [
        ("SMS_BACKEND", "orders.sms.Nothing", "orders.E002"),
        ("SMS_BACKEND", "tests.orders.test_sms.BrokenBackend", "orders.E002"),
        ("SHOP_CURRENCY", "BEANS", "orders.E001"),
    ],
)
def test_a_wrong_setting_is_found_by_check(settings: object, name: str, value: str, identifier: str) -> None:
    setattr(settings, name, value)
    with pytest.raises(SystemCheckError, match=identifier):
        call_command("check")

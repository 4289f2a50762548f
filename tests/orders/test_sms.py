"""Backends of text messages, and how each text leaves the database."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import transaction
from django.utils import timezone

from messaging import consumers, testing
from messaging.effects import Sending
from messaging.exceptions import RetryLater
from messaging.message import Message
from messaging.models import Effect, OutboxMessage
from orders import effects
from orders.models import Order, Product, TextMessage
from orders.services import cancel_order
from orders.sms import SmsBackend, send_text
from orders.timeline import State, timeline_of
from tests.orders.shop import arrival

OrderOf = Callable[..., Order]
GATEWAY = {
    "SMS_BACKEND": "orders.sms.GatewayBackend",
    "SMS_GATEWAY_URL": "http://127.0.0.1:1/messages",
    "SMS_GATEWAY_TOKEN": "t0ken",
}


class BrokenBackend:
    """Not a backend at all."""


class BusyBackend(SmsBackend):
    """Has never time, and says that a second is enough."""

    def send(self, sending: Sending) -> str | None:
        raise RetryLater("busy", after=timedelta(seconds=1))


def deliver_all() -> None:
    """Let the consumer `sms` handle what is in the outbox, once more if it was handled before."""
    types = [event.event_type for event in consumers.get("sms").events]
    for row in OutboxMessage.objects.filter(type__in=types).order_by("pk"):
        testing.deliver(Message(body=bytes(row.body), id=row.message_id, type=row.type), "sms")


def step(order: Order, name: str = "text_message") -> Any:
    order.refresh_from_db()
    return next(step for step in timeline_of(order).steps if step.name == name)


def test_a_text_of_the_database_backend_is_done_with_its_row(order_of: OrderOf, tea: Product) -> None:
    order = order_of(tea)
    deliver_all()
    assert not Effect.objects.exists()
    assert step(order).state is State.DONE
    assert send_text(order, TextMessage.Kind.PLACED, arrival("second")) is None
    assert TextMessage.objects.count() == 1, "no second text of the same kind"


@pytest.mark.django_db(transaction=True)
def test_the_console_backend_prints_each_text_once_and_after_the_commit(
    order_of: OrderOf, tea: Product, settings: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.SMS_BACKEND = "orders.sms.ConsoleBackend"
    order = order_of(tea)
    with transaction.atomic():
        deliver_all()
        assert capsys.readouterr().out == ""
    assert step(order).state is State.WAITING

    for _ in range(2):
        testing.run_effects()
        deliver_all()

    printed = capsys.readouterr().out
    assert printed.count("SMS to +8613800138000\n") == 1
    assert printed.count(order.number) == 1
    assert step(order).state is State.DONE


@pytest.mark.django_db(transaction=True)
def test_a_text_that_was_rolled_back_is_not_printed(
    order_of: OrderOf, tea: Product, settings: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.SMS_BACKEND = "orders.sms.ConsoleBackend"
    order_of(tea)
    with transaction.atomic():
        deliver_all()
        transaction.set_rollback(True)
    testing.run_effects()
    assert capsys.readouterr().out == ""


@pytest.mark.django_db(transaction=True)
def test_an_unreachable_gateway_leaves_the_text_waiting(order_of: OrderOf, tea: Product, settings: Any) -> None:
    for name, value in GATEWAY.items():
        setattr(settings, name, value)
    order = order_of(tea)
    deliver_all()
    testing.run_effects()

    effect = Effect.objects.get()
    assert (effect.state, effect.attempts) == ("intended", 1)
    assert "cannot be reached" in effect.error
    assert step(order).state is State.WAITING
    Order.objects.update(placed_at=timezone.now() - timedelta(minutes=2))
    assert step(order).state is State.DELAYED


def test_a_gateway_that_is_busy_every_second_uses_up_no_more_attempts_than_one_that_is_down(settings: Any) -> None:
    settings.SMS_BACKEND = "tests.orders.test_sms.BusyBackend"
    with pytest.raises(RetryLater) as raised:
        effects.text_message(Sending(key="k", payload={}, attempt=8, timeout=1, message_id="m"))
    assert raised.value.after > timedelta(minutes=15)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (Effect.State.FAILED, "could not be sent to •••• 8000"),
        (Effect.State.UNKNOWN, "cannot tell whether it reached •••• 8000"),
    ],
)
def test_a_text_that_was_given_up_does_not_show_as_sent(
    order_of: OrderOf, tea: Product, settings: Any, state: Effect.State, words: str
) -> None:
    settings.SMS_BACKEND = "orders.sms.ConsoleBackend"
    order = order_of(tea)
    cancel_order(order.number)
    deliver_all()
    first, second = Effect.objects.order_by("pk")
    Effect.objects.filter(pk=first.pk).update(state=state)

    assert step(order).state == state.value
    assert words in step(order).detail
    assert step(order, "text_message_cancelled").state is State.WAITING
    assert timeline_of(order).keeps_refreshing

    Effect.objects.filter(pk=second.pk).update(state=Effect.State.DONE)
    Order.objects.update(red_packet_settled_at=timezone.now())
    order.refresh_from_db()
    timeline = timeline_of(order)
    assert timeline.is_settled
    assert not timeline.finished
    assert not timeline.keeps_refreshing
    assert "may not have reached you" in timeline.summary


@pytest.mark.parametrize(
    ("changes", "identifier"),
    [
        ({"SMS_BACKEND": "orders.sms.Nothing"}, "orders.E002"),
        ({"SMS_BACKEND": "tests.orders.test_sms.BrokenBackend"}, "orders.E002"),
        ({"SHOP_CURRENCY": "BEANS"}, "orders.E001"),
        ({**GATEWAY, "SMS_GATEWAY_URL": ""}, "SMS_GATEWAY_URL is missing"),
        ({**GATEWAY, "SMS_GATEWAY_TOKEN": ""}, "SMS_GATEWAY_TOKEN is missing"),
        ({**GATEWAY, "SMS_GATEWAY_KEY_HEADER": "Host"}, "SMS_GATEWAY_KEY_HEADER"),
        ({**GATEWAY, "SMS_GATEWAY_ASK_URL": "http://127.0.0.1/?key="}, "SMS_GATEWAY_ASK_URL does not say {key}"),
    ],
)
def test_a_wrong_setting_is_found_by_check(settings: Any, changes: dict[str, str], identifier: str) -> None:
    for name, value in changes.items():
        setattr(settings, name, value)
    with pytest.raises(SystemCheckError, match=identifier):
        call_command("check")


@pytest.mark.parametrize(
    ("url", "found"), [("http://sms.example/", True), ("http://127.0.0.1/", False), ("https://sms.example/", False)]
)
def test_a_token_that_would_travel_unencrypted_is_warned_of(
    settings: Any, capsys: pytest.CaptureFixture[str], url: str, found: bool
) -> None:
    for name, value in {**GATEWAY, "SMS_GATEWAY_URL": url}.items():
        setattr(settings, name, value)
    call_command("check")
    assert ("orders.W001" in capsys.readouterr().err) is found

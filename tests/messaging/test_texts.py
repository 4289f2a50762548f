"""What a database or AMQP would refuse later is refused at the call, alike on both databases, or made to fit."""

import json
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import structlog
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.utils.translation import gettext_lazy

from messaging import consumers, effects, events, outbox, rpc
from messaging.actions import audit
from messaging.actions.selection import Selection
from messaging.actions.settle import Decision, find, settle
from messaging.broker.properties import to_pika
from messaging.events import Event
from messaging.headers import request_headers
from messaging.history import listing, timeline
from messaging.message import Delivery, Message
from messaging.models import Effect, InboxMessage, OperatorAction, OutboxMessage
from messaging.relay.destinations import publishing_of
from messaging.validation import texts
from messaging.worker import ledger
from tests.support.consuming import Noted

NUL, HALF, LONG = "a\x00b", "a\ud800b", "ü" * 128
TEXTS = ("subject", "correlation_id", "ordering_key")


@pytest.fixture(autouse=True)
def forget_what_is_declared(isolated: Any) -> None:
    isolated(events, consumers, effects, keep=True)


def add(event: Event | None = None, **arguments: Any) -> OutboxMessage:
    with transaction.atomic():
        return outbox.add(event or Noted(text="x"), **arguments)[0]


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("argument", "values"),
    [
        *((name, [NUL, HALF, "s" * 256, 1.5, True, None]) for name in TEXTS),
        ("priority", [-1, 256, 1.5, True, "3"]),
        ("delay", [5, timedelta.max, "1h"]),
    ],
)
def test_an_argument_that_cannot_be_stored_or_sent_is_refused_by_name(argument: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"^{argument} "):
            add(**{argument: value})
    assert not OutboxMessage.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize("argument", [{"priority": 0}, {"priority": 255}, {"delay": timedelta(days=36_500)}], ids=str)
def test_the_least_and_the_largest_arguments_are_taken(argument: dict[str, Any]) -> None:
    add(**argument)
    assert OutboxMessage.objects.exists()


@pytest.mark.django_db
def test_a_text_with_few_characters_and_too_many_bytes_for_amqp_is_refused() -> None:
    with pytest.raises(ValueError, match="correlation_id has 400 bytes; AMQP has room for 255"):
        add(correlation_id="ü" * 200)
    row = add(correlation_id="ü" * 127, subject="ü" * 255, ordering_key="ü" * 255)
    to_pika(publishing_of(row).message).encode()


@pytest.mark.django_db
@pytest.mark.parametrize("given", [gettext_lazy("Orders"), 17, UUID(int=1)])
def test_a_translation_and_the_id_of_a_row_are_taken_as_text(given: Any) -> None:
    row = add(**dict.fromkeys(TEXTS, given))
    stored = OutboxMessage.objects.get()
    for argument in TEXTS:
        assert getattr(row, argument) == getattr(stored, argument) == str(given)


@pytest.mark.django_db
@pytest.mark.parametrize("declared", [{"key": "{text}"}, {"headers": ["text"]}])
def test_a_routing_key_or_header_made_of_a_field_is_refused_if_it_cannot_be_sent(declared: Any) -> None:
    class Odd(Event, type="test.odd", **declared):
        text: str

    for text in (NUL, HALF, *([LONG] if "key" in declared else [])):
        with pytest.raises(ValueError, match=r"test\.odd: (its routing key|header text|field text) "):
            add(Odd(text=text))


@pytest.mark.django_db
def test_the_id_of_a_request_is_made_to_fit() -> None:
    for given in (NUL, HALF, "ü" * 300, 17):
        with structlog.contextvars.bound_contextvars(request_id=given):
            row = add()
            headers = request_headers()
        message = publishing_of(OutboxMessage.objects.get(pk=row.pk)).message
        assert message.headers["x-request-id"] == headers["x-request-id"] == texts.fitted(given)
        assert len(texts.fitted(given).encode()) <= 255
        to_pika(message).encode()


def _delivery() -> Delivery:
    effects.effect("odd")(lambda _: None)
    return Delivery(consumer="c", queue="q", message=Message(body=b"{}"), message_id="m-1")


@pytest.mark.parametrize(
    "payload",
    [{"a": NUL}, {NUL: 1}, {"a": [{"b": HALF}]}, {"a": float("nan")}, {"a": b"x"}, {"a": {1, 2}}, ["a"], "a", 0],
    ids=ascii,
)
def test_a_payload_that_no_database_stores_is_refused_in_the_handler(payload: Any) -> None:
    with pytest.raises(ValueError, match=r"the payload of effect 'odd'"):
        _delivery().effect("odd", payload)


@pytest.mark.django_db
def test_a_payload_is_kept_as_it_was_when_it_was_intended() -> None:
    payload: dict[str, Any] = {"a": [1, "\\u0000"]}
    delivery = _delivery()
    delivery.effect("odd", payload)
    payload["a"].append(float("nan"))
    inbox = InboxMessage.objects.create(consumer="c", message_id="m-1", state="handled")
    ledger.write(inbox.pk, "c", "m-1", delivery.intended)
    assert Effect.objects.get().payload == {"a": [1, "\\u0000"]}


@pytest.mark.parametrize("name", ["", NUL, HALF, "n" * 101, "a:b"])
def test_the_name_of_an_effect_can_be_stored(name: str) -> None:
    with pytest.raises(ImproperlyConfigured):
        effects.effect(name)


@pytest.mark.parametrize("name", [NUL, HALF, LONG, 17], ids=ascii)
def test_a_declared_name_can_be_stored_and_sent(name: Any) -> None:
    for declare in (
        lambda: consumers.consumer("odd", Noted, queue=name)(lambda event, delivery: None),
        lambda: consumers.consumer("odd", Noted, keys=[name])(lambda event, delivery: None),
        lambda: rpc.procedure("odd", queue=name)(lambda: None),
        lambda: type(Event)("Odd", (Event,), {"__module__": __name__}, type="test.odd", exchange=name),
        lambda: type(Event)("Odd", (Event,), {"__module__": __name__}, type=name),
    ):
        with pytest.raises(ImproperlyConfigured):
            declare()


@pytest.mark.parametrize(("name", "queue"), [("ask", LONG), ("ask", NUL), ("ask", HALF), ("n" * 255, None)])
def test_a_call_to_a_queue_that_amqp_cannot_name_is_refused(name: str, queue: str | None) -> None:
    with pytest.raises(ValueError, match=r"^queue "):
        rpc.call(name, timeout=1, queue=queue)


@pytest.mark.django_db
@pytest.mark.parametrize("text", [NUL, HALF, "n" * 3000], ids=ascii)
def test_an_operators_words_are_kept(text: str) -> None:
    audit.record("cancel", actor=text, about=text, note=text, odd=[{"a": text}])
    action = OperatorAction.objects.get()
    json.dumps(action.details).encode()
    assert "\x00" not in action.about + action.details["note"]


@pytest.mark.django_db
def test_a_reference_is_kept_whole_or_refused() -> None:
    inbox = InboxMessage.objects.create(consumer="c", message_id="m-1", state="handled")
    effect = Effect.objects.create(inbox_message=inbox, consumer="c", message_id="m-1", name="odd", state="unknown")
    for reference in (NUL, "s" * 256):
        with pytest.raises(ValueError, match=r"^reference "):
            settle.run(Selection(effect_rows=[effect.pk]), by="me", decision=Decision.DONE, reference=reference)
    effect.refresh_from_db()
    assert effect.state == "unknown"


@pytest.mark.django_db
@pytest.mark.parametrize("text", [NUL, HALF], ids=ascii)
def test_searching_for_a_text_that_no_database_stores_finds_nothing(text: str) -> None:
    assert not listing.newest(Selection(message_ids=[text], subject=text, reason=text), 10)
    assert not listing.newest(Selection(type=text, consumer=text), 10)
    assert not listing.failure_groups(Selection(group=text), 10)
    assert not timeline.for_message(text).entries
    assert not timeline.for_subject(text).entries
    assert not find(f"{text}:{text}:{text}")

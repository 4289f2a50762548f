"""What a database or AMQP would refuse later is refused at the call, alike on both databases, or made to fit."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from messaging.actions.settle import Verdict, find, settle
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

pytestmark = pytest.mark.django_db(transaction=True)

NUL, HALF, LONG = "a\x00b", "a\ud800b", "s" * 256
#: Values that no argument takes which is stored and sent.
ODD = (NUL, HALF, LONG, 1.5, True, None)


@contextmanager
def an_event(**declared: Any) -> Iterator[type[Event]]:
    """An event of one field, declared like this."""
    with events.registry.temporary(keep=True):

        class Odd(Event, type="test.odd", **declared):
            text: str

        yield Odd


def add(event: Event | None = None, **arguments: Any) -> OutboxMessage:
    with transaction.atomic():
        return outbox.add(event or Noted(text="x"), **arguments)[0]


@pytest.mark.parametrize("argument", ["subject", "correlation_id", "ordering_key"])
@pytest.mark.parametrize("value", ODD, ids=ascii)
def test_a_text_that_cannot_be_stored_or_sent_is_refused_by_name(argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{argument} "):
        add(**{argument: value})
    assert not OutboxMessage.objects.exists()


def test_a_text_with_few_characters_and_too_many_bytes_for_amqp_is_refused() -> None:
    with pytest.raises(ValueError, match="correlation_id has 400 bytes; AMQP has room for 255"):
        add(correlation_id="ü" * 200)
    row = add(correlation_id="ü" * 127, subject="ü" * 255, ordering_key="ü" * 255)
    to_pika(publishing_of(row).message).encode()


def test_a_translated_subject_is_taken_as_text() -> None:
    assert OutboxMessage.objects.get(pk=add(subject=gettext_lazy("Orders")).pk).subject == "Orders"


@pytest.mark.parametrize("argument", ["subject", "correlation_id", "ordering_key"])
@pytest.mark.parametrize("id", [17, UUID(int=1)])
def test_an_id_of_a_row_is_taken_as_its_text(argument: str, id: Any) -> None:
    row = add(**{argument: id})
    assert getattr(row, argument) == getattr(OutboxMessage.objects.get(), argument) == str(id)


@pytest.mark.parametrize("priority", [-1, 256, 1.5, True, "3"])
def test_a_priority_that_amqp_does_not_take_is_refused(priority: Any) -> None:
    with pytest.raises(ValueError, match=r"^priority is a whole number from 0 to 255"):
        add(priority=priority)


@pytest.mark.parametrize("delay", [5, timedelta.max, "1h"])
def test_a_delay_that_ends_beyond_every_calendar_is_refused(delay: Any) -> None:
    with pytest.raises(ValueError, match=r"^delay is a timedelta"):
        add(delay=delay)


@pytest.mark.parametrize("text", [NUL, HALF, "ü" * 128], ids=ascii)
def test_a_routing_key_made_of_a_field_is_refused_where_it_cannot_be_sent(text: str) -> None:
    with an_event(key="{text}") as odd, pytest.raises(ValueError, match=r"test\.odd: its routing key"):
        add(odd(text=text))


@pytest.mark.parametrize("text", [NUL, HALF], ids=ascii)
def test_a_header_made_of_a_field_is_refused_where_it_cannot_be_stored(text: str) -> None:
    with an_event(headers=["text"]) as odd, pytest.raises(ValueError, match=r"test\.odd: (header|field) text "):
        add(odd(text=text))


@pytest.mark.parametrize("given", [NUL, HALF, "ü" * 300, 17])
def test_the_id_of_a_request_is_made_to_fit(given: Any) -> None:
    with structlog.contextvars.bound_contextvars(request_id=given):
        row = add()
        headers = request_headers()
    message = publishing_of(OutboxMessage.objects.get(pk=row.pk)).message
    assert message.headers["x-request-id"] == headers["x-request-id"] == texts.fitted(given)
    assert len(texts.fitted(given).encode()) <= 255
    to_pika(message).encode()


@pytest.mark.parametrize(
    "payload",
    [{"a": NUL}, {NUL: 1}, {"a": [{"b": HALF}]}, {"a": float("nan")}, {"a": b"x"}, {"a": {1, 2}}, ["a"], "a", 0],
    ids=ascii,
)
def test_a_payload_that_no_database_stores_is_refused_in_the_handler(payload: Any) -> None:
    with _an_effect("odd"), pytest.raises(ValueError, match=r"the payload of effect 'odd'"):
        _delivery().effect("odd", payload)


def test_a_payload_is_kept_as_it_was_when_it_was_intended() -> None:
    payload: dict[str, Any] = {"a": [1, "\\u0000"]}
    delivery = _delivery()
    with _an_effect("odd"):
        delivery.effect("odd", payload)
    payload["a"].append(float("nan"))
    inbox = InboxMessage.objects.create(consumer="c", message_id="m-1", state="handled")
    ledger.write(inbox.pk, "c", "m-1", delivery.intended)
    assert Effect.objects.get().payload == {"a": [1, "\\u0000"]}


@pytest.mark.parametrize("name", ["", NUL, HALF, "n" * 101, "a:b"])
def test_the_name_of_an_effect_can_be_stored(name: str) -> None:
    with pytest.raises(ImproperlyConfigured):
        effects.effect(name)


def declare_event(**declared: Any) -> None:
    class Odd(Event, **{"type": "test.odd", **declared}):
        pass


DECLARE: list[Callable[[Any], Any]] = [
    lambda name: consumers.consumer("odd", Noted, queue=name)(lambda event, delivery: None),
    lambda name: consumers.consumer("odd", Noted, keys=[name])(lambda event, delivery: None),
    lambda name: rpc.procedure("odd", queue=name)(lambda: None),
    lambda name: declare_event(exchange=name),
    lambda name: declare_event(type=name),
]


@pytest.mark.parametrize("name", [NUL, HALF, "ü" * 128, 17], ids=ascii)
@pytest.mark.parametrize("declare", DECLARE)
def test_a_declared_name_can_be_stored_and_sent(declare: Callable[[Any], Any], name: Any) -> None:
    with pytest.raises(ImproperlyConfigured):
        declare(name)


@pytest.mark.parametrize(("name", "queue"), [("ask", "ü" * 128), ("ask", NUL), ("ask", HALF), ("n" * 255, None)])
def test_a_call_to_a_queue_that_amqp_cannot_name_is_refused(name: str, queue: str | None) -> None:
    with pytest.raises(ValueError, match=r"^queue "):
        rpc.call(name, timeout=1, queue=queue)


@pytest.mark.parametrize("text", [NUL, HALF, "n" * 3000], ids=ascii)
def test_an_operators_words_are_kept(text: str) -> None:
    audit.record("cancel", actor=text, about=text, note=text, odd=[{"a": text}])
    action = OperatorAction.objects.get()
    json.dumps(action.details).encode()
    assert "\x00" not in action.about + action.details["note"]


@pytest.mark.parametrize("reference", [NUL, LONG])
def test_a_reference_is_kept_whole_or_refused(reference: str) -> None:
    inbox = InboxMessage.objects.create(consumer="c", message_id="m-1", state="handled")
    effect = Effect.objects.create(
        inbox_message=inbox, consumer="c", message_id="m-1", name="odd", state=Effect.State.UNKNOWN
    )
    with pytest.raises(ValueError, match=r"^reference "):
        settle.run(Selection(effect_rows=[effect.pk]), by="me", verdict=Verdict.DONE, reference=reference)
    effect.refresh_from_db()
    assert effect.state == Effect.State.UNKNOWN


@pytest.mark.parametrize(
    "look",
    [
        lambda text: listing.newest(Selection(message_ids=[text], subject=text, reason=text), 10),
        lambda text: listing.newest(Selection(type=text, consumer=text), 10),
        lambda text: listing.failure_groups(Selection(group=text), 10),
        lambda text: timeline.for_message(text).entries,
        lambda text: timeline.for_subject(text).entries,
        lambda text: find(f"{text}:{text}:{text}"),
    ],
)
@pytest.mark.parametrize("text", [NUL, HALF], ids=ascii)
def test_searching_for_a_text_that_no_database_stores_finds_nothing(look: Callable[[str], Any], text: str) -> None:
    assert not look(text)


@contextmanager
def _an_effect(name: str) -> Iterator[None]:
    with effects.registry.temporary(keep=True):
        effects.effect(name)(lambda _: None)
        yield


def _delivery() -> Delivery:
    return Delivery(consumer="c", queue="q", message=Message(body=b"{}"), message_id="m-1")

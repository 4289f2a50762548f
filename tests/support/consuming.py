"""A consumer, its event, and effects that can be counted, for tests of the machinery without the shop."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

from django.contrib.auth.models import Group

from messaging import consumers
from messaging.consumers import Consumer
from messaging.events import Event
from messaging.exceptions import Reject
from messaging.message import Delivery, Message, new_id
from messaging.models import DeliveryAttempt, Effect, InboxMessage, OutboxMessage
from messaging.relay.destinations import publishing_of
from messaging.retry import RetryPolicy
from messaging.worker import handling, upkeep

QUICKLY = RetryPolicy(max_attempts=3, first_delay=timedelta(milliseconds=1), max_delay=timedelta(milliseconds=2))


class Noted(Event, type="test.noted"):
    """A note was taken."""

    text: str


class Erased(Event, type="test.erased"):
    """A note was erased; the consumers of these tests do not ask for it."""

    text: str


def look_after(these: Sequence[Consumer]) -> None:
    """Do once what the upkeep of a worker does."""
    upkeep.look_after(these)


def take_note(event: Noted, delivery: Delivery) -> None:
    """The usual handler: an effect that would show if it happened twice."""
    note(event.text)


def note(text: str) -> None:
    """Leave a row behind."""
    Group.objects.create(name=f"{text}:{uuid4()}")


def notes(text: str = "") -> int:
    """How many rows were left behind for `text`."""
    return Group.objects.filter(name__startswith=f"{text}:" if text else "").count()


def attempts(**which: Any) -> list[DeliveryAttempt]:
    """Every attempt at the inbox messages that `which` selects, in order: those that failed, and the successes, which
    are on the messages' own rows."""
    rows = InboxMessage.objects.filter(**which)
    found = [*DeliveryAttempt.objects.filter(inbox_message__in=rows), *(row.success for row in rows if row.success)]
    return sorted(found, key=lambda each: (each.inbox_message_id, each.number, each.finished_at))


def outcomes_of_attempts(**which: Any) -> list[tuple[int, str]]:
    """The number and outcome of each."""
    return [(each.number, each.outcome) for each in attempts(**which)]


def a_consumer(handler: Callable[..., None] = take_note, name: str = "notes", **changes: Any) -> Consumer:
    """A consumer of `Noted` that is not registered."""
    return Consumer(**{"name": name, "queue": f"tests.{name}", "events": (Noted,), "handler": handler,
                       "retry": QUICKLY, **changes})  # fmt: skip


@contextmanager
def registered(*wanted: Consumer) -> Iterator[None]:
    """Inside, these consumers are the project's only ones."""
    with consumers.registry.temporary(*wanted):
        yield


def a_message(text: str = "hello", **changes: Any) -> Message:
    """A good message that says `text`."""
    return Message(**{"body": Noted(text=text).encode(), "id": new_id(), "type": "test.noted", **changes})


def a_delivery(message: Message | None = None, *, consumer: str = "notes", **changes: Any) -> Delivery:
    """Its delivery to a consumer of `a_consumer`."""
    message = message or a_message()
    return Delivery(**{"consumer": consumer, "queue": f"tests.{consumer}", "message": message,
                       "message_id": message.id or new_id(), **changes})  # fmt: skip


class FailingHandler:
    """A handler that takes a note, and fails while told to."""

    def __init__(self) -> None:
        #: What it raises, for each text, or "" for any.
        self.failing: dict[str, Exception] = {}

    def __call__(self, event: Noted, delivery: Delivery) -> None:
        note(event.text)
        error = self.failing.get(event.text) or self.failing.get("")
        if error:
            raise error

    __module__ = __name__
    __qualname__ = "FailingHandler"


def an_outbox_row(**changes: Any) -> OutboxMessage:
    """A pending row."""
    facts = {"message_id": "m-1", "type": "test.noted", "routing_key": "test.noted", "body": b"{}"}
    return OutboxMessage.objects.create(**{**facts, **changes})


def an_inbox_row(**changes: Any) -> InboxMessage:
    """A handled message."""
    facts = {"message_id": "m-1", "type": "test.noted", "consumer": "notes", "state": "handled"}
    return InboxMessage.objects.create(**{**facts, **changes})


def an_effect(state: str = "unknown", inbox_state: str = "handled", **changes: Any) -> Effect:
    """An effect of a message that was handled."""
    facts = {"consumer": "notes", "message_id": "m-1", "name": "text", "state": state, **changes}
    row = an_inbox_row(state=inbox_state, **{name: facts[name] for name in ("consumer", "message_id")})
    return Effect.objects.create(**{"inbox_message": row, **facts})


def a_dead_message(
    consumer: Consumer, text: str = "hello", reason: str = "no such thing", **headers: Any
) -> InboxMessage:
    """A message that a consumer has given up."""
    delivery = a_delivery(a_message(text, headers=headers), consumer=consumer.name, queue=consumer.queue)
    rejecting = replace(consumer, handler=_rejecting(reason))
    assert handling.handle(rejecting, delivery) == "dead"
    return InboxMessage.objects.get(consumer=consumer.name, message_id=delivery.message_id)


def _rejecting(reason: str) -> Callable[..., None]:
    def reject(event: Noted, delivery: Delivery) -> None:
        raise Reject(reason)

    return reject


def delivery_of(row: OutboxMessage, **changes: Any) -> Delivery:
    """The delivery that the publish of an outbox row brings to its consumer."""
    message = publishing_of(row).message
    how = {"consumer": row.consumer or "notes", "attempt": message.attempt, "exchange": row.exchange}
    return a_delivery(message, **{**how, **changes})

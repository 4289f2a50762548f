"""Events and consumers that are declared, and would lose or reject messages."""

from __future__ import annotations

from collections.abc import Iterator

from django.core.checks import CheckMessage, Error

from messaging import conf, consumers, events
from messaging.consumers import Consumer
from messaging.events import Event
from messaging.routing import Binding, fields_in, takes
from messaging.topology import desired
from messaging.worker import dead_letters


def check_declarations() -> list[CheckMessage]:
    """Report events and consumers that would lose or reject messages."""
    everyone = [*consumers.registered(), *consumers.broadcasting()]
    return [
        *(error for each in consumers.registered() for error in _replaces_built_in(each)),
        *(error for each in everyone for error in [*_wants_untyped(each), *_follows_own_logs(each)]),
        *(error for each in consumers.registered() for error in _is_bound_to_others(each)),
        *(error for event in events.registered() for error in [*_has_unknown_field(event), *_shares_exchange(event)]),
    ]


def _replaces_built_in(consumer: Consumer) -> Iterator[Error]:
    queue = desired.dead_letter_queue()
    if consumer.name == dead_letters.NAME or consumer.queue == queue:
        yield Error(
            f"Consumer {consumer.name!r} with queue {consumer.queue!r} replaces the built-in one that records what the "
            "broker dead-letters.",
            hint=f"Give it a name other than {dead_letters.NAME!r} and a queue other than {queue!r}.",
            obj=consumer.handler,
            id="messaging.E001",
        )


def _wants_untyped(consumer: Consumer) -> Iterator[Error]:
    for event in consumer.events:
        if not event.event_type:
            yield Error(
                f"Consumer {consumer.name!r} names {event.__qualname__}, which has no type: it would never receive "
                "one.",
                hint=f'Declare `class {event.__name__}(..., type="noun.participle")`, or name the events below it.',
                obj=consumer.handler,
                id="messaging.E002",
            )


def _follows_own_logs(consumer: Consumer) -> Iterator[Error]:
    exchange = desired.log_exchange().name
    if conf.get().log_to_broker and any(consumers.exchange_of(event).name == exchange for event in consumer.events):
        yield Error(
            f"Consumer {consumer.name!r} takes its events from {exchange}, where its own log goes: a line about each "
            "line.",
            hint=f"Follow logs with `manage.py mq listen {exchange}`, or give the events an exchange of their own.",
            obj=consumer.handler,
            id="messaging.E004",
        )


def _is_bound_to_others(consumer: Consumer) -> Iterator[Error]:
    """Report bindings that route more than the consumer's events to its queue: the others would be dead there."""
    for event in events.registered():
        # An event whose routing key varies is not judged.
        if consumer.wants(event.event_type) or fields_in(event.event_key):
            continue
        for binding in _matching(consumer, event):
            yield Error(
                f"Consumer {consumer.name!r} is bound by {desired.describe(binding)!r}, which also matches "
                f"{event.__qualname__} ({event.event_type}): each would be dead there.",
                hint="Name that event in the consumer too, or use a narrower key, or give the events an exchange of "
                "their own.",
                obj=consumer.handler,
                id="messaging.E003",
            )


def _matching(consumer: Consumer, event: type[Event]) -> list[Binding]:
    exchange, key = consumers.exchange_of(event), event.event_key or event.event_type
    # A binding of a headers exchange that matches without headers always matches.
    return [
        each for each in consumer.bindings if each.exchange == exchange.name and takes(exchange.type, each, key, {})
    ]


def _has_unknown_field(event: type[Event]) -> Iterator[Error]:
    try:
        event.model_rebuild()
    except NameError as error:
        yield Error(
            f"{event.__qualname__} ({event.event_type}) has a field whose type cannot be found: "
            f"{str(error).partition(chr(10))[0]}.",
            hint="Import the type, outside `if TYPE_CHECKING:`, in the module that declares the event.",
            obj=event,
            id="messaging.E006",
        )


def _shares_exchange(event: type[Event]) -> Iterator[Error]:
    """Report an event that declares the exchange of the project or of its logs as another type than topic."""
    exchange = consumers.exchange_of(event)
    if exchange.type != "topic" and exchange.name in {conf.get().exchange, desired.log_exchange().name}:
        yield Error(
            f"{event.__qualname__} ({event.event_type}) declares {exchange.name} as a {exchange.type} exchange, and "
            "other events or the logs as a topic exchange: only one of them could publish to it.",
            hint="Give the event an exchange of another name.",
            obj=event,
            id="messaging.E005",
        )

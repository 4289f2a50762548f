"""Events and consumers that are declared, and would lose or reject messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.core.checks import CheckMessage, Error, register

from messaging import conf, consumers, events
from messaging.consumers import Consumer
from messaging.events import Event
from messaging.routing import Binding, fields_in, takes
from messaging.topology import desired
from messaging.worker import dead_letters


@register("messaging")
def check_consumers(**kwargs: Any) -> list[CheckMessage]:
    """Report consumers with the name or queue of the built-in one, which records dead letters."""
    queue = desired.dead_letter_queue()
    return [
        Error(
            f"Consumer {each.name!r} with queue {each.queue!r} replaces the built-in one that records what the broker "
            "dead-letters.",
            hint=f"Give it a name other than {dead_letters.NAME!r} and a queue other than {queue!r}.",
            obj=each.handler,
            id="messaging.E001",
        )
        for each in consumers.registered()
        if each.name == dead_letters.NAME or each.queue == queue
    ]


@register("messaging")
def check_events(**kwargs: Any) -> list[CheckMessage]:
    """Report consumers of events without a type: their queues cannot be bound."""
    return [
        Error(
            f"Consumer {each.name!r} names {event.__qualname__}, which has no type: it would never receive one.",
            hint=f'Declare `class {event.__name__}(..., type="noun.participle")`, or name the events below it.',
            obj=each.handler,
            id="messaging.E002",
        )
        for each in [*consumers.registered(), *consumers.broadcasting()]
        for event in each.events
        if not event.event_type
    ]


@register("messaging")
def check_fields(**kwargs: Any) -> list[CheckMessage]:
    """Report events with a field whose type is unknown: they can be neither made nor read."""
    return [
        Error(
            f"{event.__qualname__} ({event.event_type}) has a field whose type cannot be found: {problem}.",
            hint="Import the type, outside `if TYPE_CHECKING:`, in the module that declares the event.",
            obj=event,
            id="messaging.E006",
        )
        for event in events.registered()
        if (problem := _unresolved(event))
    ]


def _unresolved(event: type[Event]) -> str:
    try:
        event.model_rebuild()
    except NameError as error:
        return str(error).partition("\n")[0]
    return ""


@register("messaging")
def check_bindings(**kwargs: Any) -> list[CheckMessage]:
    """Report bindings that route more than the consumer's events to its queue: the others would be dead there."""
    return [
        Error(
            f"Consumer {each.name!r} is bound by {desired.describe(binding)!r}, which also matches "
            f"{event.__qualname__} ({event.event_type}): each would be dead there.",
            hint="Name that event in the consumer too, or use a narrower key, or give the events an exchange of "
            "their own.",
            obj=each.handler,
            id="messaging.E003",
        )
        for each in consumers.registered()
        for event in events.registered()
        if not each.wants(event.event_type) and not fields_in(event.event_key)
        for binding in _matching(each, event)
    ]


def _matching(consumer: Consumer, event: type[Event]) -> Iterator[Binding]:
    """Yield the consumer's bindings that match an event whose routing key never varies."""
    exchange, key = consumers.exchange_of(event), event.event_key or event.event_type
    for binding in consumer.bindings:
        # A binding of a headers exchange that matches without headers always matches.
        if binding.exchange == exchange.name and takes(exchange.type, binding, key, {}):
            yield binding


@register("messaging")
def check_exchanges(**kwargs: Any) -> list[CheckMessage]:
    """Report events that declare the exchange of the project or of its logs, both topic exchanges, as another type."""
    own = {conf.get().exchange, desired.log_exchange().name}
    return [
        Error(
            f"{event.__qualname__} ({event.event_type}) declares {exchange.name} as a {exchange.type} exchange, and "
            "other events or the logs as a topic exchange: only one of them could publish to it.",
            hint="Give the event an exchange of another name.",
            obj=event,
            id="messaging.E005",
        )
        for event in events.registered()
        if (exchange := consumers.exchange_of(event)).name in own and exchange.type != "topic"
    ]


@register("messaging")
def check_logs(**kwargs: Any) -> list[CheckMessage]:
    """Report consumers of the log exchange: a consumer logs each message, so each line would cause another."""
    if not conf.get().log_to_broker:
        return []
    exchange = desired.log_exchange().name
    return [
        Error(
            f"Consumer {each.name!r} takes its events from {exchange}, where its own log goes: a line about each line.",
            hint=f"Follow logs with `manage.py mq listen {exchange}`, or give the events an exchange of their own.",
            obj=each.handler,
            id="messaging.E004",
        )
        for each in [*consumers.registered(), *consumers.broadcasting()]
        if any(consumers.exchange_of(event).name == exchange for event in each.events)
    ]

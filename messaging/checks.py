"""What `manage.py check --tag messaging` finds: settings that start well, and lose time or messages later."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Info, Warning, register

from messaging import conf, consumers, database, events, surroundings
from messaging.consumers import Consumer
from messaging.events import Event
from messaging.exceptions import BrokerUnavailable
from messaging.routing import Binding, takes
from messaging.topology import desired, drift
from messaging.validation.addresses import GUEST, BrokerAddress
from messaging.worker import dead_letters

TAG = "messaging"
#: Each loss of a connection, and each deploy, may cost a message one of its deliveries.
LOWEST_DELIVERY_LIMIT = 10


@register(TAG)
def check_surroundings(**kwargs: Any) -> list[CheckMessage]:
    """Databases, settings and servers under which messages would not be safe."""
    return [Error(each.said, id=each.id) for each in surroundings.unsupported()]


@register(TAG)
def check_consumers(**kwargs: Any) -> list[CheckMessage]:
    """No consumer may take the name or the queue of the built-in one that records dead letters."""
    queue = desired.dead_letter_queue()
    return [
        Error(
            f"Consumer {each.name!r} with queue {each.queue!r} takes the place of the one that records what the "
            "broker gives up.",
            hint=f"Give it a name other than {dead_letters.NAME!r} and a queue other than {queue!r}.",
            obj=each.handler,
            id="messaging.E001",
        )
        for each in consumers.registered()
        if each.name == dead_letters.NAME or each.queue == queue
    ]


@register(TAG)
def check_events(**kwargs: Any) -> list[CheckMessage]:
    """Every event that a consumer wants must have a type: it is what the queue is bound by."""
    return [
        Error(
            f"Consumer {each.name!r} wants {event.__qualname__}, which has no type: it would never receive one.",
            hint=f'Declare `class {event.__name__}(..., type="noun.participle")`, or name the events below it.',
            obj=each.handler,
            id="messaging.E002",
        )
        for each in [*consumers.registered(), *consumers.broadcasting()]
        for event in each.events
        if not event.event_type
    ]


@register(TAG)
def check_fields(**kwargs: Any) -> list[CheckMessage]:
    """The types of an event's fields must be known: else it can be neither made nor read."""
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


def _unresolved(event: type[events.Event]) -> str:
    try:
        event.model_rebuild()
    except NameError as error:
        return str(error).partition("\n")[0]
    return ""


@register(TAG)
def check_bindings(**kwargs: Any) -> list[CheckMessage]:
    """A pattern may take more than the consumer's events: what it does not handle is dead there."""
    return [
        Error(
            f"Consumer {each.name!r} is bound by {desired.describe(binding)!r}, which also takes "
            f"{event.__qualname__} ({event.event_type}): each would be dead there.",
            hint="Name that event in the consumer too, or take a narrower key, or give the events an exchange of "
            "their own.",
            obj=each.handler,
            id="messaging.E003",
        )
        for each in consumers.registered()
        for event in events.registered()
        if not each.wants(event.event_type) and not events.fields_in(event.event_key)
        for binding in _taking(each, event)
    ]


@register(TAG)
def check_exchanges(**kwargs: Any) -> list[CheckMessage]:
    """The exchange of the project and that of its logs are topic exchanges; an event may not take one for another."""
    own = {conf.get().exchange, desired.log_exchange().name}
    return [
        Error(
            f"{event.__qualname__} ({event.event_type}) calls {exchange.name} a {exchange.type} exchange, "
            "which other events or the logs know as a topic exchange: half of them would reach nobody.",
            hint="Give the event an exchange of another name.",
            obj=event,
            id="messaging.E005",
        )
        for event in events.registered()
        if (exchange := consumers.exchange_of(event)).name in own and exchange.type != "topic"
    ]


@register(TAG)
def check_logs(**kwargs: Any) -> list[CheckMessage]:
    """A consumer writes a line or more for each message: that of the logs themselves would never come to an end."""
    if not conf.get().log_to_broker:
        return []
    exchange = desired.log_exchange().name
    return [
        Error(
            f"Consumer {each.name!r} takes its events from {exchange}, where its own log goes: a line about each line.",
            hint="Follow logs with `manage.py mq listen logs`, or give the events an exchange of their own.",
            obj=each.handler,
            id="messaging.E004",
        )
        for each in [*consumers.registered(), *consumers.broadcasting()]
        if any(consumers.exchange_of(event).name == exchange for event in each.events)
    ]


def _taking(consumer: Consumer, event: type[Event]) -> Iterator[Binding]:
    """Yield the consumer's bindings that take an event whose key is always the same."""
    exchange, key = consumers.exchange_of(event), event.event_key or event.event_type
    for binding in consumer.bindings:
        # Without headers: what a headers exchange takes so, it takes however they are.
        if binding.exchange == exchange.name and takes(exchange.type, binding, key, {}):
            yield binding


@register(TAG)
def check_sqlite(**kwargs: Any) -> list[CheckMessage]:
    """SQLite must be told to let several processes work side by side."""
    connection = database.connection()
    if connection.vendor != "sqlite":
        return []
    options = connection.settings_dict["OPTIONS"]
    found: list[CheckMessage] = []
    if str(options.get("transaction_mode") or "DEFERRED").upper() == "DEFERRED":
        found.append(
            Warning(
                "SQLite transactions do not take the write lock at their start.",
                hint=f'Set DATABASES[{connection.alias!r}]["OPTIONS"]["transaction_mode"] = "IMMEDIATE". A transaction '
                'that reads first and writes later otherwise fails with "database is locked", whatever the timeout.',
                id="messaging.W001",
            )
        )
    if not re.search(r"journal_mode\s*(=|\()\s*['\"]?wal", str(options.get("init_command")), re.IGNORECASE):
        found.append(
            Warning(
                "SQLite is not told to use a write-ahead log (WAL).",
                hint=f'Put "PRAGMA journal_mode=WAL;" into DATABASES[{connection.alias!r}]["OPTIONS"]["init_command"]. '
                "Every reader and writer, in all processes, otherwise waits for every other.",
                id="messaging.W002",
            )
        )
    return found


@register(TAG)
def check_delivery_limit(**kwargs: Any) -> list[CheckMessage]:
    """The broker must not give messages up that consumers never got a fair chance at."""
    messaging = conf.get()
    if messaging.queue_type != "quorum" or messaging.delivery_limit >= LOWEST_DELIVERY_LIMIT:
        return []
    return [
        Warning(
            f"MESSAGING['DELIVERY_LIMIT'] is {messaging.delivery_limit}: so many lost connections or restarts, and "
            "RabbitMQ gives a message up that nothing is wrong with.",
            hint=f"Set it to {LOWEST_DELIVERY_LIMIT} or more (default 1000). Retries do not count: each is a new "
            "message to RabbitMQ. Queues that exist keep their limit until they are deleted.",
            id="messaging.W003",
        )
    ]


@register(TAG)
def check_wanted_events(**kwargs: Any) -> list[CheckMessage]:
    """An event that no consumer wants comes back from the broker, again and again."""
    return [_drifted(finding) for finding in drift.unwanted_events()]


@register(TAG, deploy=True)
def check_topology(**kwargs: Any) -> list[CheckMessage]:
    """What stands on the broker is what this code wants there. A broker that is away fails nothing."""
    try:
        found = drift.look()
    except BrokerUnavailable as error:
        return [
            Warning(
                f"Nobody could look at what stands on the broker: {error}.",
                hint="Run `manage.py mq topology diff` where it can be reached.",
                id=drift.NOT_LOOKED_AT,
            )
        ]
    messages: list[CheckMessage] = [
        _drifted(finding) for finding in found.wrong if finding.kind is not drift.Kind.UNWANTED_EVENT
    ]
    if found.unseen:
        messages.append(
            Info(
                f"Not all that stands on the broker could be seen: {'; '.join(found.unseen)}. {found.how}",
                hint="Enable the plugin rabbitmq_management and give this user the tag `management`, or silence this.",
                id="messaging.I001",
            )
        )
    return messages


def _drifted(finding: drift.Finding) -> CheckMessage:
    return Warning(f"{finding.said[0].upper()}{finding.said[1:]}.", hint=finding.hint, id=finding.kind.value)


@register(TAG, deploy=True)
def check_broker_account(**kwargs: Any) -> list[CheckMessage]:
    """In production the broker is entered by an account and a vhost of one's own."""
    if settings.DEBUG:
        return []
    return [message for broker in conf.get().brokers for message in _account_problems(broker)]


def _account_problems(broker: BrokerAddress) -> Iterator[CheckMessage]:
    if broker.user == GUEST:
        yield Warning(
            f"The broker at {broker.host} is entered as guest, whose password everybody knows.",
            hint="Make a user with `rabbitmqctl add_user` and name it in AMQP_URL; then delete guest.",
            id="messaging.W004",
        )
    if broker.vhost == "/":
        yield Warning(
            f'At the broker {broker.host} the vhost "/" is used, where others may have queues and policies.',
            hint="Make one with `rabbitmqctl add_vhost` and put its name at the end of AMQP_URL.",
            id="messaging.W005",
        )

"""Grants: what each kind of process may do at the broker, computed from what is registered, and nothing beyond it.

RabbitMQ's permissions are regular expressions over names of queues and exchanges; publishing to a topic exchange is
narrowed further by routing key (https://www.rabbitmq.com/docs/access-control). They are searched for, not matched:
each is anchored here, at its end with \\z, since "$" would let a line feed follow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from string import Formatter

from messaging import conf, consumers, procedures
from messaging.consumers import Consumer, exchange_of
from messaging.events import Event
from messaging.events import registered as registered_events
from messaging.procedures import REPLY_QUEUE_PREFIX
from messaging.topology import desired
from messaging.worker import dead_letters

NOTHING = "^$"
#: What RabbitMQ calls the exchange without a name when it looks whether one may publish to it.
DEFAULT_EXCHANGE = r"amq\.default"
#: Reply queues are named by their callers, anew for each connection.
_REPLY_QUEUES = re.escape(REPLY_QUEUE_PREFIX) + "[0-9a-f-]{36}"
#: Queues that RabbitMQ names for whoever asks it to.
_SERVER_NAMED = r"amq\.gen-[A-Za-z0-9_-]+"
_ANY = ".*"

Names = frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """What one kind of process does. All names are regular expressions, not anchored."""

    name: str
    purpose: str
    configure: Names = frozenset()
    write: Names = frozenset()
    read: Names = frozenset()
    #: Routing keys by exchange (not an expression): those it may publish by, and those it may bind by.
    publishes: Mapping[str, Names] = field(default_factory=dict)
    binds: Mapping[str, Names] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TopicGrant:
    """One exchange's line of `set_topic_permissions`."""

    exchange: str
    write: str
    read: str


@dataclass(frozen=True, slots=True)
class Grant:
    """What a user of the broker gets: one line of `set_permissions`, and one of topic permissions an exchange."""

    user: str
    purposes: tuple[str, ...]
    configure: str
    write: str
    read: str
    topics: tuple[TopicGrant, ...]


def roles() -> list[Role]:
    """Return every role, by what is registered now. A deploy that adds an event or a consumer changes them."""
    found = _working_roles()
    if conf.get().log_to_broker:
        found = [*map(_logging, found), _log_reader()]
    return [*found, _operator()]


def _working_roles() -> list[Role]:
    all_consumers = [*consumers.registered(), *consumers.broadcasting(), dead_letters.consumer()]
    return [
        _publisher("web", "publishes what it commits (RELAY_THREAD=1); reads nothing"),
        _publisher("relay", "manage.py run_relay: publishes what others commit; reads nothing"),
        *(_consumer(each) for each in all_consumers),
        _rpc_worker(),
        _rpc_caller(),
    ]


def grant(user: str, roles: Iterable[Role]) -> Grant:
    """Return what `user` needs to be all of `roles`."""
    roles = list(roles)
    exchanges = sorted({name for role in roles for name in [*role.publishes, *role.binds]})
    return Grant(
        user=user,
        purposes=tuple(role.purpose for role in roles),
        configure=_expression(role.configure for role in roles),
        write=_expression(role.write for role in roles),
        read=_expression(role.read for role in roles),
        topics=tuple(
            TopicGrant(
                name,
                write=_expression(role.publishes.get(name, frozenset()) for role in roles),
                read=_expression(role.binds.get(name, frozenset()) for role in roles),
            )
            for name in exchanges
        ),
    )


def _publisher(name: str, purpose: str) -> Role:
    """Whoever runs a relay publishes every event, and by the default exchange what is for one queue: retries.

    To write to the queues themselves allows nothing here (to bind one needs the right to read an exchange); from
    4.3.1 on, RabbitMQ shows a queue only to those who may do something with it, and a relay looks whether each is
    there.
    """
    keys: dict[str, set[str]] = {}
    for event in registered_events():
        keys.setdefault(exchange_of(event).name, set()).add(_key_of(event))
    queues = {re.escape(queue.name) for queue in desired.topology(consumers.registered()).queues}
    return Role(
        name=name,
        purpose=purpose,
        write=frozenset({*map(re.escape, keys), DEFAULT_EXCHANGE, *queues}),
        publishes={exchange: frozenset(found) for exchange, found in keys.items()},
    )


def _key_of(event: type[Event]) -> str:
    """Return the expression of every routing key that the event can have."""
    parts = Formatter().parse(event.event_key or event.event_type.replace("{", "{{").replace("}", "}}"))
    return "".join(re.escape(text) + (_ANY if name is not None else "") for text, name, _, _ in parts)


def _consumer(consumer: Consumer) -> Role:
    if consumer.broadcast:
        return _broadcast(consumer)
    return Role(
        name=f"consumer-{consumer.name}",
        purpose=f"manage.py run_consumer {consumer.name} with RELAY_THREAD=0: reads its queue; publishes nothing",
        read=frozenset({re.escape(consumer.queue)}),
    )


def _broadcast(consumer: Consumer) -> Role:
    binds: dict[str, set[str]] = {}
    for binding in consumer.bindings:
        binds.setdefault(binding.exchange, set()).add(re.escape(binding.key))
    return Role(
        name=f"consumer-{consumer.name}",
        purpose=f"manage.py run_consumer {consumer.name} with RELAY_THREAD=0: makes and reads a queue of its own",
        configure=frozenset({_SERVER_NAMED}),
        write=frozenset({_SERVER_NAMED}),
        read=frozenset({_SERVER_NAMED, *map(re.escape, binds)}),
        binds={exchange: frozenset(keys) for exchange, keys in binds.items()},
    )


def _rpc_worker() -> Role:
    queues = frozenset(re.escape(each.queue) for each in procedures.registered())
    return Role(
        name="rpc-worker",
        purpose="manage.py run_rpc_worker: declares and reads the queues of requests; replies",
        configure=queues,
        write=frozenset({DEFAULT_EXCHANGE}),
        read=queues,
    )


def _rpc_caller() -> Role:
    return Role(
        name="rpc-caller",
        purpose="calls procedures: requests, and a reply queue of its own",
        configure=frozenset({_REPLY_QUEUES}),
        write=frozenset({DEFAULT_EXCHANGE}),
        read=frozenset({_REPLY_QUEUES}),
    )


def _logging(role: Role) -> Role:
    """Return `role` for a process that writes its log to the broker, too."""
    exchange = desired.log_exchange().name
    return replace(
        role,
        write=role.write | {re.escape(exchange)},
        publishes={**role.publishes, exchange: frozenset({_ANY})},
    )


def _log_reader() -> Role:
    exchange = desired.log_exchange().name
    return Role(
        name="log-reader",
        purpose="manage.py mq listen logs: follows the logs of all processes, by a queue of its own",
        configure=frozenset({_SERVER_NAMED}),
        write=frozenset({_SERVER_NAMED}),
        read=frozenset({_SERVER_NAMED, re.escape(exchange)}),
        binds={exchange: frozenset({_ANY})},
    )


def _operator() -> Role:
    wanted = desired.topology(consumers.registered())
    exchanges = {re.escape(each.name) for each in wanted.exchanges}
    queues = {re.escape(each.name) for each in wanted.queues}
    anything = {each.name: frozenset({_ANY}) for each in wanted.exchanges}
    return Role(
        name="operator",
        purpose="manage.py mq topology declare: makes exchanges, queues and bindings; for people, not for processes",
        configure=frozenset(exchanges | queues),
        # A queue that dead-letters into the default exchange is declared only by who may publish there.
        write=frozenset(exchanges | queues | {DEFAULT_EXCHANGE}),
        read=frozenset(exchanges | queues),
        publishes=anything,
        binds=anything,
    )


def _expression(names: Iterable[Names]) -> str:
    found = frozenset[str]().union(*names)
    return rf"^(?:{'|'.join(sorted(found))})\z" if found else NOTHING

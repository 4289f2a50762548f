"""The least permissions that each kind of process needs at the broker, computed from what is registered.

RabbitMQ's permissions are regular expressions over names of queues and exchanges; topic permissions narrow publishing
to a topic exchange by routing key (https://www.rabbitmq.com/docs/access-control). RabbitMQ searches for them anywhere
in a name, so each is anchored here; at its end with \\z, since "$" would let a line feed follow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from string import Formatter

from messaging import conf, consumers, procedures
from messaging.broker.connection import Connection
from messaging.broker.rights import may_declare, may_read, may_write
from messaging.consumers import Consumer, exchange_of
from messaging.events import Event
from messaging.events import registered as registered_events
from messaging.procedures import REPLY_QUEUE_PREFIX
from messaging.topology import desired

NOTHING = "^$"
#: What RabbitMQ calls the default exchange when it checks the permission to publish to it.
DEFAULT_EXCHANGE = r"amq\.default"
#: Each caller names a reply queue for each connection.
_REPLY_QUEUES = re.escape(REPLY_QUEUE_PREFIX) + "[0-9a-f-]{36}"
#: Queues that RabbitMQ names.
_SERVER_NAMED = r"amq\.gen-[A-Za-z0-9_-]+"
_ANY = ".*"

Names = frozenset[str]


@dataclass(frozen=True, slots=True)
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
class Grant:
    """All permissions of one user, as `rabbitmqctl import_definitions` takes them."""

    user: str
    purposes: list[str]
    #: configure, write and read.
    permission: dict[str, str]
    #: For each exchange, write and read: the routing keys by which the user may publish and bind.
    topics: list[dict[str, str]]


def roles() -> list[Role]:
    """Return every role for what is registered now. A deploy that adds an event or a consumer changes them."""
    found = [
        _publisher("web", "publishes what it commits (RELAY_THREAD=1); reads nothing"),
        _publisher("relay", "manage.py run_relay: publishes what others commit; reads nothing"),
        *(_consumer(each.name, each.queue) for each in consumers.registered()),
        *map(_broadcast, consumers.broadcasting()),
        _consumer(desired.DEAD_LETTERS, desired.dead_letter_queue()),
        _rpc_worker(),
        _rpc_caller(),
    ]
    if conf.get().log_to_broker:
        found = [*map(_with_logs, found), _log_reader()]
    return [*found, _operator()]


def grant(user: str, vhost: str, roles: Iterable[Role]) -> Grant:
    """Return the permissions that `user` needs for all of `roles`."""
    roles = list(roles)
    account = {"user": user, "vhost": vhost}
    rights = {name: _expression(getattr(role, name) for role in roles) for name in ("configure", "write", "read")}
    topics = [
        account
        | {
            "exchange": exchange,
            "write": _expression(role.publishes.get(exchange, frozenset()) for role in roles),
            "read": _expression(role.binds.get(exchange, frozenset()) for role in roles),
        }
        for exchange in sorted({name for role in roles for name in [*role.publishes, *role.binds]})
    ]
    return Grant(user, [role.purpose for role in roles], account | rights, topics)


def _publisher(name: str, purpose: str) -> Role:
    """Return the role of a relay. It publishes every event, and retries by the default exchange.

    It gets the permission to write to queues, which allows nothing more here (binding also needs the permission to read
    an exchange): from 4.3.1 on RabbitMQ shows a queue only to accounts with some permission, and a relay checks whether
    each exists.
    """
    keys = _by_exchange((exchange_of(event).name, _key_of(event)) for event in registered_events())
    queues = (queue.name for queue in desired.topology(consumers.registered()).queues)
    return Role(name, purpose, write=_escaped([*keys, *queues]) | {DEFAULT_EXCHANGE}, publishes=keys)


def _by_exchange(keys: Iterable[tuple[str, str]]) -> dict[str, Names]:
    found: dict[str, Names] = {}
    for exchange, key in keys:
        found[exchange] = found.get(exchange, frozenset()) | {key}
    return found


def _escaped(names: Iterable[str]) -> Names:
    return frozenset(map(re.escape, names))


def _key_of(event: type[Event]) -> str:
    """Return an expression for every routing key that the event can have."""
    parts = Formatter().parse(event.event_key or event.event_type.replace("{", "{{").replace("}", "}}"))
    return "".join(re.escape(text) + (_ANY if name is not None else "") for text, name, _, _ in parts)


def _consumer(name: str, queue: str) -> Role:
    purpose = f"manage.py run_consumer {name} with RELAY_THREAD=0: reads its queue; publishes nothing"
    return Role(f"consumer-{name}", purpose, read=_escaped([queue]))


def _broadcast(consumer: Consumer) -> Role:
    return _private_queue(
        f"consumer-{consumer.name}",
        f"manage.py run_consumer {consumer.name} with RELAY_THREAD=0: declares and reads a queue of its own",
        _by_exchange((each.exchange, re.escape(each.key)) for each in consumer.bindings),
    )


def _private_queue(name: str, purpose: str, binds: Mapping[str, Names]) -> Role:
    own = frozenset({_SERVER_NAMED})
    return Role(name, purpose, own, own, own | _escaped(binds), binds=binds)


def _rpc_worker() -> Role:
    queues = _escaped(each.queue for each in procedures.registered())
    purpose = "manage.py run_rpc_worker: declares and reads the queues of requests; replies"
    return Role("rpc-worker", purpose, queues, frozenset({DEFAULT_EXCHANGE}), queues)


def _rpc_caller() -> Role:
    replies, purpose = frozenset({_REPLY_QUEUES}), "calls procedures: requests, and a reply queue of its own"
    return Role("rpc-caller", purpose, replies, frozenset({DEFAULT_EXCHANGE}), replies)


def _with_logs(role: Role) -> Role:
    """Return `role` for a process that also writes its log to the broker."""
    exchange = desired.log_exchange().name
    publishes = {**role.publishes, exchange: frozenset({_ANY})}
    return replace(role, write=role.write | _escaped([exchange]), publishes=publishes)


def _log_reader() -> Role:
    exchange = desired.log_exchange().name
    purpose = f"manage.py mq listen {exchange}: follows the logs of all processes, by a queue of its own"
    return _private_queue("log-reader", purpose, {exchange: frozenset({_ANY})})


def _operator() -> Role:
    topology = desired.topology(consumers.registered())
    ours = _escaped(name for name, _, _ in topology.declarations())
    anything = {each.name: frozenset({_ANY}) for each in topology.exchanges}
    return Role(
        name="operator",
        purpose="manage.py mq topology declare: declares exchanges, queues and bindings; for people, not for processes",
        configure=ours,
        # Declaring a queue that dead-letters into the default exchange needs the permission to publish there.
        write=ours | {DEFAULT_EXCHANGE},
        read=ours,
        publishes=anything,
        binds=anything,
    )


def _expression(names: Iterable[Names]) -> str:
    found = frozenset[str]().union(*names)
    return rf"^(?:{'|'.join(sorted(found))})\z" if found else NOTHING


def without_any_permission(connection: Connection) -> str:
    """Return in words that this process's account may neither declare, publish nor consume what the project uses; empty
    where it may do one of these: an account of one role has that role's permissions alone.

    Raises BrokerUnavailable.
    """
    topology = desired.topology(consumers.registered())
    for exchange in topology.exchanges:
        if may_declare(connection, exchange.name, exchange.type) or may_write(connection, exchange.name):
            return ""
    if not topology.exchanges or any(may_read(connection, queue.name) for queue in topology.queues):
        return ""
    return (
        f"user {connection.user} may neither declare, publish nor consume what this project uses in the virtual host "
        f"{conf.get().brokers[0].vhost!r}: `manage.py mq grants` prints the rights to give"
    )

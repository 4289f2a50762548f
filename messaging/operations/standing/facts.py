"""What stands on the broker: exchanges, queues, bindings, consumers, connections; and how that is known.

The management API tells everything about the virtual host. AMQP alone answers only to a name, and not about everything:
what nobody could see is None here, or named as unseen, and never taken for well.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from messaging import consumers, topology
from messaging.broker.connection import Connection, opened
from messaging.broker.declaring import exchange_type
from messaging.broker.management import Management, ManagementUnavailable, reached
from messaging.broker.reply_codes import NOT_FOUND, RESOURCE_LOCKED
from messaging.exceptions import BrokerUnavailable, ChannelClosed
from messaging.routing import MAX_SHORT_STRING
from messaging.rpc import procedures


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A queue; None is what could not be seen."""

    name: str
    type: str | None = None
    durable: bool | None = None
    auto_delete: bool | None = None
    exclusive: bool | None = None
    arguments: dict[str, Any] | None = field(default=None, hash=False)
    #: The policies that apply to it.
    policy: str | None = None
    operator_policy: str | None = None
    #: What they say, of two limits the lower.
    policy_definition: dict[str, Any] | None = field(default=None, hash=False)
    #: Messages that wait, and those that consumers hold.
    ready: int | None = None
    unacked: int | None = None
    consumers: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """An exchange; None is what could not be seen."""

    name: str
    type: str | None = None
    durable: bool | None = None
    auto_delete: bool | None = None
    internal: bool | None = None
    arguments: dict[str, Any] | None = field(default=None, hash=False)
    policy: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """What brings messages from an exchange, `source`, to a queue or to another exchange."""

    source: str
    destination: str
    #: "queue" or "exchange".
    kind: str = "queue"
    key: str = ""
    arguments: dict[str, Any] = field(default_factory=dict, hash=False)
    #: What the management API calls it among those of the same source and destination.
    properties_key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumer:
    """Whoever takes messages out of a queue, over one channel."""

    queue: str
    tag: str
    prefetch: int
    acknowledges: bool
    connection: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenConnection:
    """A client's connection."""

    name: str
    user: str
    address: str
    state: str
    channels: int
    since: datetime | None


class Standing(Protocol):
    """What stands on the broker, seen one way or the other.

    Methods raise BrokerUnavailable; those that list what AMQP has no way to see raise CannotBeSeen there.
    """

    #: In one line: how it is known, and how much that is.
    how: str
    #: Whether it sees everything.
    is_complete: bool

    def server(self) -> str: ...

    def alarms(self) -> str | None: ...

    def queues(self, names: Collection[str] = ()) -> list[Queue]: ...

    def exchanges(self, names: Collection[str] = ()) -> list[Exchange]: ...

    def bindings(self) -> list[Binding]: ...

    def policies(self) -> dict[str, dict[str, Any]]: ...

    def consumers(self) -> list[Consumer]: ...

    def connections(self) -> list[OpenConnection]: ...

    def sees_all_connections(self) -> bool: ...


class CannotBeSeen(Exception):
    """AMQP alone has no way to see this."""


@contextmanager
def looking() -> Iterator[Standing]:
    """Yield what stands, by the management API where it lets this user look, else by AMQP alone.

    Raises BrokerUnavailable where neither lets us in.
    """
    try:
        management = reached()
    except ManagementUnavailable as error:
        with opened("look") as connection:
            yield ByAmqp(connection, str(error))
    else:
        yield ByManagement(management)


class ByManagement:
    """What the management API tells. Its counts may be five seconds old."""

    is_complete = True

    def __init__(self, management: Management) -> None:
        self._management = management
        self.how = f"By the management API at {management.address}; what it says is unacked may be 5 s old."

    def server(self) -> str:
        """Return what the broker calls itself, such as "RabbitMQ 3.10.8"."""
        overview = self._management.overview()
        return f"RabbitMQ {overview.get('rabbitmq_version', '')}".strip()

    def alarms(self) -> str | None:
        """Return in words which alarms keep publishers waiting; None where nobody can tell."""
        return self._management.alarms()

    def queues(self, names: Collection[str] = ()) -> list[Queue]:
        """Return every queue, by name."""
        return sorted((_queue(each) for each in self._management.queues()), key=lambda queue: queue.name)

    def exchanges(self, names: Collection[str] = ()) -> list[Exchange]:
        """Return every exchange, by name."""
        found = [
            Exchange(
                name=each["name"],
                type=each.get("type"),
                durable=each.get("durable"),
                auto_delete=each.get("auto_delete"),
                internal=each.get("internal"),
                arguments=_table(each.get("arguments")),
                policy=each.get("policy") or None,
            )
            for each in self._management.exchanges()
        ]
        return sorted(found, key=lambda exchange: exchange.name)

    def bindings(self) -> list[Binding]:
        """Return every binding, but for those that each queue has to the default exchange by its name."""
        found = [
            Binding(
                source=each["source"],
                destination=each["destination"],
                kind=each["destination_type"],
                key=each.get("routing_key", ""),
                arguments=_table(each.get("arguments")),
                properties_key=each.get("properties_key", ""),
            )
            for each in self._management.bindings()
            if each["source"]
        ]
        return sorted(found, key=lambda each: (each.source, each.destination, each.key, each.properties_key))

    def policies(self) -> dict[str, dict[str, Any]]:
        """Return what each policy says, by its name; operators' policies are not among them."""
        return {str(each.get("name")): _table(each.get("definition")) for each in self._management.policies()}

    def consumers(self) -> list[Consumer]:
        """Return every consumer, by queue; its connection by the name that its client gave it."""
        names = {each.get("name"): _client_name(each) for each in self._management.connections()}
        found = [
            Consumer(
                queue=each["queue"]["name"],
                tag=each.get("consumer_tag", ""),
                prefetch=each.get("prefetch_count", 0),
                acknowledges=each.get("ack_required", True),
                connection=names.get(where, where),
            )
            for each in self._management.consumers()
            for where in [str(_table(each.get("channel_details")).get("connection_name", ""))]
        ]
        return sorted(found, key=lambda consumer: (consumer.queue, consumer.connection, consumer.tag))

    def connections(self) -> list[OpenConnection]:
        """Return the connections; without the tag `monitoring`, this user's own."""
        return sorted(map(_connection, self._management.connections()), key=lambda each: (each.name, each.address))

    def sees_all_connections(self) -> bool:
        """Whether those of other users are among them."""
        return bool(self._management.tags() & {"monitoring", "administrator"})


def counted_now(queues: list[Queue]) -> list[Queue]:
    """Return the queues with what waits in them, and how many consume, at this moment.

    What the management API says may be five seconds old, and whoever has just sent a message wants to see it. What
    AMQP does not tell this user stays as it was.
    """
    try:
        with opened("look") as connection:
            amqp = ByAmqp(connection, "")
            return [queue if queue.exclusive else amqp.counted_now(queue) for queue in queues]
    except BrokerUnavailable:
        return queues


class ByAmqp:
    """What AMQP tells: whether a queue or exchange of a name is there, and how many wait in a queue."""

    is_complete = False

    def __init__(self, connection: Connection, why: str) -> None:
        self.connection = connection
        self.how = f"By AMQP alone, which sees only what is asked for by name: {why}."
        #: Names of what this user may not look at.
        self.unseen: set[str] = set()

    def server(self) -> str:
        """Return what the broker calls itself."""
        return self.connection.server

    def alarms(self) -> str | None:
        """Nobody can tell: the broker tells only those who publish."""
        return "publishers are kept waiting" if self.connection.blocked else None

    def queues(self, names: Collection[str] = ()) -> list[Queue]:
        """Return those of the project's queues, and of `names`, that are there."""
        found = (self._queue(name) for name in _each_once(known_queues(), names))
        return sorted((queue for queue in found if queue is not None), key=lambda queue: queue.name)

    def counted_now(self, queue: Queue) -> Queue:
        """Return the queue with its counts of this moment, as far as this user may see them."""
        found = self._queue(queue.name)
        if found is None or found.ready is None:
            return queue
        return replace(queue, ready=found.ready, consumers=found.consumers)

    def exchanges(self, names: Collection[str] = ()) -> list[Exchange]:
        """Return those of the project's exchanges, and of `names`, that are there."""
        known = [each.name for each in topology.wanted(consumers.registered()).exchanges]
        found = [name for name in _each_once(known, names) if self._is_there(name)]
        return [Exchange(name=name, type=exchange_type(self.connection, name) or None) for name in sorted(found)]

    def bindings(self) -> list[Binding]:
        """Raise CannotBeSeen."""
        raise CannotBeSeen("AMQP has no way to look at bindings")

    def policies(self) -> dict[str, dict[str, Any]]:
        """Raise CannotBeSeen."""
        raise CannotBeSeen("AMQP has no way to look at policies")

    def consumers(self) -> list[Consumer]:
        """Raise CannotBeSeen."""
        raise CannotBeSeen("AMQP tells only how many consumers a queue has: see `manage.py mq queues`")

    def connections(self) -> list[OpenConnection]:
        """Raise CannotBeSeen."""
        raise CannotBeSeen("AMQP has no way to look at other connections")

    def sees_all_connections(self) -> bool:
        """AMQP shows none."""
        return False

    def _queue(self, name: str) -> Queue | None:
        try:
            found = self.connection.call("queue_declare", queue=name, passive=True).method
        except ChannelClosed as error:
            if error.code == RESOURCE_LOCKED:
                return Queue(name=name, exclusive=True)
            self._note(name, error)
            return None
        return Queue(name=name, ready=found.message_count, consumers=found.consumer_count)

    def _is_there(self, name: str) -> bool:
        try:
            self.connection.call("exchange_declare", exchange=name, passive=True)
        except ChannelClosed as error:
            self._note(name, error)
            return False
        return True

    def _note(self, name: str, error: ChannelClosed) -> None:
        if error.code != NOT_FOUND:
            self.unseen.add(name)


def known_queues() -> list[str]:
    """Return the names of the queues that this project declares: its consumers' and its procedures'."""
    wanted = topology.wanted(consumers.registered())
    return [*(queue.name for queue in wanted.queues), *(each.queue for each in procedures.registered())]


def _each_once(*names: Iterable[str]) -> list[str]:
    return [name for name in dict.fromkeys(each for some in names for each in some) if fits(name)]


def fits(name: str) -> bool:
    """Whether AMQP could have a queue or exchange of that name."""
    return 0 < len(name.encode(errors="replace")) <= MAX_SHORT_STRING


def _queue(facts: dict[str, Any]) -> Queue:
    return Queue(
        name=facts["name"],
        type=facts.get("type"),
        durable=facts.get("durable"),
        auto_delete=facts.get("auto_delete"),
        exclusive=facts.get("exclusive"),
        arguments=_table(facts.get("arguments")),
        policy=facts.get("policy") or None,
        operator_policy=facts.get("operator_policy") or None,
        policy_definition=_table(facts.get("effective_policy_definition")),
        # A queue just declared has no counts yet.
        ready=facts.get("messages_ready"),
        unacked=facts.get("messages_unacknowledged"),
        consumers=facts.get("consumers"),
    )


def _connection(facts: dict[str, Any]) -> OpenConnection:
    since = facts.get("connected_at")
    return OpenConnection(
        name=_client_name(facts),
        user=facts.get("user", ""),
        address=f"{facts.get('peer_host', '?')}:{facts.get('peer_port', '?')}",
        state=facts.get("state", ""),
        channels=facts.get("channels", 0),
        since=datetime.fromtimestamp(since / 1000, UTC) if isinstance(since, int) else None,
    )


def _client_name(facts: dict[str, Any]) -> str:
    return str(_table(facts.get("client_properties")).get("connection_name") or facts.get("name", ""))


def _table(value: Any) -> dict[str, Any]:
    """Return an AMQP table; RabbitMQ's JSON has an empty list for some that are empty."""
    return value if isinstance(value, dict) else {}

"""What may be known of the exchanges, queues, bindings, consumers and connections on a broker."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from messaging.broker.connection import Connection
from messaging.broker.management import Address


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
    #: It exists and does not answer, and this is why that is thought; empty: it answers, or was not asked.
    silent: str = ""


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
    #: The management API that tells it; None where AMQP does.
    address: Address | None
    #: The connection that it goes by, or that showed whose management API it is.
    connection: Connection

    def server(self) -> str: ...

    def alarms(self) -> str | None: ...

    def queues(self, names: Collection[str] = ()) -> list[Queue]: ...

    def counted_now(self, queues: list[Queue]) -> list[Queue]: ...

    def exchanges(self, names: Collection[str] = ()) -> list[Exchange]: ...

    def bindings(self) -> list[Binding]: ...

    def policies(self) -> dict[str, dict[str, Any]]: ...

    def consumers(self) -> list[Consumer]: ...

    def connections(self) -> list[OpenConnection]: ...

    def sees_all_connections(self) -> bool: ...


class CannotBeSeen(Exception):
    """AMQP alone has no way to see this."""

"""What exists on the broker: all of it by RabbitMQ's management API, our own queues by AMQP, which answers to names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, TypeVar

from messaging import consumers, procedures, routing
from messaging.broker.connection import Connection, opened
from messaging.broker.management_api import reached
from messaging.broker.queue_answers import QueueAnswer, ask_queues
from messaging.exceptions import BrokerUnavailable
from messaging.topology import desired


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A queue; None is what could not be seen."""

    name: str
    type: str | None = None
    durable: bool | None = None
    auto_delete: bool | None = None
    exclusive: bool | None = None
    arguments: dict[str, Any] = field(default_factory=dict, hash=False)
    #: The policies that apply to it, and what they say together: of two limits the lower.
    policy: str | None = None
    operator_policy: str | None = None
    policy_definition: dict[str, Any] = field(default_factory=dict, hash=False)
    #: Messages that wait, and messages that consumers have not acknowledged.
    ready: int | None = None
    unacked: int | None = None
    consumers: int | None = None
    #: Why it counts as unresponsive; empty: it answers, or was not asked.
    silent: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    name: str
    type: str
    durable: bool
    auto_delete: bool
    internal: bool
    arguments: dict[str, Any] = field(hash=False)
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

    @property
    def declared(self) -> routing.Binding:
        """The binding as a consumer would declare it."""
        return routing.Binding(self.source, self.destination, self.key, self.arguments)


Kind = TypeVar("Kind", Queue, Exchange, Binding)


class Existing:
    """What the management API shows of the virtual host. Its counts may be five seconds old.

    Raises ManagementUnavailable where the API does not answer to this account, or belongs to another broker than
    `connection`. So does every method.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.api = reached(connection)
        self.how = f"By the management API at {self.api.address}; its unacked counts may be 5 s old."

    def server(self) -> str:
        """Return what the broker calls itself, such as "RabbitMQ 3.10.8"."""
        return f"RabbitMQ {self.api.overview().get('rabbitmq_version', '')}".strip()

    def alarms(self) -> str:
        """Return which alarms block publishers; empty where there is none."""
        return self.api.alarms()

    def queues(self) -> list[Queue]:
        """Return every queue, by name."""
        renamed = {
            "ready": "messages_ready",  # not there yet for a queue just declared
            "unacked": "messages_unacknowledged",
            "policy_definition": "effective_policy_definition",
        }
        return sorted((_read(Queue, each, renamed) for each in self.api.queues()), key=lambda queue: queue.name)

    def exchanges(self) -> list[Exchange]:
        """Return every exchange, by name."""
        return sorted((_read(Exchange, each) for each in self.api.exchanges()), key=lambda exchange: exchange.name)

    def bindings(self) -> list[Binding]:
        """Return every binding, except each queue's own to the default exchange."""
        renamed = {"kind": "destination_type", "key": "routing_key"}
        found = [_read(Binding, each, renamed) for each in self.api.bindings() if each["source"]]
        return sorted(found, key=lambda each: (each.source, each.destination, each.key))

    def policies(self) -> dict[str, dict[str, Any]]:
        """Return the definition of each policy, by its name; operator policies are not among them."""
        return {str(each.get("name")): table(each.get("definition")) for each in self.api.policies()}


@contextmanager
def opened_existing() -> Iterator[Existing]:
    """Yield what exists, over a connection of its own.

    Raises BrokerUnavailable: without AMQP nothing says to which broker a management API belongs.
    """
    with opened("look") as connection:
        yield Existing(connection)


def own_queue_names() -> list[str]:
    """Return the names of the queues that this project declares: its consumers' and its procedures'."""
    topology = desired.topology(consumers.registered())
    return [*(queue.name for queue in topology.queues), *(each.queue for each in procedures.registered())]


def own_queues(connection: Connection) -> list[Queue]:
    """Return those of our own queues that exist, by AMQP: with counts, and whether each answers; no more is known.

    Raises BrokerUnavailable.
    """
    answers = _answers(connection, own_queue_names())
    return [_with_counts(Queue(name=name), each) for name, each in answers.items() if each.silent or not each.refusal]


def counted_now(connection: Connection, queues: list[Queue]) -> list[Queue]:
    """Return `queues` with the counts of this moment, and whether each answers. What AMQP does not tell this account
    stays as it was."""
    try:
        answers = _answers(connection, [each.name for each in queues if not each.exclusive])
    except BrokerUnavailable:
        return queues
    return [_with_counts(each, answers[each.name]) if each.name in answers else each for each in queues]


def _answers(connection: Connection, names: Iterable[str]) -> dict[str, QueueAnswer]:
    # Only our own quorum queues may be asked for a message: no queue of another application is.
    own = desired.topology(consumers.registered()).queues
    quorum = {queue.name for queue in own if queue.arguments["x-queue-type"] == "quorum"}
    return ask_queues(connection, names, quorum=quorum)


def _with_counts(queue: Queue, answer: QueueAnswer) -> Queue:
    if answer.silent:
        return replace(queue, ready=None, consumers=None, silent=answer.silent)
    if answer.refusal:
        return queue
    return replace(queue, ready=answer.ready, consumers=answer.consumers)


def _read(kind: type[Kind], facts: Mapping[str, Any], renamed: Mapping[str, str] = MappingProxyType({})) -> Kind:
    """Return a `kind` of what the management API says; `renamed` has its own names of some fields."""
    found: dict[str, Any] = {}
    for name in (each.name for each in fields(kind)):
        value = facts.get(renamed.get(name, name))
        if name in {"arguments", "policy_definition"}:
            value = table(value)
        elif name.endswith("policy"):
            value = value or None
        if value is not None:
            found[name] = value
    return kind(**found)


def table(value: Any) -> dict[str, Any]:
    """Return an AMQP table; RabbitMQ's JSON has an empty list for some that are empty."""
    return value if isinstance(value, dict) else {}

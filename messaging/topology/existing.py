"""What exists on the broker: all of it by RabbitMQ's management API, our own queues by AMQP, which answers to names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from messaging import consumers, procedures
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
    policy: str | None


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


class Existing:
    """What the management API shows of the virtual host. Its counts may be five seconds old.

    Raises ManagementUnavailable where the API does not answer to this account, or belongs to another broker than
    `connection`. So does every method.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.api = reached(connection)
        self.how = f"By the management API at {self.api.address}; what it says is unacked may be 5 s old."

    def server(self) -> str:
        """Return what the broker calls itself, such as "RabbitMQ 3.10.8"."""
        return f"RabbitMQ {self.api.overview().get('rabbitmq_version', '')}".strip()

    def alarms(self) -> str:
        """Return which alarms block publishers; empty where there is none."""
        return self.api.alarms()

    def queues(self) -> list[Queue]:
        """Return every queue, by name."""
        return sorted(map(_queue, self.api.queues()), key=lambda queue: queue.name)

    def exchanges(self) -> list[Exchange]:
        """Return every exchange, by name."""
        return sorted(map(_exchange, self.api.exchanges()), key=lambda exchange: exchange.name)

    def bindings(self) -> list[Binding]:
        """Return every binding, except each queue's own to the default exchange."""
        found = [_binding(each) for each in self.api.bindings() if each["source"]]
        return sorted(found, key=lambda each: (each.source, each.destination, each.key, each.properties_key))

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


def _queue(facts: dict[str, Any]) -> Queue:
    return Queue(
        **_given(facts, "name", "type", "durable", "auto_delete", "exclusive", "consumers"),
        arguments=table(facts.get("arguments")),
        policy=facts.get("policy") or None,
        operator_policy=facts.get("operator_policy") or None,
        policy_definition=table(facts.get("effective_policy_definition")),
        # A queue just declared has no counts yet.
        ready=facts.get("messages_ready"),
        unacked=facts.get("messages_unacknowledged"),
    )


def _exchange(facts: dict[str, Any]) -> Exchange:
    return Exchange(
        **_given(facts, "name", "type", "durable", "auto_delete", "internal"),
        arguments=table(facts.get("arguments")),
        policy=facts.get("policy") or None,
    )


def _binding(facts: dict[str, Any]) -> Binding:
    return Binding(
        **_given(facts, "source", "destination"),
        kind=facts["destination_type"],
        key=facts.get("routing_key", ""),
        arguments=table(facts.get("arguments")),
        properties_key=facts.get("properties_key", ""),
    )


def _given(facts: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: facts.get(name) for name in names}


def table(value: Any) -> dict[str, Any]:
    """Return an AMQP table; RabbitMQ's JSON has an empty list for some that are empty."""
    return value if isinstance(value, dict) else {}

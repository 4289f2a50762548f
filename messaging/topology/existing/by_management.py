"""What stands on the broker, by the management API: everything in the virtual host."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from messaging.broker.connection import Connection
from messaging.broker.management import Address, Management
from messaging.exceptions import BrokerUnavailable
from messaging.topology.existing.by_amqp import ByAmqp
from messaging.topology.existing.facts import Binding, Consumer, Exchange, OpenConnection, Queue


class ByManagement:
    """What the management API tells. Its counts may be five seconds old."""

    is_complete = True

    def __init__(self, management: Management, connection: Connection) -> None:
        self._management = management
        self.connection = connection
        self.address: Address | None = management.address
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

    def counted_now(self, queues: list[Queue]) -> list[Queue]:
        """Return the queues with what waits in them, and how many consume, at this moment, and whether they answer.

        What the management API says may be five seconds old, and it asks no queue. What AMQP does not tell this user
        stays as it was.
        """
        try:
            return ByAmqp(self.connection, "").counted_now(queues)
        except BrokerUnavailable:
            return queues

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

"""Queues and exchanges by name, over AMQP: whether they exist, declaring them, and rights to them."""

from __future__ import annotations

import uuid
from typing import Any

from messaging.broker.connection import Connection
from messaging.broker.errors import difference
from messaging.exceptions import (
    AccessRefused,
    NotFound,
    OperationRefused,
    PreconditionFailed,
    QueueSilent,
    ResourceLocked,
)

#: Properties that do not change which messages a queue or exchange gets. RabbitMQ compares these first.
_HARMLESS_DIFFERENCES = {"durable", "auto_delete", "x-queue-type"}
#: The consumer argument for where to begin in a stream (https://www.rabbitmq.com/docs/streams#consuming).
STREAM_OFFSET = "x-stream-offset"
#: An exchange of every virtual host. Without the right to read it the refusal names it.
_SOURCE = "amq.fanout"


def queue_exists(connection: Connection, name: str) -> bool:
    """Whether the queue exists, exclusive ones included. Raises OperationRefused, BrokerUnavailable."""
    try:
        connection.call("queue_declare", queue=name, passive=True)
    except NotFound:
        return False
    except ResourceLocked:
        pass
    return True


def exchange_exists(connection: Connection, name: str) -> bool:
    """Whether the exchange exists. Raises OperationRefused, BrokerUnavailable."""
    try:
        connection.call("exchange_declare", exchange=name, passive=True)
    except NotFound:
        return False
    return True


def is_stream(connection: Connection, name: str) -> bool:
    """Whether an existing queue is a stream, as far as this account may know. Raises BrokerUnavailable.

    AMQP cannot ask that. But only streams accept consumers with an offset, and a consumer behind the last message
    receives nothing.
    """
    tag = "is-it-a-stream"
    try:
        connection.call("basic_qos", prefetch_count=1)  # required for streams
        connection.call(
            "basic_consume",
            queue=name,
            on_message_callback=lambda *_: None,
            consumer_tag=tag,
            arguments={STREAM_OFFSET: "next"},
        )
    except OperationRefused:
        return False
    connection.call("basic_cancel", consumer_tag=tag)
    return True


def declare_queue(
    connection: Connection, name: str, *, durable: bool, queue_type: str | None, arguments: dict[str, Any]
) -> str:
    """Declare a queue, or use an existing one with another durability or type; return the difference, else "".

    Raises OperationRefused if it exists with other arguments or this account may not; BrokerUnavailable.
    """
    typed = {"x-queue-type": queue_type} if queue_type else {}
    how = {"durable": durable, "arguments": {**typed, **arguments}}
    return _declared(connection, "queue_declare", {"queue": name, **how}, strict=bool(arguments))


def declare_exchange(
    connection: Connection, name: str, exchange_type: str, *, durable: bool, arguments: dict[str, Any]
) -> str:
    """Declare an exchange, or use an existing one with another durability. Returns and raises as `declare_queue`;
    another type is refused."""
    how = {"exchange_type": exchange_type, "durable": durable, "arguments": arguments}
    return _declared(connection, "exchange_declare", {"exchange": name, **how}, strict=bool(arguments))


def _declared(connection: Connection, method: str, what: dict[str, Any], *, strict: bool) -> str:
    try:
        connection.call(method, **what)
    except PreconditionFailed as error:
        differs = difference(error)
        if strict or differs is None or differs.property not in _HARMLESS_DIFFERENCES:
            raise
        return f"{differs}. It is used as it is."
    return ""


# --- Rights: RabbitMQ checks them before it finds that there is nothing to unbind, or that an argument is invalid ---


def may_declare(connection: Connection, exchange: str, exchange_type: str) -> bool:
    """Whether this account may declare `exchange`, which exists so. Raises BrokerUnavailable."""
    arguments = {"exchange": exchange, "exchange_type": exchange_type, "durable": True}
    return not _refused(connection, "exchange_declare", exchange, arguments)


def may_write(connection: Connection, exchange: str) -> bool:
    """Whether this account may publish to `exchange`. Raises BrokerUnavailable."""
    unbound = {"destination": exchange, "source": _SOURCE, "routing_key": str(uuid.uuid4())}
    return not _refused(connection, "exchange_unbind", exchange, unbound)


def may_read(connection: Connection, queue: str) -> bool:
    """Whether this account may consume `queue`. Raises BrokerUnavailable."""
    invalid = {"queue": queue, "on_message_callback": lambda *_: None, "arguments": {"x-priority": "none"}}
    return not _refused(connection, "basic_consume", queue, invalid)


def _refused(connection: Connection, method: str, name: str, arguments: dict[str, Any]) -> bool:
    try:
        connection.call(method, **arguments)
    except AccessRefused as error:
        return f"'{name}'" in error.text
    except (OperationRefused, QueueSilent):
        pass  # both come after the check of rights
    return False

"""Declaring for a person: whether a queue or exchange exists, and using one that exists with harmless differences."""

from __future__ import annotations

from typing import Any

from messaging.broker.connection import Connection
from messaging.broker.errors import difference
from messaging.exceptions import NotFound, PreconditionFailed, ResourceLocked

#: Properties that do not change which messages a queue or exchange gets. RabbitMQ compares these first.
_HARMLESS_DIFFERENCES = {"durable", "auto_delete", "x-queue-type"}


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

"""Rights: may this account write to an exchange, or read a queue? Asked without changing anything.

AMQP has no question for it. But RabbitMQ checks rights first of all: before it finds that a binding to be removed does
not exist, or that an argument of a consumer is invalid.
"""

from __future__ import annotations

import uuid

from messaging.broker.connection import Connection
from messaging.exceptions import AccessRefused, OperationRefused, QueueSilent

#: An exchange that every virtual host has. Without the right to read it the refusal names it.
_SOURCE = "amq.fanout"


def may_declare(connection: Connection, exchange: str, exchange_type: str) -> bool:
    """Whether this account may declare `exchange`, which exists so. Raises BrokerUnavailable."""
    return not _refused(
        connection, "exchange_declare", exchange, exchange=exchange, exchange_type=exchange_type, durable=True
    )


def may_write(connection: Connection, exchange: str) -> bool:
    """Whether this account may publish to `exchange`. Raises BrokerUnavailable."""
    nothing = str(uuid.uuid4())
    return not _refused(
        connection, "exchange_unbind", exchange, destination=exchange, source=_SOURCE, routing_key=nothing
    )


def may_read(connection: Connection, queue: str) -> bool:
    """Whether this account may consume `queue`. Raises BrokerUnavailable."""
    invalid = {"x-priority": "none"}
    return not _refused(
        connection, "basic_consume", queue, queue=queue, on_message_callback=lambda *_: None, arguments=invalid
    )


def _refused(connection: Connection, method: str, name: str, **arguments: object) -> bool:
    try:
        connection.call(method, **arguments)
    except OperationRefused as error:
        return isinstance(error, AccessRefused) and f"'{name}'" in error.text
    except QueueSilent:
        return False  # RabbitMQ has asked the queue, after it checked the rights
    return False

"""Queues and exchanges by their names, over plain AMQP: is it there, of which type, and declaring it."""

from __future__ import annotations

from typing import Any

from messaging.broker.connection import Connection
from messaging.broker.errors import difference
from messaging.exceptions import AccessRefused, NotFound, OperationRefused, PreconditionFailed, ResourceLocked

#: What a queue or exchange may differ in without a message going another way. RabbitMQ compares these first.
_HOW_IT_IS_KEPT = {"durable", "auto_delete", "x-queue-type"}
#: A consumer's argument that says where in a stream to begin: "first", "next" or the number of a message; and the
#: header that tells a message's number (https://www.rabbitmq.com/docs/streams#consuming).
STREAM_OFFSET = "x-stream-offset"


def queue_stands(connection: Connection, name: str) -> bool:
    """Whether there is such a queue, another connection's own included. Raises OperationRefused, BrokerUnavailable."""
    try:
        connection.call("queue_declare", queue=name, passive=True)
    except NotFound:
        return False
    except ResourceLocked:
        return True
    return True


def exchange_stands(connection: Connection, name: str) -> bool:
    """Whether there is such an exchange. Raises OperationRefused, BrokerUnavailable."""
    try:
        connection.call("exchange_declare", exchange=name, passive=True)
    except NotFound:
        return False
    return True


def is_stream(connection: Connection, name: str) -> bool:
    """Whether a queue that exists is a stream, as far as this account may know. Raises BrokerUnavailable.

    AMQP has no question for it. But only streams take consumers that name an offset, and a consumer behind the last
    message takes nothing away.
    """
    tag = "is-it-a-stream"
    try:
        connection.call("basic_qos", prefetch_count=1)  # a stream wants one
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


def exchange_type(connection: Connection, name: str) -> str:
    """Return the type of an exchange that stands; empty where this account may not know.

    AMQP has no question for it. But who declares an exchange anew with another type is told which it has.
    """
    guess = "fanout"
    try:
        connection.call("exchange_declare", exchange=name, exchange_type=guess)
    except AccessRefused:
        return ""
    except PreconditionFailed as error:
        told = difference(error)
        if told is None:
            raise
        # The type is compared first: over another property it is as guessed.
        return (told.found or "") if told.property == "type" else guess
    return guess


def declare_queue(
    connection: Connection, name: str, *, durable: bool, queue_type: str | None, arguments: dict[str, Any]
) -> str:
    """Declare a queue, or use one that exists with another durability or type; return what differs, else "".

    Raises OperationRefused where it exists with other arguments or this account may not; BrokerUnavailable.
    """
    typed = {"x-queue-type": queue_type} if queue_type else {}
    how = {"durable": durable, "arguments": {**typed, **arguments}}
    return _declared(connection, "queue_declare", {"queue": name, **how}, strict=bool(arguments))


def declare_exchange(
    connection: Connection, name: str, exchange_type: str, *, durable: bool, arguments: dict[str, Any]
) -> str:
    """Declare an exchange, or use one that exists with another durability. Returns and raises as `declare_queue`;
    another type is refused."""
    how = {"exchange_type": exchange_type, "durable": durable, "arguments": arguments}
    return _declared(connection, "exchange_declare", {"exchange": name, **how}, strict=bool(arguments))


def _declared(connection: Connection, method: str, what: dict[str, Any], *, strict: bool) -> str:
    try:
        connection.call(method, **what)
    except PreconditionFailed as error:
        differs = difference(error)
        if strict or differs is None or differs.property not in _HOW_IT_IS_KEPT:
            raise
        return f"{differs}. It is used as it is."
    return ""

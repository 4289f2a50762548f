"""Queues and exchanges by their names, over plain AMQP: is it there, of which type, and declaring it."""

from __future__ import annotations

from typing import Any

from messaging.broker.connection import Connection
from messaging.broker.differences import difference
from messaging.broker.reply_codes import ACCESS_REFUSED, NOT_FOUND, RESOURCE_LOCKED
from messaging.exceptions import ChannelClosed


def queue_stands(connection: Connection, name: str) -> bool:
    """Whether there is such a queue, another connection's own included. Raises ChannelClosed, BrokerUnavailable."""
    try:
        connection.call("queue_declare", queue=name, passive=True)
    except ChannelClosed as error:
        if error.code == NOT_FOUND:
            return False
        if error.code != RESOURCE_LOCKED:
            raise
    return True


def exchange_stands(connection: Connection, name: str) -> bool:
    """Whether there is such an exchange. Raises ChannelClosed, BrokerUnavailable."""
    try:
        connection.call("exchange_declare", exchange=name, passive=True)
    except ChannelClosed as error:
        if error.code == NOT_FOUND:
            return False
        raise
    return True


def exchange_type(connection: Connection, name: str) -> str:
    """Return the type of an exchange that stands; empty where this account may not know.

    AMQP has no question for it. But who declares an exchange anew with another type is told which it has.
    """
    guess = "fanout"
    try:
        connection.call("exchange_declare", exchange=name, exchange_type=guess)
    except ChannelClosed as error:
        if error.code == ACCESS_REFUSED:
            return ""
        told = difference(error)
        if told is None:
            raise
        # The type is compared first: over another property it is as guessed.
        return (told.found or "") if told.property == "type" else guess
    return guess


def declare_queue(
    connection: Connection, name: str, *, durable: bool, queue_type: str | None, arguments: dict[str, Any]
) -> None:
    """Declare a queue. Raises ChannelClosed where it stands otherwise or this account may not; BrokerUnavailable."""
    typed = {"x-queue-type": queue_type} if queue_type else {}
    connection.call("queue_declare", queue=name, durable=durable, arguments={**typed, **arguments})


def declare_exchange(
    connection: Connection, name: str, exchange_type: str, *, durable: bool, arguments: dict[str, Any]
) -> None:
    """Declare an exchange. Raises as `declare_queue`."""
    connection.call(
        "exchange_declare", exchange=name, exchange_type=exchange_type, durable=durable, arguments=arguments
    )

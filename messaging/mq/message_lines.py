"""One message, one line: for people, for pipes, and as JSON."""

from __future__ import annotations

import base64
from typing import Any

from django.core.management.base import BaseCommand

from messaging.broker.arrival import Arrival
from messaging.headers import storable_headers
from messaging.management.cells import one_line
from messaging.management.tables import json_line
from messaging.message import Message


def write_message(command: BaseCommand, arrival: Arrival, *, as_json: bool) -> None:
    """Write a message as one line, and flush: the reader then has it. Raises BrokenPipeError."""
    if as_json:
        line = json_line(_facts(arrival))
    elif command.stdout.isatty():
        line = _for_people(command, arrival)
    else:
        line = f"{one_line(arrival.routing_key)}\t{_text(arrival.message)}"
    # A character that the terminal cannot show must not end the command.
    encoding = getattr(command.stdout, "encoding", None) or "utf-8"
    command.stdout.write(line.encode(encoding, "backslashreplace").decode(encoding))
    command.stdout.flush()


def _for_people(command: BaseCommand, arrival: Arrival) -> str:
    message = arrival.message
    # Messages of a headers exchange mostly have no key.
    label = arrival.routing_key or " ".join(f"{name}={value}" for name, value in message.headers.items())
    again = command.style.WARNING(" (redelivered)") if arrival.redelivered else ""
    return (
        f"{command.style.MIGRATE_LABEL(one_line(label))}  {_text(message)}{again}" if label else _text(message) + again
    )


def _text(message: Message) -> str:
    return one_line(message.body.decode(errors="backslashreplace"))


def _facts(arrival: Arrival) -> dict[str, Any]:
    body, is_text = _body(arrival.message.body)
    return {
        "queue": arrival.queue,
        "exchange": arrival.exchange,
        "routing_key": arrival.routing_key,
        "redelivered": arrival.redelivered,
        "properties": _properties(arrival.message),
        "headers": storable_headers(arrival.message.headers),
        "body": body,
        "base64": not is_text,
    }


def _body(body: bytes) -> tuple[str, bool]:
    try:
        return body.decode(), True
    except UnicodeDecodeError:
        return base64.b64encode(body).decode(), False


def _properties(message: Message) -> dict[str, Any]:
    """Return the properties that are set, by the names of AMQP."""
    properties = {
        "message_id": message.id,
        "type": message.type,
        "content_type": message.content_type,
        "content_encoding": message.content_encoding,
        "correlation_id": message.correlation_id,
        "reply_to": message.reply_to,
        "app_id": message.app_id,
        "expiration": message.expiration,
        "timestamp": message.timestamp.isoformat() if message.timestamp else None,
        "priority": message.priority,
        # The default is 1: https://www.rabbitmq.com/amqp-0-9-1-reference.html
        "delivery_mode": 2 if message.persistent else 1,
    }
    return {name: value for name, value in properties.items() if value not in {"", None}}

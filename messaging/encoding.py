"""Events become messages, and messages events: an event's body, routing key and headers are checked before they are
stored, and a message is decoded by its type."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from messaging import events
from messaging.events import Event, untyped
from messaging.exceptions import Undecodable
from messaging.message import Message
from messaging.routing import MAX_SHORT_STRING, fields_in, fits_64_bits
from messaging.validation import fields, functions, texts


def checked_body(event: Event) -> bytes:
    """Return the JSON body of `event`, after reading it as its consumers will.

    Raises ValueError, naming the field, for an event that would arrive changed or not at all, and for one whose class
    has no type of its own.
    """
    if not event.event_type:
        raise ValueError(untyped(type(event)))
    try:
        body = event.encode()
    except Exception as error:
        where = fields.without_json(event)
        raise ValueError(f"{event.event_type}: field {where} has no JSON form: {functions.text_of(error)}") from error
    try:
        arrives = type(event).decode(body, event.event_version)
    except Exception as error:
        if (name := fields.without_number(event)) is not None:
            raise ValueError(f"{event.event_type}: field {name} holds NaN or infinity: no number to JSON") from None
        raise ValueError(
            f"{event.event_type} cannot be read again, so it is not published: {functions.text_of(error)}"
        ) from error
    if (name := fields.difference(event, arrives)) is not None:
        raise ValueError(
            f"{event.event_type}: field {name} would arrive with another value than it has now. Give it a "
            "type or value that JSON brings back: finite numbers, texts as keys, a list where no type says tuple, and "
            "within a model nothing secret or excluded"
        )
    return body


def routing_key_of(event: Event) -> str:
    """Return the routing key that `event` is published with; a field that is None becomes an empty text.

    Raises ValueError for a field that does not fit its format in the template, and for a key that AMQP or a database
    does not take, for instance of over 255 bytes.
    """
    if not event.event_key:
        return event.event_type
    found = event.model_dump(mode="json", by_alias=False, include=set(fields_in(event.event_key)))
    try:
        key = event.event_key.format_map({name: "" if value is None else value for name, value in found.items()})
    except Exception as error:
        # The fields are those of the JSON: a Decimal and a time are texts here.
        why = f"its key {event.event_key!r} cannot be made of its fields: {functions.text_of(error)}"
        raise ValueError(f"{event.event_type}: {why}") from None
    return texts.checked(f"{event.event_type}: its routing key", key, octets=MAX_SHORT_STRING)


def routing_headers_of(event: Event) -> dict[str, Any]:
    """Return the headers that `event` is published with: those of its header fields that are not None.

    Raises ValueError for a field that is no text, number or truth, or a number that AMQP or JSON cannot hold.
    """
    found = event.model_dump(mode="json", by_alias=False, include=set(event.event_headers), exclude_none=True)
    for name, value in found.items():
        what = f"{event.event_type}: header {name}"
        if not isinstance(value, str | int | float):
            raise ValueError(f"{what} is no text, number or truth but {type(value).__name__}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{what} is {value}, no number")
        if isinstance(value, int | float) and not fits_64_bits(value):
            raise ValueError(f"{what} is a number of more than 64 bits")
    return found


def named(message: Message, routing_key: str) -> Message:
    """Return `message` with its type. Some clients cannot set that property: then the routing key is taken, if an event
    has that name."""
    if message.type or not events.registry.find(routing_key):
        return message
    return replace(message, type=routing_key)


def decode(message: Message) -> Event:
    """Return the event of `message`.

    Raises Undecodable, saying why, for anything that is not a known event in JSON.
    """
    if not message.type:
        raise Undecodable(
            "the message has no type property, which names the event (order.placed), and its routing key names none"
        )
    event = events.registry.find(message.type)
    if event is None:
        raise Undecodable(f"no event of type {message.type!r:.100} is known here")
    if not message.has_plain_body:
        raise Undecodable(f"content encoding {message.content_encoding!r:.50} is not understood")
    if not message.may_be_json:
        raise Undecodable(f"content type {message.content_type!r:.50} is not application/json")
    return event.decode(message.body, message.version)

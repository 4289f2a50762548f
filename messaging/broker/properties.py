"""Properties: our `Message` as AMQP's basic properties, and back."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pika

from messaging.broker.wire import Properties
from messaging.headers import MARGIN, USUAL_FRAME, fit_headers, room_in_frame
from messaging.message import Message, hashed
from messaging.routing import MAX_SHORT_STRING

PERSISTENT = 2
#: Bytes of headers and properties that fit RabbitMQ's usual frame; `room_in_frame` knows the one agreed on.
MAX_PROPERTIES = USUAL_FRAME - MARGIN
#: The most that the properties without the headers take: ten short strings, two octets, a time and the flags.
_OTHERS = 10 * (1 + MAX_SHORT_STRING) + 12


def to_pika(message: Message) -> Properties:
    """Return the AMQP properties of `message`; an empty text becomes an absent property."""
    return Properties(
        content_type=message.content_type or None,
        content_encoding=message.content_encoding or None,
        headers=dict(message.headers) or None,
        delivery_mode=PERSISTENT if message.persistent else None,
        priority=message.priority,
        correlation_id=message.correlation_id or None,
        reply_to=message.reply_to or None,
        expiration=message.expiration or None,
        message_id=message.id or None,
        timestamp=int(message.timestamp.timestamp()) if message.timestamp else None,
        type=message.type or None,
        app_id=message.app_id or None,
    )


def from_pika(properties: pika.BasicProperties, body: bytes) -> Message:
    """Return the message that arrived. Nothing in it is trusted: a client can set any property."""
    return Message(
        body=body,
        id=_id(properties.message_id),
        type=short_text(properties.type),
        content_type=short_text(properties.content_type),
        content_encoding=short_text(properties.content_encoding),
        correlation_id=short_text(properties.correlation_id),
        reply_to=short_text(properties.reply_to),
        app_id=_id(properties.app_id),
        expiration=short_text(properties.expiration),
        priority=properties.priority,
        timestamp=_time(properties.timestamp),
        persistent=properties.delivery_mode == PERSISTENT,
        headers=properties.headers or {},
    )


def check_size(properties: Properties) -> None:
    """Raise ValueError for properties that do not fit one frame: the broker would close the connection over them, for
    all other messages too, and again at each repetition."""
    room = room_in_frame()
    if _may_exceed(room, properties.headers):
        size = sum(map(len, properties.encode()))
        if size > room:
            raise ValueError(f"its headers and properties take {size} bytes; AMQP has room for {room}")


def fitted(message: Message) -> Properties:
    """Return the AMQP properties of a message that is passed on; headers that do not fit one frame are left out."""
    properties = to_pika(message)
    headers, room = properties.headers, room_in_frame()
    if _may_exceed(room, headers):
        properties.headers = None
        properties.headers = fit_headers(headers, room - sum(map(len, properties.encode())))
    return properties


def _may_exceed(room: int, headers: dict[Any, Any] | None) -> bool:
    """Whether these headers and any other properties could take more than `room` bytes: only then they are measured,
    which costs another encoding."""
    return bool(headers) and 8 * len(repr(headers)) + _OTHERS > room


def short_text(value: Any) -> str:
    """Return a short string as pika read it, as text; empty for None."""
    if value is None:
        return ""
    # pika returns bytes for a short string that is not UTF-8, and PostgreSQL stores no NUL. One byte replaces each: the
    # text still fits a short string when the message is sent again.
    if isinstance(value, bytes):
        value = value.decode(errors="replace").replace("\ufffd", "?")
    return str(value).replace("\x00", "?")


def _id(value: Any) -> str:
    # Two ids (or app_ids) that differ only in bytes that cannot be stored must stay two: the second message would count
    # as a copy of the first.
    text = short_text(value)
    if isinstance(value, bytes) or "\x00" in str(value):
        raw = value if isinstance(value, bytes) else str(value).encode()
        return hashed(raw)
    return text


def _time(seconds: int | None) -> datetime | None:
    try:
        return datetime.fromtimestamp(seconds, UTC) if seconds is not None else None
    except (ValueError, OverflowError, OSError):
        return None

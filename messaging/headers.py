"""AMQP headers: what can be stored as JSON and sent again, and what fits into one frame.

AMQP sends the headers and properties of a message in one frame. Headers that arrived in one frame may not fit another:
ours are added, values without a JSON form become longer texts, and the next broker may allow smaller frames. A broker
closes the connection over a frame that is too large.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

import structlog
from django.core.signals import setting_changed

from messaging import conf
from messaging.logs import get_logger
from messaging.message import REQUEST_ID_HEADER
from messaging.routing import MAX_SHORT_STRING, fits_64_bits
from messaging.validation import texts

log = get_logger(__name__)

#: RabbitMQ's frame unless it is configured otherwise, and the largest that pika asks for.
USUAL_FRAME = 128 * 1024
#: Bytes of a frame kept free for AMQP itself, and for headers that a broker adds.
MARGIN = 1024
#: The header that says how many others were left out.
LEFT_OUT = "headers-left-out"

_smallest_frame = USUAL_FRAME


def request_headers() -> dict[str, str]:
    """Return the header with the id of the current web request, if there is one. Its client may have chosen the id."""
    request_id = structlog.contextvars.get_contextvars().get("request_id")
    return {REQUEST_ID_HEADER: texts.fitted(request_id)} if request_id else {}


def storable_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return AMQP headers as JSON that can be sent again: tables, arrays and numbers stay, all else (bytes, times)
    becomes text."""
    stored: dict[str, Any] = {}
    for name, value in headers.items():
        stored[header_name(name, stored)] = _storable(value)
    return stored


def headers_to_pass_on(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the headers that the next attempt of a message keeps.

    Our own are written anew, and a broker's describe the past. CC and BCC would make the broker route copies elsewhere
    (https://www.rabbitmq.com/docs/sender-selected).
    """
    return {
        name: value
        for name, value in storable_headers(headers).items()
        if name == REQUEST_ID_HEADER or not (name.startswith("x-") or name in {"CC", "BCC"})
    }


def note_frame_max(octets: int) -> None:
    """Note the frame size that a connection agreed on with the broker: the smallest of this process counts."""
    global _smallest_frame
    if octets:  # 0 means no limit
        _smallest_frame = min(_smallest_frame, octets)


def room_in_frame() -> int:
    """Return how many bytes the headers and properties of one message may take, by the connections of this process so
    far and `frame_max` in its addresses."""
    asked_for = [address.frame_max for address in conf.get().brokers if address.frame_max]
    return min(_smallest_frame, *asked_for, USUAL_FRAME) - MARGIN


def size_of(value: Any) -> int:
    """Return how many bytes a header's value, or a table of headers, takes in AMQP (with its type, or its length)."""
    match value:
        case str():
            return 5 + len(value.encode(errors="replace"))
        case bytes():
            return 5 + len(value)
        case None:
            return 1
        case bool():
            return 2
        case int() | float() | datetime():
            return 9
        case Decimal():
            return 6
        case Mapping():
            return 5 + sum(_size_of_entry(name, each) for name, each in value.items())
        case list() | tuple():
            return 5 + sum(map(size_of, value))
    return 5 + len(str(value).encode(errors="replace"))


def fit_headers(headers: Mapping[Any, Any], room: int) -> dict[Any, Any]:
    """Return `headers` so that they take at most `room` bytes: of those that do not fit, the largest are left out, and
    LEFT_OUT says how many."""
    kept = dict(headers)
    over = size_of(kept) - room
    if over <= 0:
        return kept
    note = "{} of " + f"{len(kept)}: they did not fit into AMQP's frame"
    over += _size_of_entry(LEFT_OUT, note.format(len(kept)))
    left_out = []
    for name in sorted(kept, key=lambda name: _size_of_entry(name, kept[name]), reverse=True):
        if over <= 0:
            break
        over -= _size_of_entry(name, kept.pop(name))
        left_out.append(str(name)[:60])
    kept[LEFT_OUT] = note.format(len(left_out))
    log.warning("headers.left_out", names=left_out[:10], left_out=len(left_out), room=room)
    return kept


def header_name(name: Any, taken: Mapping[str, Any] = {}) -> str:
    """Return a header's name so that it can be stored and sent, and differs from those `taken`: bytes that are not
    UTF-8, and NUL, become "?", and it is cut to the length that AMQP allows."""
    text = name.decode(errors="replace").replace("\ufffd", "?") if isinstance(name, bytes) else str(name)
    text = found = _cut(text.encode(errors="replace").replace(b"\x00", b"?"), MAX_SHORT_STRING)
    number = 1
    while found in taken:
        number += 1
        ending = f"~{number}"
        found = _cut(text.encode(), MAX_SHORT_STRING - len(ending)) + ending
    return found


def _storable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return storable_headers(value)
    if isinstance(value, list):
        return [_storable(item) for item in value]
    if value is None or (isinstance(value, int | float) and fits_64_bits(value)):
        return value
    return texts.storable_text(str(value))


def _size_of_entry(name: Any, value: Any) -> int:
    return 1 + len(name if isinstance(name, bytes) else str(name).encode(errors="replace")) + size_of(value)


def _cut(text: bytes, octets: int) -> str:
    return text[: max(0, octets)].decode(errors="ignore")


def _forget(*, setting: str, **kwargs: Any) -> None:
    global _smallest_frame
    if setting == "MESSAGING":
        _smallest_frame = USUAL_FRAME


setting_changed.connect(_forget)

"""AMQP headers: what can be stored as JSON and sent again, and what fits into one frame.

AMQP sends the headers and properties of a message in one frame. Headers that arrived in one frame need not fit another:
ours are added, values without a JSON form become longer texts, and the next broker may allow smaller frames. A broker
closes the connection over a frame that is too large, again at each repetition.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

import structlog
from django.core.signals import setting_changed

from messaging import conf
from messaging.logs import get_logger
from messaging.message import REQUEST_ID_HEADER
from messaging.routing import MAX_SHORT_STRING
from messaging.validation import texts

log = get_logger(__name__)

#: RabbitMQ's frame unless it is configured otherwise, and the largest that pika asks for.
USUAL_FRAME = 128 * 1024
#: Bytes of a frame that are left for AMQP itself, and for headers that a broker adds.
MARGIN = 1024
#: Bytes that are left for a message's properties and our headers while their size is not known.
RESERVED = 4096
#: The header that says how many others were left out.
LEFT_OUT = "headers-left-out"
#: A text is shortened to this many bytes at the least.
SHORTEST = 200

_smallest_frame = USUAL_FRAME


def request_headers() -> dict[str, str]:
    """Return the header with the id of the current web request; none outside of one. The client may have chosen the
    id."""
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
    """Return the headers that the next attempt of a message keeps, so that they fit into a frame.

    Our own are written anew, and a broker's describe the past. CC and BCC would make the broker route copies elsewhere
    (https://www.rabbitmq.com/docs/sender-selected).
    """
    kept = {
        name: value
        for name, value in storable_headers(headers).items()
        if name == REQUEST_ID_HEADER or not (name.startswith("x-") or name in {"CC", "BCC"})
    }
    return fit_headers(kept, room_for_headers())


def note_frame_max(octets: int) -> None:
    """Remember the largest frame that a connection of this process agreed on with the broker: the smallest counts."""
    global _smallest_frame
    if octets:  # 0 means no limit
        _smallest_frame = min(_smallest_frame, octets)


def room_in_frame() -> int:
    """Return how many bytes the headers and properties of one message may take, as far as this process knows: from its
    connections so far, and from `frame_max` in its addresses."""
    asked_for = [address.frame_max for address in conf.get().brokers if address.frame_max]
    return min(_smallest_frame, *asked_for, USUAL_FRAME) - MARGIN


def room_for_headers() -> int:
    """Return how many bytes headers may take while the size of the properties is not known."""
    return max(room_in_frame() - RESERVED, room_in_frame() // 4)


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
    """Return `headers` so that they take at most `room` bytes.

    The largest values are shortened first, and no more than needed; each says so at its end. If that is not enough, the
    largest headers are left out, and LEFT_OUT says how many. Headers that fit are returned unchanged.
    """
    kept = dict(headers)
    over = size_of(kept) - room
    if over <= 0:
        return kept
    shortened = []
    for name in sorted(kept, key=lambda name: size_of(kept[name]), reverse=True):
        if over <= 0:
            break
        before = size_of(kept[name])
        value = _shortened(kept[name], over)
        if size_of(value) < before:
            kept[name] = value
            over -= before - size_of(value)
            shortened.append(str(name)[:60])
    left_out = _leave_out(kept, over)
    log.warning("headers.shortened", names=shortened[:10], shortened=len(shortened), left_out=left_out, room=room)
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
    if value is None or isinstance(value, bool) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return value
    return texts.storable_text(str(value))


def _size_of_entry(name: Any, value: Any) -> int:
    return 1 + len(name if isinstance(name, bytes) else str(name).encode(errors="replace")) + size_of(value)


def _shortened(value: Any, over: int) -> Any:
    """Return `value` as a text that takes `over` bytes less, if possible."""
    size = size_of(value)
    if isinstance(value, Mapping | list | tuple):
        return f"left out: its {size} bytes did not fit into AMQP's frame"
    if not isinstance(value, str | bytes):
        return value
    text = value if isinstance(value, str) else value.decode(errors="replace").replace("\ufffd", "?")
    note = f"… (shortened from {size - 5} bytes to fit into AMQP's frame)"
    beginning = max(size - over, SHORTEST) - 5 - len(note.encode())
    return _cut(text.encode(errors="replace"), beginning) + note


def _leave_out(kept: dict[Any, Any], over: int) -> int:
    """Remove the largest headers of `kept` until it takes `over` bytes less; return how many."""
    if over <= 0:
        return 0
    count = len(kept)
    over += _size_of_entry(LEFT_OUT, f"{count} of {count}: they did not fit into AMQP's frame")
    for name in sorted(kept, key=lambda name: _size_of_entry(name, kept[name]), reverse=True):
        if over <= 0:
            break
        over -= _size_of_entry(name, kept.pop(name))
    left_out = count - len(kept)
    kept[LEFT_OUT] = f"{left_out} of {count}: they did not fit into AMQP's frame"
    return left_out


def _cut(text: bytes, octets: int) -> str:
    return text[: max(0, octets)].decode(errors="ignore")


def _forget(*, setting: str, **kwargs: Any) -> None:
    global _smallest_frame
    if setting == "MESSAGING":
        _smallest_frame = USUAL_FRAME


setting_changed.connect(_forget)

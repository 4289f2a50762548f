"""Fitting: headers that arrived are made to fit before they are passed on, to a retry, a replay or a dead-letter queue.

AMQP sends the headers and properties of a message in one frame. What arrived in one need not fit another: headers of
ours come on top, values that JSON has no form for become longer texts, and the next broker may allow smaller frames.
Over a frame that is too large a broker closes the whole connection, again at each repetition.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from django.core.signals import setting_changed

from messaging import conf
from messaging.loggers import get_logger
from messaging.routing import MAX_SHORT_STRING

log = get_logger(__name__)

#: RabbitMQ's frame unless it is configured otherwise, and the largest that pika asks for.
USUAL_FRAME = 128 * 1024
#: Bytes of a frame that are left to AMQP itself, and to what a broker adds on the way.
MARGIN = 1024
#: Bytes that are left to the properties of a message and to headers of ours, until they are known exactly.
RESERVED = 4096
#: The header that says how many others were left out.
LEFT_OUT = "headers-left-out"
#: Texts are shortened to no less than so many bytes.
SHORTEST = 200

_smallest_frame = USUAL_FRAME


def note_frame(octets: int) -> None:
    """Take note of the frame that a connection of this process has agreed on with the broker: the smallest counts."""
    global _smallest_frame
    if octets:  # 0 means no limit
        _smallest_frame = min(_smallest_frame, octets)


def room() -> int:
    """Return how many bytes the headers and properties of one message may take, as far as this process knows: from its
    connections so far, and from `frame_max` in its addresses."""
    asked_for = [address.frame_max for address in conf.get().brokers if address.frame_max]
    return min(_smallest_frame, *asked_for, USUAL_FRAME) - MARGIN


def room_for_headers() -> int:
    """Return how many bytes headers may take beside properties that are not known yet."""
    return max(room() - RESERVED, room() // 4)


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


def fit(headers: Mapping[Any, Any], room: int) -> dict[Any, Any]:
    """Return `headers` so that they take at most `room` bytes.

    The largest values are shortened first, and no more than needed; each says so at its end. Where that is not enough,
    the largest headers are left out, and LEFT_OUT says how many. Headers that fit are returned as they are.
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


def name_of(name: Any, taken: Mapping[str, Any] = {}) -> str:
    """Return a header's name as it can be stored and sent, and as none that is `taken`: what is not UTF-8, or NUL, is
    a "?", and no name is longer than AMQP allows."""
    text = name.decode(errors="replace").replace("\ufffd", "?") if isinstance(name, bytes) else str(name)
    text = found = _cut(text.encode(errors="replace").replace(b"\x00", b"?"), MAX_SHORT_STRING)
    number = 1
    while found in taken:
        number += 1
        ending = f"~{number}"
        found = _cut(text.encode(), MAX_SHORT_STRING - len(ending)) + ending
    return found


def _size_of_entry(name: Any, value: Any) -> int:
    return 1 + len(name if isinstance(name, bytes) else str(name).encode(errors="replace")) + size_of(value)


def _shortened(value: Any, over: int) -> Any:
    """Return `value` as a text that takes `over` bytes less, if it can."""
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
    """Remove the largest headers of `kept`, until it takes `over` bytes less; return how many these were."""
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

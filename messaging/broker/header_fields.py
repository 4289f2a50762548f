"""Header values that pika cannot read, made harmless; and floats as they are.

pika raises on a time after the year 9999 (a publisher that counts milliseconds), on a float that is no number and on
tables nested too deep. The error comes out of its loop and takes the connection with it; the message comes again, and
the consumer would never get past it. Tables are cut off at a depth at which they can also be stored, measured and sent.

Of a float it reads the whole part alone, and it sends no float at all, nor a time before 1970. Other clients do: the
next attempt of such a message shall have what the first one had, and an event be routed by one.
"""

from __future__ import annotations

import calendar
import math
import struct
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from pika import data

#: Levels of tables and arrays in each other that are read.
DEEPEST = 32


class _Nesting(threading.local):
    """How deep the value is that this thread reads."""

    depth = 0


_nesting = _Nesting()

_read: Callable[[bytes, int], tuple[Any, int]] = data.decode_value
_write: Callable[[list[bytes], Any], int] = data.encode_value


def _read_or_describe(encoded: bytes, offset: int) -> tuple[Any, int]:
    if (kind := encoded[offset : offset + 1]) in {b"d", b"f"}:
        layout = f">{kind.decode()}"
        value = struct.unpack_from(layout, encoded, offset + 1)[0]
        return value if math.isfinite(value) else str(value), offset + 1 + struct.calcsize(layout)
    if kind == b"T":
        # RabbitMQ and most clients have it signed; pika does not.
        return _time(struct.unpack_from(">q", encoded, offset + 1)[0]), offset + 9
    if kind in {b"F", b"A"}:
        return _read_nested(encoded, offset)
    return _read(encoded, offset)


def _read_nested(encoded: bytes, offset: int) -> tuple[Any, int]:
    if _nesting.depth >= DEEPEST:
        return "nested too deep", offset + 5 + struct.unpack_from(">I", encoded, offset + 1)[0]
    _nesting.depth += 1
    try:
        return _read(encoded, offset)
    finally:
        _nesting.depth -= 1


def _time(seconds: int) -> datetime | int:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return seconds


def _write_floats_too(pieces: list[bytes], value: Any) -> int:
    """Append the value to `pieces` and return its size. Raises ValueError for a float that is no number: over one
    RabbitMQ closes the whole connection."""
    if isinstance(value, datetime):
        pieces.append(struct.pack(">cq", b"T", calendar.timegm(value.utctimetuple())))
        return 9
    if not isinstance(value, float):
        return _write(pieces, value)
    if not math.isfinite(value):
        raise ValueError(f"a header is {value}, which is no number")
    pieces.append(struct.pack(">cd", b"d", value))
    return 9


def install() -> None:
    """Put our reader and writer in pika's place; tables and arrays inside a header go through them too."""
    data.decode_value = _read_or_describe
    data.encode_value = _write_floats_too

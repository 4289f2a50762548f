"""Header values that pika cannot read, made harmless.

pika raises on a time after the year 9999 (a publisher that counts milliseconds), on a float that is no number and on
tables nested too deep. The error comes out of its loop and takes the connection with it; the message comes again, and
the consumer would never get past it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from pika import data

_read: Callable[[bytes, int], tuple[Any, int]] = data.decode_value


def _read_or_describe(encoded: bytes, offset: int) -> tuple[Any, int]:
    try:
        return _read(encoded, offset)
    except (ValueError, OverflowError, OSError, RecursionError):
        return _describe(encoded, offset)


def _describe(encoded: bytes, offset: int) -> tuple[Any, int]:
    """Return what can be said of an unreadable value, and the offset behind it."""
    kind, start = encoded[offset : offset + 1], offset + 1
    match kind:
        case b"T":
            return struct.unpack_from(">Q", encoded, start)[0], start + 8
        case b"d":
            return str(struct.unpack_from(">d", encoded, start)[0]), start + 8
        case b"f":
            return str(struct.unpack_from(">f", encoded, start)[0]), start + 4
        case b"F" | b"A":
            return "nested too deep", start + 4 + struct.unpack_from(">I", encoded, start)[0]
    raise ValueError(f"a header of type {kind!r} cannot be read")


def install() -> None:
    """Put the tolerant reader in pika's place; tables and arrays inside a header go through it too."""
    data.decode_value = _read_or_describe

"""Where the bodies of published messages come from: an argument, a file, standard input, or each of their lines."""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Callable, Iterator

#: Bytes read at once, and of bodies that are in flight at once; at least one body is.
CHUNK = 1 << 16
MAX_BYTES = 8 << 20
#: Seconds between two looks at whether somebody wants an end.
LOOK_EVERY = 0.1


def repeated(body: bytes, count: int, size: int) -> Iterator[list[bytes]]:
    """Yield `body` `count` times, in lists of at most `size`."""
    size = max(1, min(size, MAX_BYTES // max(1, len(body))))
    for start in range(0, count, size):
        yield [body] * min(size, count - start)


def lines(descriptor: int, size: int, told_to_stop: Callable[[], bool]) -> Iterator[list[bytes]]:
    """Yield the lines, as soon as they are there, in lists of at most `size`; without their ends.

    Never waits for more lines than there are: what `tail -f` brings goes on at once.
    """
    begun = b""
    for chunk in _chunks(descriptor, told_to_stop):
        *whole, begun = (begun + chunk).split(b"\n")
        for start in range(0, len(whole), size):
            yield [line.removesuffix(b"\r") for line in whole[start : start + size]]
    if begun and not told_to_stop():
        yield [begun.removesuffix(b"\r")]


def whole(descriptor: int, told_to_stop: Callable[[], bool]) -> bytes:
    """Return all there is to read."""
    return b"".join(_chunks(descriptor, told_to_stop))


def _chunks(descriptor: int, told_to_stop: Callable[[], bool]) -> Iterator[bytes]:
    is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
    while not told_to_stop():
        if not is_file and not select.select([descriptor], [], [], LOOK_EVERY)[0]:
            continue
        chunk = os.read(descriptor, CHUNK)
        if not chunk:
            return
        yield chunk

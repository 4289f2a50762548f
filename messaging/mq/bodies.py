"""Where the bodies of published messages come from: an argument, a file, standard input, or each of their lines."""

from __future__ import annotations

import json
import os
import select
import stat
from collections.abc import Callable, Iterator

from django.core.management.base import CommandError

from messaging.management.arguments import EXIT_USAGE

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

    Never waits for more lines than there are: what `tail -f` brings goes on at once. Raises CommandError where it is
    told to stop and something of what was there to read is not among them.
    """
    begun = b""
    for chunk in _chunks(descriptor, told_to_stop):
        *whole, begun = (begun + chunk).split(b"\n")
        for start in range(0, len(whole), size):
            yield [line.removesuffix(b"\r") for line in whole[start : start + size]]
    if told_to_stop():
        if begun or _read(descriptor):
            dropped = f": {len(begun)} bytes of a line without its end are dropped" if begun else ""
            raise CommandError(f"Stopped before all were sent{dropped}.")
    elif begun:
        yield [begun.removesuffix(b"\r")]


def json_lines(batches: Iterator[list[bytes]]) -> Iterator[list[bytes]]:
    """Yield the same, up to the first that is not JSON. Raises CommandError (exit code 2) behind those before it."""
    number = 0
    for batch in batches:
        for index, line in enumerate(batch):
            number += 1
            try:
                check_json(f"Line {number}", line)
            except CommandError:
                yield batch[:index]
                raise
        yield batch


def check_json(what: str, body: bytes) -> None:
    """Raise CommandError (exit code 2) where `body` is not JSON in UTF-8."""
    try:
        json.loads(body.decode())
    except (ValueError, RecursionError) as error:
        raise CommandError(f"{what} is not JSON: {error}.", returncode=EXIT_USAGE) from None


def whole(descriptor: int, told_to_stop: Callable[[], bool]) -> bytes:
    """Return all there is to read."""
    return b"".join(_chunks(descriptor, told_to_stop))


def _chunks(descriptor: int, told_to_stop: Callable[[], bool]) -> Iterator[bytes]:
    while not told_to_stop():
        chunk = _read(descriptor, LOOK_EVERY)
        if chunk is None:
            continue
        if not chunk:
            return
        yield chunk


def _read(descriptor: int, patience: float = 0) -> bytes | None:
    """Return what is there, nothing at the end; None where there is nothing yet."""
    # Windows can wait for sockets alone.
    can_wait = os.name != "nt" and not stat.S_ISREG(os.fstat(descriptor).st_mode)
    if can_wait and not select.select([descriptor], [], [], patience)[0]:
        return None
    return os.read(descriptor, CHUNK)

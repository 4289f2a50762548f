"""One line on a terminal that says how far a command has come."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from django.core.management.base import OutputWrapper

#: Seconds between two texts: faster ones cannot be read.
EVERY = 0.1
#: Carriage return, and clear to the end of the line.
_FROM_THE_LEFT = "\r\x1b[K"


class Progress:
    """The line, on standard error: standard output holds the results. It is for people: elsewhere it writes nothing."""

    def __init__(self, out: OutputWrapper) -> None:
        self._out = out
        self._shown = False
        self._next = 0.0

    def show(self, text: str) -> None:
        """Replace the line by `text`, unless it has just been replaced. The text should fit into one line."""
        now = time.monotonic()
        if now < self._next or not self._out.isatty():
            return
        self._next, self._shown = now + EVERY, True
        self._write(f"{_FROM_THE_LEFT}{text} ...")

    def clear(self) -> None:
        """Remove the line."""
        if self._shown:
            self._shown = False
            self._write(_FROM_THE_LEFT)

    def _write(self, text: str) -> None:
        self._out.write(text, style_func=str, ending="")
        self._out.flush()


@contextmanager
def progress_on(out: OutputWrapper) -> Iterator[Progress]:
    """Yield the line on `out`; it is removed at the end, so that results and errors begin at the left."""
    progress = Progress(out)
    try:
        yield progress
    finally:
        progress.clear()

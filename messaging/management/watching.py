"""Commands that look again and again: --watch."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from datetime import UTC, datetime

from django.core.management.base import CommandError, OutputWrapper
from django.utils import timezone

from messaging.management.arguments import number
from messaging.management.errors import told_in_one_line

DEFAULT_PAUSE = 2.0
SHORTEST_PAUSE, LONGEST_PAUSE = 0.2, 86_400
#: Cursor home, clear below it: the screen is overwritten without a flicker.
REDRAW = "\x1b[H\x1b[J"


def add_watch(parser: argparse.ArgumentParser) -> None:
    """Add --watch; its value is None, or the pause for `watch`."""
    parser.add_argument(
        "--watch", nargs="?", type=number(SHORTEST_PAUSE, LONGEST_PAUSE), const=DEFAULT_PAUSE, metavar="S",
        help=f"look again every S seconds (default {DEFAULT_PAUSE:g}) until Ctrl-C",
    )  # fmt: skip


def watch(out: OutputWrapper, pause: float, look: Callable[[], Callable[[], None]], *, as_json: bool) -> None:
    """Look every `pause` seconds until Ctrl-C; `look` returns what writes what it saw.

    On a terminal what was written before is replaced, unless it is JSON. A look that fails is a line: the next one may
    succeed.
    """
    try:
        while True:
            try:
                with told_in_one_line():
                    write = look()
            except CommandError as error:
                _clear(out, as_json=as_json)
                out.write(f"{clock()}  {error}")
            else:
                _clear(out, as_json=as_json)
                write()
            out.flush()
            time.sleep(pause)
    except KeyboardInterrupt:
        return


def clock() -> str:
    """Return the time of the terminal's zone, to the second."""
    return timezone.localtime(datetime.now(UTC)).replace(tzinfo=None).isoformat(" ", timespec="seconds")


def _clear(out: OutputWrapper, *, as_json: bool) -> None:
    if out.isatty() and not as_json:
        out.write(REDRAW, ending="")

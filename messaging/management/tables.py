"""Output of commands: tables on a terminal, tab-separated in a pipe, JSON for programs; and readers that leave."""

from __future__ import annotations

import errno
import json
import os
import select
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import IO, Any, cast

from django.core.management.base import CommandError, OutputWrapper
from django.utils import timezone
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

#: Nothing more can be written there.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
#: Characters between two columns.
GAP = 2
#: Characters that the folded column keeps at least, before the others are folded as well.
LEAST = 20

Rows = Sequence[Sequence[Any]]


def write_table(
    out: OutputWrapper,
    columns: Sequence[str],
    rows: Rows,
    *,
    as_json: bool = False,
    across: Sequence[str] = (),
    wide: int = 0,
    beneath: int = 0,
) -> None:
    """Write `rows`, one value for each column: as a table on a terminal, tab-separated elsewhere, or as JSON.

    On a terminal the columns `across` (all but the last `beneath`) are side by side, and the others share the lines
    below their row. Nothing is cut: if the terminal is narrow, the column `wide` of those side by side is folded.
    Elsewhere there is no heading: the first line is a row.
    """
    if as_json:
        names = [name.replace(" ", "_") for name in columns]
        write_facts(out, [dict(zip(names, row, strict=True)) for row in rows])
    elif out.isatty():
        console = Console(file=cast("IO[str]", out))
        _write_to_terminal(console, columns, rows, across or columns[: len(columns) - beneath], wide)
    else:
        for row in rows:
            out.write("\t".join(_cell(value) for value in row))
    out.flush()


def write_facts(out: OutputWrapper, facts: Sequence[Mapping[str, Any]]) -> None:
    """Write a JSON object a line."""
    for each in facts:
        out.write(json.dumps({name: _json_value(value) for name, value in each.items()}, ensure_ascii=False))
    out.flush()


def _write_to_terminal(console: Console, columns: Sequence[str], rows: Rows, across: Sequence[str], wide: int) -> None:
    places = [columns.index(name) for name in across]
    below = [place for place in range(len(columns)) if place not in places]
    cells = [[_cell(row[place], short=True) for place in places] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(across, *cells, strict=True)]
    others = sum(widths) - widths[wide] + GAP * (len(across) - 1)
    widths[wide] = min(widths[wide], max(console.width - others, LEAST))
    numbers = [all(isinstance(row[place], int | None) for row in rows) for place in places]
    console.print(_columns(across, widths, numbers, show_header=True))
    for row, texts in zip(rows, cells, strict=True):
        line = _columns(across, widths, numbers)
        # A form feed or an escape sequence in a foreign message must not reach the terminal: see _cell.
        line.add_row(*map(Text, texts))
        console.print(line)
        if text := " · ".join(filter(None, (_named(columns[place], row[place]) for place in below))):
            console.print(Padding(Text(text, style="dim", overflow="fold"), (0, 0, 0, 2), expand=False))


def _columns(
    names: Sequence[str], widths: Sequence[int], numbers: Sequence[bool], *, show_header: bool = False
) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, show_header=show_header, pad_edge=False, padding=(0, 1, 0, 0))
    for name, width, is_number in zip(names, widths, numbers, strict=False):
        table.add_column(name, overflow="fold", width=width, justify="right" if is_number else "left")
    return table


def _named(name: str, value: Any) -> str:
    # A number alone says nothing.
    if value in (None, ""):
        return ""
    if isinstance(value, timedelta):
        return f"{name} {value.total_seconds():.3f} s"
    if isinstance(value, int | datetime):
        return f"{name} {_cell(value, short=True)}"
    return _cell(value)


@contextmanager
def quiet_when_the_reader_leaves() -> Iterator[None]:
    """End silently if the reader of the output has left (`| head -1`), and in one line if the disk is full (`> file`).

    Raises CommandError.
    """
    if sys.stdout is None:  # closed by `>&-`
        raise CommandError("Standard output is closed: there is nowhere to write to.")
    try:
        yield
    except OSError as error:
        if problem := _write_no_more(error):
            raise CommandError(f"The output cannot be written: {problem}.") from None


def unwritten(out: OutputWrapper, line: str) -> str:
    """Write and flush `line`; return why it cannot be written, empty if it is or its reader has left."""
    try:
        out.write(line)
        out.flush()
    except OSError as error:
        return _write_no_more(error)
    return ""


def _write_no_more(error: OSError) -> str:
    """Return why nothing more can be written, empty if the reader has left. Raises any other `error`."""
    if not isinstance(error, BrokenPipeError) and error.errno not in FULL:
        raise error
    # Python would flush the rest at exit, and print an error.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return str(error.strerror) if error.errno in FULL else ""


def reader_left(out: OutputWrapper) -> bool:
    """Whether the reader of `out` has left. Writing alone shows it too late for the last line."""
    if not hasattr(select, "poll"):
        return False  # Windows: the next line that is written tells
    try:
        poll = select.poll()
        poll.register(out.fileno(), 0)
        return bool(poll.poll(0))
    except (OSError, ValueError):
        return False  # it is no file


def _json_value(value: Any) -> Any:
    if isinstance(value, datetime):
        return timezone.localtime(value).isoformat(timespec="milliseconds")
    return value.total_seconds() if isinstance(value, timedelta) else value


def _cell(value: Any, *, short: bool = False) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime) and short:
        return timezone.localtime(value).replace(tzinfo=None).isoformat(" ", timespec="milliseconds")
    return one_line(str(_json_value(value)))


def one_line(text: str) -> str:
    """Return `text` without line ends and control characters."""
    return "".join(each if each.isprintable() else " " for each in text)


def json_line(facts: Mapping[str, Any]) -> str:
    """Return `facts` as one line of JSON without control characters."""
    return printable(json.dumps(facts, ensure_ascii=False))


def printable(text: str) -> str:
    """Return `text` with control characters escaped as in JSON, so that a JSON text keeps its meaning."""
    return "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in text)

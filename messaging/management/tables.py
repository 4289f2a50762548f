"""Output of commands: tables on a terminal, tab-separated in a pipe, JSON for programs; and readers that leave."""

from __future__ import annotations

import errno
import json
import os
import select
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from django.core.management.base import CommandError, OutputWrapper

from messaging.management.cells import cell, json_value

#: Nothing more can be written there.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

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
        # rich takes longer to import than most commands to run.
        from messaging.management.terminal_table import write_to_terminal

        write_to_terminal(out, columns, rows, across or columns[: len(columns) - beneath], wide)
    else:
        for row in rows:
            out.write("\t".join(cell(value) for value in row))
    out.flush()


def write_facts(out: OutputWrapper, facts: Sequence[Mapping[str, Any]]) -> None:
    """Write a JSON object a line."""
    for each in facts:
        out.write(json.dumps({name: json_value(value) for name, value in each.items()}, ensure_ascii=False))
    out.flush()


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


def json_line(facts: Mapping[str, Any]) -> str:
    """Return `facts` as one line of JSON without control characters."""
    return printable(json.dumps(facts, ensure_ascii=False))


def printable(text: str) -> str:
    """Return `text` with control characters escaped as in JSON, so that a JSON text keeps its meaning."""
    return "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in text)

"""Rows for people (a table on a terminal), for pipes (tab-separated) and for programs (JSON, an object a line)."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import IO, Any, cast

from django.core.management.base import OutputWrapper
from django.utils import timezone
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def write_table(out: OutputWrapper, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, as_json: bool) -> None:
    """Write `rows`, one value for each of `columns`, in the form that suits where `out` leads.

    In a pipe there is no heading: the first line is a row.
    """
    if as_json:
        for row in rows:
            facts = {name.replace(" ", "_"): _json_value(value) for name, value in zip(columns, row, strict=True)}
            out.write(json.dumps(facts, ensure_ascii=False))
    elif out.isatty():
        # A form feed or an escape sequence in a foreign message must not reach the terminal: see _cell.
        table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
        for column in table.columns:
            column.overflow = "fold"
        for row in rows:
            table.add_row(*(Text(_cell(value, short=True)) for value in row))
        Console(file=cast("IO[str]", out)).print(table)
    else:
        for row in rows:
            out.write("\t".join(_cell(value) for value in row))
    out.flush()


@contextmanager
def quiet_when_the_reader_leaves() -> Iterator[None]:
    """End without a word when whoever reads the output has seen enough (`| head -1`)."""
    try:
        yield
    except BrokenPipeError:
        # Python would flush what is left at exit, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _json_value(value: Any) -> Any:
    if isinstance(value, datetime):
        return timezone.localtime(value).isoformat(timespec="milliseconds")
    return value.total_seconds() if isinstance(value, timedelta) else value


def _cell(value: Any, *, short: bool = False) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime) and short:
        return f"{timezone.localtime(value):%Y-%m-%d %H:%M:%S}"
    # One row, one line; and nothing that would move the cursor.
    return "".join(each if each.isprintable() else " " for each in str(_json_value(value)))

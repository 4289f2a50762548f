"""Tables on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import IO, Any, cast

from django.core.management.base import OutputWrapper
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from messaging.management.cells import cell

#: Characters between two columns.
GAP = 2
#: Characters that the folded column keeps at least, before the others are folded as well.
LEAST = 20


def write_to_terminal(
    out: OutputWrapper, columns: Sequence[str], rows: Sequence[Sequence[Any]], across: Sequence[str], wide: int
) -> None:
    """Write `rows`, one value for each column: those of `across` side by side, the others below each row.

    Nothing is cut: if the terminal is narrow, the column `wide` of those side by side is folded.
    """
    console = Console(file=cast("IO[str]", out))
    places = [columns.index(name) for name in across]
    below = [place for place in range(len(columns)) if place not in places]
    cells = [[cell(row[place], short=True) for place in places] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(across, *cells, strict=True)]
    others = sum(widths) - widths[wide] + GAP * (len(across) - 1)
    widths[wide] = min(widths[wide], max(console.width - others, LEAST))
    numbers = [all(isinstance(row[place], int | None) for row in rows) for place in places]
    console.print(_columns(across, widths, numbers, show_header=True))
    for row, texts in zip(rows, cells, strict=True):
        line = _columns(across, widths, numbers)
        # A form feed or an escape sequence in a foreign message must not reach the terminal: see `cell`.
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
        return f"{name} {cell(value, short=True)}"
    return cell(value)

"""Many rows, a page at a time: each page is a short transaction of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

#: Rows that an operation changes in one transaction.
SIZE = 100

Each = TypeVar("Each")


def pages(rows: Sequence[Each], size: int = SIZE) -> Iterator[Sequence[Each]]:
    """Yield `rows`, `size` at a time."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]

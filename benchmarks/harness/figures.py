"""Arithmetic of rounds: medians, spreads, and ratios within a round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Self

from benchmarks.harness.window import Measured


@dataclass(frozen=True)
class Spread:
    """A median, with the smallest and largest value."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Return the spread of at least one value."""
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True)
class Row:
    """One variant over all rounds. CPU is in microseconds for each message."""

    name: str
    #: The rate, or the figure compared by.
    value: Spread
    ratio: Spread
    client: float
    broker: float
    database: float
    #: Cores that others used meanwhile; above 0.1 the machine was not quiet.
    others: float
    more: dict[str, float]


def rows(rounds: Sequence[dict[str, Measured]], reference: str, figure: str = "") -> list[Row]:
    """Return a row for each variant, compared by its rate or by a further `figure`.

    A ratio is the median of the rounds' own ratios: what disturbs a whole round disturbs both sides of it.
    """

    def values(name: str) -> list[float]:
        return [each[name].more[figure] if figure else each[name].rate for each in rounds]

    return [_row(name, [each[name] for each in rounds], values(name), values(reference)) for name in rounds[0]]


def _row(name: str, runs: Sequence[Measured], values: Sequence[float], references: Sequence[float]) -> Row:
    def micro(attribute: str) -> float:
        return float(median(getattr(run, attribute) / run.count * 1e6 for run in runs))

    return Row(
        name,
        value=Spread.of(values),
        ratio=Spread.of([value / reference for value, reference in zip(values, references, strict=True)]),
        client=micro("client"),
        broker=micro("broker"),
        database=micro("database"),
        others=median(run.others for run in runs),
        more={key: median(run.more[key] for run in runs) for key in runs[0].more},
    )

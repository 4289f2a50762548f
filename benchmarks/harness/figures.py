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
    rate: Spread
    ratio: Spread
    client: float
    broker: float
    database: float
    #: Cores that others used meanwhile; above 0.1 the machine was not quiet.
    others: float
    more: dict[str, float]


def rows(rounds: Sequence[dict[str, Measured]], reference: str) -> list[Row]:
    """Return a row for each variant. A ratio is the median of the rounds' own ratios: what disturbs a whole round
    disturbs both sides of it."""
    return [_row(name, [each[name] for each in rounds], [each[reference] for each in rounds]) for name in rounds[0]]


def _row(name: str, runs: Sequence[Measured], references: Sequence[Measured]) -> Row:
    def micro(attribute: str) -> float:
        return float(median(getattr(run, attribute) / run.count * 1e6 for run in runs))

    return Row(
        name,
        rate=Spread.of([run.rate for run in runs]),
        ratio=Spread.of([run.rate / reference.rate for run, reference in zip(runs, references, strict=True)]),
        client=micro("client"),
        broker=micro("broker"),
        database=micro("database"),
        others=median(run.others / run.seconds for run in runs),
        more={key: median(run.more[key] for run in runs) for key in runs[0].more},
    )

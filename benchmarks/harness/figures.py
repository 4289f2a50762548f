"""Arithmetic of rounds: medians, spreads, and ratios within a round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Self

from benchmarks.harness.window import Measured

#: What each variant did in one round. One that failed is missing.
Round = Mapping[str, Measured]


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
    #: None where there is no reference, or none that was measured.
    ratio: Spread | None
    client: float
    broker: float
    database: float
    #: Cores that others used meanwhile; above 0.1 the machine was not quiet.
    others: float
    more: dict[str, float]


def rows(rounds: Sequence[Round], reference: str = "", figure: str = "") -> list[Row]:
    """Return a row for each variant that was measured, compared by its rate or by a further `figure`."""
    return [_row(name, rounds, reference, figure) for name in dict.fromkeys(name for each in rounds for name in each)]


def values(rounds: Sequence[Round], name: str, figure: str = "") -> list[float]:
    """Return a variant's value of each round in which it was measured."""
    return [_value(each[name], figure) for each in rounds if name in each]


def ratio(rounds: Sequence[Round], name: str, reference: str, figure: str = "") -> Spread | None:
    """Return the ratio of two variants; None if no round measured both.

    It is the median of the rounds' own ratios: what disturbs a whole round disturbs both sides of it.
    """
    both = [each for each in rounds if name in each and reference in each]
    # What costs nothing has no ratio.
    found = [(_value(each[name], figure), _value(each[reference], figure)) for each in both]
    ratios = [value / to for value, to in found if to]
    return Spread.of(ratios) if ratios else None


def _value(run: Measured, figure: str) -> float:
    return run.more[figure] if figure else run.rate


def _row(name: str, rounds: Sequence[Round], reference: str, figure: str) -> Row:
    runs = [each[name] for each in rounds if name in each]

    def micro(attribute: str) -> float:
        return float(median(getattr(run, attribute) / run.count * 1e6 for run in runs))

    return Row(
        name,
        value=Spread.of(values(rounds, name, figure)),
        ratio=ratio(rounds, name, reference, figure),
        client=micro("client"),
        broker=micro("broker"),
        database=micro("database"),
        others=median(run.others for run in runs),
        more={key: median(run.more[key] for run in runs) for key in runs[0].more},
    )

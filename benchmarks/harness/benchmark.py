"""A benchmark: a question, and the variants that answer it side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks.harness.window import Measured

#: Measures so many messages in a process of its own, with Django set up and an empty database and vhost. One run may
#: measure several things at once: then it names each, and each has a line of its own in the table.
Run = Callable[[int], Measured | dict[str, Measured]]


@dataclass(frozen=True)
class Variant:
    """One way to do the work."""

    #: As the tables call it.
    name: str
    run: Run
    database: Literal["postgresql", "sqlite"] = "postgresql"
    #: Part of the benchmark's count: slow variants need fewer messages for the same time.
    share: float = 1.0
    #: Added to the environment of its processes.
    environment: Mapping[str, str] = field(default_factory=dict)
    #: Whether it measures Warren, so that `--compare` can measure another checkout by it.
    warren: bool = False
    #: The other checkout.
    checkout: Path | None = None


@dataclass(frozen=True)
class Benchmark:
    """A question. Every variant runs once a round; ratios are to the `reference` of the same round."""

    question: str
    #: What is counted.
    unit: str
    #: A variant, or what a variant names; empty: there are no ratios.
    reference: str
    count: int
    quick_count: int
    variants: tuple[Variant, ...]
    #: One of the further figures, of which less is better, to compare by; empty: the rate.
    figure: str = ""
    #: How long all rounds take, on the two cores that it was written on.
    minutes: float = 4
    #: Whether a ratio is told as the change that it is: 0.85 as -15 %.
    as_change: bool = False

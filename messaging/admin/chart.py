"""The chart of the overview: lines of an SVG, and the same in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from messaging.monitoring.activity import Activity

#: The size of the drawing, in its own units.
WIDTH, HEIGHT = 600, 120
TONES = {"published": "waiting", "handled": "good", "failed": "bad"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line: its points as SVG has them, the sum of its numbers, and its tone (of `words.LOOKS`)."""

    name: str
    total: int
    points: str
    tone: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """What was done in the last `hours`. `most` is the largest number of a minute: the top of the drawing."""

    hours: int
    lines: Sequence[Line]
    most: str
    since: datetime
    until: datetime

    @property
    def is_empty(self) -> bool:
        """Whether nothing was done."""
        return not any(line.total for line in self.lines)


def chart_of(activity: Activity, hours: int) -> Chart:
    """Draw an activity."""
    minutes = activity.step.total_seconds() / 60
    return Chart(
        hours=hours,
        lines=[
            Line(name=name, total=sum(numbers), points=_points(numbers, activity.most), tone=TONES[name])
            for name, numbers in activity.lines.items()
        ],
        most=f"{activity.most / minutes:.{0 if activity.most >= 100 * minutes else 1}f}".removesuffix(".0"),
        since=activity.since,
        until=activity.until,
    )


def _points(numbers: Sequence[int], most: int) -> str:
    step = WIDTH / (len(numbers) - 1)
    heights = (HEIGHT - HEIGHT * number / max(most, 1) for number in numbers)
    return " ".join(f"{place * step:.1f},{height:.1f}" for place, height in enumerate(heights))

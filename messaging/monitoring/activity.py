"""Activity: what was published, handled and failed lately, minute by minute, from the counts of the processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db.models import Sum

from messaging.models import MinuteCount

What = MinuteCount.What
#: What is shown as one line: the counts that it sums.
LINES: dict[str, tuple[MinuteCount.What, ...]] = {
    "published": (What.PUBLISHED,),
    "handled": (What.HANDLED,),
    "failed": (What.FAILED, What.EFFECT_FAILED),
}
#: Minutes of a step, by the hours that are shown.
STEPS = {1: 1, 24: 10}


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """Numbers of equal steps, the oldest first, by the names in LINES."""

    since: datetime
    until: datetime
    step: timedelta
    lines: dict[str, Sequence[int]]

    @property
    def most(self) -> int:
        """The largest number of a step."""
        return max(max(numbers) for numbers in self.lines.values())


def activity(now: datetime, hours: int) -> Activity:
    """Return the activity of the last hours (a key of STEPS), up to the last step that is over at `now`."""
    step = timedelta(minutes=STEPS[hours])
    until = now - timedelta(minutes=now.minute % STEPS[hours], seconds=now.second, microseconds=now.microsecond)
    since = until - timedelta(hours=hours)
    lines = {name: [0] * (hours * 60 // STEPS[hours]) for name in LINES}
    names = {what.value: name for name, sums in LINES.items() for what in sums}
    rows = MinuteCount.objects.filter(minute__gte=since, minute__lt=until, what__in=names)
    for minute, what, number in rows.values_list("minute", "what").annotate(Sum("number")).order_by():
        lines[names[what]][(minute - since) // step] += number
    return Activity(since=since, until=until, step=step, lines=dict(lines))

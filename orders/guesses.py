"""Limits: on guessing, and on what costs money or tells something. A try counts before it is answered, so that parallel
ones do not slip under the limit."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta

from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from orders.models import Guess

#: How long a wrong try counts.
WINDOW = timedelta(minutes=15)
#: Old rows deleted at a time.
_SWEEP = 500


@dataclass(frozen=True, slots=True)
class Limit:
    """So many tries within so long."""

    most: int
    window: timedelta = WINDOW


class TooManyTries(Exception):
    """There were as many tries as are allowed, by the limit `key`. `wait` is the time after which one will be answered
    again."""

    def __init__(self, wait: timedelta, key: str = "") -> None:
        self.wait, self.key = wait, key
        super().__init__(
            f"There were too many wrong tries, so none is looked at for now. Try again in {self.in_words}."
        )

    @property
    def in_words(self) -> str:
        """The time to wait, rounded up: 2 minutes, 3 hours."""
        minutes = max(1, math.ceil(self.wait.total_seconds() / 60))
        number, unit = (minutes, "minute") if minutes < 120 else (math.ceil(minutes / 60), "hour")
        return f"{number} {unit}{'s' if number > 1 else ''}"


class Tries:
    """Tries that were counted, and whose answer is still to come."""

    def __init__(self, rows: Collection[Guess]) -> None:
        self._ids = [row.pk for row in rows]

    def were_right(self, *, forgive: Collection[str] = ()) -> None:
        """Take them off again; with them, earlier wrong ones of the keys to `forgive`."""
        Guess.objects.filter(pk__in=self._ids).delete()
        if forgive:
            Guess.objects.filter(key__in=forgive).delete()


def count(limits: Mapping[str, int] | Mapping[str, int | Limit] | Mapping[str, Limit]) -> Tries:
    """Count one try against each key, of which each allows so many wrong ones, within WINDOW unless its Limit says.

    Raises TooManyTries where one of them has had as many. A try that is refused is not counted: whoever goes on
    trying does not wait the longer.
    """
    _forget_old()
    named = {key: limit if isinstance(limit, Limit) else Limit(limit) for key, limit in limits.items()}
    with transaction.atomic():
        rows = Guess.objects.bulk_create([_row(key, limit) for key, limit in named.items()])
    # After the commit: of those that come together each sees all that came before.
    waits = {key: _wait(key, limit) for key, limit in named.items()}
    tries = Tries(rows)
    longest = max(waits, key=lambda key: waits[key], default="")
    if longest and waits[longest] > timedelta(0):
        tries.were_right()
        raise TooManyTries(waits[longest], longest)
    return tries


def is_counted(key: str) -> bool:
    """Whether a try counts against `key` that was not right, or whose answer is still to come."""
    return Guess.objects.filter(key=key, created_at__gt=timezone.now() - WINDOW).exists()


def _row(key: str, limit: Limit) -> Guess:
    return Guess(key=key, kept_until=timezone.now() + limit.window if limit.window > WINDOW else None)


def _wait(key: str, limit: Limit) -> timedelta:
    """Return how long `key`, this try included, is over its limit; zero where it is not."""
    now = timezone.now()
    times = list(
        Guess.objects.filter(key=key, created_at__gt=now - limit.window).order_by("created_at").values_list(
            "created_at", flat=True
        )
    )  # fmt: skip
    over = len(times) - limit.most
    return max(timedelta(seconds=1), times[over - 1] + limit.window - now) if over > 0 else timedelta(0)


def _forget_old() -> None:
    with transaction.atomic():
        # Skipping what another process deletes this very moment: two that delete the same rows would wait in a circle.
        now = timezone.now()
        over = Q(kept_until=None) | Q(kept_until__lte=now)
        old = Guess.objects.filter(over, created_at__lte=now - WINDOW).select_for_update(skip_locked=True)
        Guess.objects.filter(pk__in=[row.pk for row in old[:_SWEEP]]).delete()

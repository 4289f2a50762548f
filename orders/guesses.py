"""A limit on guessing. A try counts before it is answered, so that parallel ones do not slip under the limit."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from datetime import timedelta

from django.db import transaction
from django.utils import timezone

from orders.models import Guess

#: How long a wrong try counts.
WINDOW = timedelta(minutes=15)
#: Old rows deleted at a time.
_SWEEP = 500


class TooManyTries(Exception):
    """There were as many wrong tries as are allowed. `wait` is the time after which one will be answered again."""

    def __init__(self, wait: timedelta) -> None:
        self.wait = wait
        minutes = max(1, math.ceil(wait.total_seconds() / 60))
        super().__init__(
            "There were too many wrong tries, so none is looked at for now. "
            f"Try again in {minutes} minute{'s' if minutes > 1 else ''}."
        )


class Tries:
    """Tries that were counted, and whose answer is still to come."""

    def __init__(self, rows: Collection[Guess]) -> None:
        self._ids = [row.pk for row in rows]

    def were_right(self, *, forgive: Collection[str] = ()) -> None:
        """Take them off again; with them, earlier wrong ones of the keys to `forgive`."""
        Guess.objects.filter(pk__in=self._ids).delete()
        if forgive:
            Guess.objects.filter(key__in=forgive).delete()


def count(limits: Mapping[str, int]) -> Tries:
    """Count one try against each key, of which each allows so many wrong ones within WINDOW.

    Raises TooManyTries where one of them has had as many. A try that is refused is not counted: whoever goes on
    trying does not wait the longer.
    """
    _forget_old()
    with transaction.atomic():
        rows = Guess.objects.bulk_create([Guess(key=key) for key in limits])
    # After the commit: of those that come together each sees all that came before.
    wait = max((_wait(key, most) for key, most in limits.items()), default=timedelta(0))
    tries = Tries(rows)
    if wait > timedelta(0):
        tries.were_right()
        raise TooManyTries(wait)
    return tries


def _wait(key: str, most: int) -> timedelta:
    """Return how long `key`, this try included, is over its limit; zero where it is not."""
    now = timezone.now()
    times = list(
        Guess.objects.filter(key=key, created_at__gt=now - WINDOW).order_by("created_at").values_list(
            "created_at", flat=True
        )
    )  # fmt: skip
    over = len(times) - most
    return max(timedelta(seconds=1), times[over - 1] + WINDOW - now) if over > 0 else timedelta(0)


def _forget_old() -> None:
    with transaction.atomic():
        # Skipping what another process deletes this very moment: two that delete the same rows would wait in a circle.
        old = Guess.objects.filter(created_at__lte=timezone.now() - WINDOW).select_for_update(skip_locked=True)
        Guess.objects.filter(pk__in=[row.pk for row in old[:_SWEEP]]).delete()

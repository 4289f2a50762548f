"""Limits on guessing, and on what costs money or reveals something. All web processes share the count, in a table.

A try counts before it is answered: parallel tries cannot exceed a limit.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import reduce
from operator import or_

from django.conf import settings
from django.db import transaction
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from messaging.logs import get_logger
from orders.models import Guess

log = get_logger(__name__)

#: How long a wrong try counts, unless its limit says otherwise.
WINDOW = timedelta(minutes=15)
DAY = timedelta(days=1)
#: Old rows deleted at a time.
_DELETED_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Limit:
    """How many tries are allowed within a time."""

    most: int
    window: timedelta = WINDOW


class TooManyTries(Exception):
    """The limit on `key` is reached. After `wait` the next try is answered."""

    def __init__(self, wait: timedelta, key: str = "") -> None:
        self.wait, self.key = wait, key
        words = _("There were too many wrong tries, so none is looked at for now. Try again in %(wait)s.")
        super().__init__(words % {"wait": self.in_words})

    @property
    def in_words(self) -> str:
        """The time to wait, rounded up: 2 minutes, 3 hours."""
        minutes = max(1, math.ceil(self.wait.total_seconds() / 60))
        if minutes < 120:
            return ngettext("%(count)d minute", "%(count)d minutes", minutes) % {"count": minutes}
        hours = math.ceil(minutes / 60)
        return ngettext("%(count)d hour", "%(count)d hours", hours) % {"count": hours}


class Tries:
    """Tries that are counted, one for each key."""

    def __init__(self, rows: Collection[Guess]) -> None:
        self._ids = [row.pk for row in rows]

    def uncount(self, *, forgive: Collection[str] = ()) -> None:
        """Remove these tries from the count, and all earlier ones of the keys to `forgive`."""
        Guess.objects.filter(Q(pk__in=self._ids) | Q(key__in=forgive)).delete()


def count(limits: Mapping[str, Limit]) -> Tries:
    """Count one try against each key. The caller takes right ones off the count again.

    Raises TooManyTries if a key has reached its limit. A refused try does not count: trying on does not prolong the
    wait.
    """
    if not limits:
        return Tries([])
    now = timezone.now()
    with transaction.atomic():
        _delete_old(now)
        rows = Guess.objects.bulk_create(
            [Guess(key=key, created_at=now, kept_until=now + limit.window) for key, limit in limits.items()]
        )
    tries = Tries(rows)
    # After the commit: each of several tries at once sees all that came before.
    wait, key = max((wait, key) for key, wait in _waits(limits).items())
    if wait:
        tries.uncount()
        raise TooManyTries(wait, key)
    return tries


def is_counted(key: str) -> bool:
    """Return whether a try counts against `key`: it was wrong, or is not answered yet."""
    return Guess.objects.filter(key=key, created_at__gt=timezone.now() - WINDOW).exists()


def count_order(*, phone: str, visitor_key: str, address: str) -> Tries:
    """Count an order against its phone number, browser and address. Raises TooManyTries.

    Each order sends texts to a number that the visitor typed, and may earn a red packet. Call `uncount()` if no order
    was made. Commands are trusted and have no limit. Neither has an unknown address: all visitors would share it.
    """
    number = digest(phone)
    limits = {
        f"order-phone:{number}": Limit(settings.ORDERS_PER_PHONE),
        f"order-phone-day:{number}": Limit(settings.ORDERS_PER_PHONE_A_DAY, DAY),
        f"order-browser:{visitor_key}": Limit(settings.ORDERS_PER_BROWSER),
        f"order-address:{address}": Limit(settings.ORDERS_PER_ADDRESS if address else 0),
    }
    try:
        return count({key: limit for key, limit in limits.items() if limit.most})
    except TooManyTries as refusal:
        log.warning("order_limit_reached", limit=refusal.key.partition(":")[0], address=address)
        raise


def digest(text: str) -> str:
    """Return a short digest: keys must tell personal values apart, and not hold them."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _waits(limits: Mapping[str, Limit]) -> dict[str, timedelta]:
    """Return how long each key, this try included, stays over its limit; zero if it is not."""
    now = timezone.now()
    counted = [Q(key=key, created_at__gt=now - limit.window) for key, limit in limits.items()]
    tries = Guess.objects.filter(reduce(or_, counted)).order_by("created_at").values_list("key", "created_at")
    times: dict[str, list[datetime]] = {key: [] for key in limits}
    for key, at in tries:
        times[key].append(at)
    return {key: _wait(times[key], limit, now) for key, limit in limits.items()}


def _wait(times: Sequence[datetime], limit: Limit, now: datetime) -> timedelta:
    over = len(times) - limit.most
    return max(timedelta(seconds=1), times[over - 1] + limit.window - now) if over > 0 else timedelta(0)


def _delete_old(now: datetime) -> None:
    """Delete some rows that no longer count. Runs in the caller's transaction."""
    old = Guess.objects.filter(Q(kept_until=None, created_at__lte=now - WINDOW) | Q(kept_until__lte=now))
    # Rows that another process deletes at this moment are skipped: the two would wait for each other.
    rows = list(old.select_for_update(skip_locked=True).values_list("pk", flat=True)[:_DELETED_AT_ONCE])
    if rows:
        Guess.objects.filter(pk__in=rows).delete()

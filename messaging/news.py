"""News: a reason that lasts is logged when it begins, and again each minute, not at each of its many repeats.

What waits for a broker or a database looks again every second. A line for each look would drown the log; a line for the
first one alone is missed by whoever looks later.
"""

from __future__ import annotations

import math
import time

#: Seconds after which a reason that lasts is said again.
SAY_AGAIN = 60.0
#: Reasons that are remembered at most: their words may hold what changes from one time to the next.
REMEMBERED = 100


class News:
    """Which reasons were said, and when. Of one thread."""

    def __init__(self) -> None:
        #: By the monotonic clock.
        self._said_at: dict[str, float] = {}

    def is_due(self, reason: str) -> bool:
        """Whether `reason` is to be said now; it then counts as said."""
        now = time.monotonic()
        if now - self._said_at.get(reason, -math.inf) < SAY_AGAIN:
            return False
        if len(self._said_at) >= REMEMBERED:
            self._said_at.clear()
        self._said_at[reason] = now
        return True

    def forget(self) -> bool:
        """What comes from here on is new: it was well in between. Return whether anything had been said."""
        had_said = bool(self._said_at)
        self._said_at.clear()
        return had_said

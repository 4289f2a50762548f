"""News: a reason that lasts is logged when it begins, and again each minute, not at each of its many repeats."""

from __future__ import annotations

import math
import time

#: Seconds after which a reason that lasts is said again.
SAY_AGAIN = 60.0


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
        self._said_at[reason] = now
        return True

    def forget(self) -> None:
        """What comes from here on is new: it was well in between."""
        self._said_at.clear()

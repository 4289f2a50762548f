"""When to try again, or never."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import timedelta

from messaging.exceptions import Reject, RetryLater, Undecodable


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often a failing message is tried, and how long it rests in between.

    The pause doubles from `first_delay` up to `max_delay`; `jitter` (a share, 0 to 1) spreads it both ways,
    so that messages that failed together do not come back together. The defaults give 10 attempts over
    about an hour and a half.
    """

    max_attempts: int = 10
    first_delay: timedelta = timedelta(seconds=10)
    max_delay: timedelta = timedelta(minutes=30)
    jitter: float = 0.2

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError("max_attempts counts the first attempt too: it is at least 1")
        if not 0 <= self.jitter <= 1:
            raise ValueError("jitter is a share between 0 and 1")
        if self.first_delay <= timedelta(0) or self.max_delay < self.first_delay:
            raise ValueError("delays are positive, and max_delay is at least first_delay")

    def delay_after(self, attempt: int, error: BaseException) -> timedelta | None:
        """Return how long to rest after `attempt` (from 1) failed with `error`; None means dead."""
        if isinstance(error, Reject | Undecodable) or attempt >= self.max_attempts:
            return None
        if isinstance(error, RetryLater):
            return max(error.after, timedelta(0))
        # 2**30 s is decades: a larger power would only overflow.
        pause: timedelta = min(self.first_delay * 2 ** min(attempt - 1, 30), self.max_delay)
        return pause * random.uniform(1 - self.jitter, 1 + self.jitter)  # noqa: S311  (spreading, not secrecy)

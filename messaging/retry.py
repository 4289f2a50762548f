"""When to try again, or never."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from messaging.exceptions import Reject, RetryLater, Undecodable
from messaging.logs import get_logger
from messaging.validation import functions

log = get_logger(__name__)

#: Longest pause or timeout. A database could not store the end of a much longer one.
LONGEST = timedelta(days=365)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often a failing message is tried, and how long it pauses in between.

    The pause doubles from `first_delay` up to `max_delay`; `jitter` (a share, 0 to 1) spreads it both ways. The
    defaults give 10 attempts over about an hour and a half. A subclass may override `delay_after`.
    """

    max_attempts: int = 10
    first_delay: timedelta = timedelta(seconds=10)
    max_delay: timedelta = timedelta(minutes=30)
    jitter: float = 0.2

    def __post_init__(self) -> None:
        if not isinstance(self.max_attempts, int) or self.max_attempts < 1:
            raise ValueError("max_attempts counts the first attempt too: it is a whole number, at least 1")
        if not isinstance(self.jitter, int | float) or not 0 <= self.jitter <= 1:
            raise ValueError("jitter is a share between 0 and 1")
        if not (_is_limit(self.first_delay) and _is_limit(self.max_delay) and self.first_delay <= self.max_delay):
            raise ValueError(
                "first_delay and max_delay are positive times, such as timedelta(seconds=10), of a year at most, and "
                "max_delay is at least first_delay"
            )

    def delay_after(self, attempt: int, error: BaseException) -> timedelta | None:
        """Return how long to pause after `attempt` (from 1) failed with `error`; None means dead."""
        if isinstance(error, Reject | Undecodable) or attempt >= self.max_attempts:
            return None
        if isinstance(error, RetryLater) and (asked := _time(getattr(error, "after", None))) is not None:
            return asked
        # 2**30 s is decades: a larger power would only overflow.
        pause: timedelta = min(self.first_delay * 2 ** min(attempt - 1, 30), self.max_delay)
        return pause * random.uniform(1 - self.jitter, 1 + self.jitter)  # noqa: S311  (spreading, not secrecy)


def rest_after(policy: RetryPolicy, attempt: int, error: BaseException) -> timedelta | None:
    """Return `policy.delay_after(…)`. If a project's own policy raises or returns no time, its numbers count."""
    try:
        rest: object = policy.delay_after(attempt, error)
        functions.require_run(rest, "delay_after")
        if rest is None:
            return None
        if isinstance(rest, timedelta):
            return _bounded(rest)
        raise TypeError(f"delay_after returned {functions.kind_of(rest)}; it returns a timedelta, or None to give up")
    except BaseException:
        log.exception("retry.policy_failed", policy=type(policy).__name__, attempt=attempt)
        return RetryPolicy.delay_after(policy, attempt, error)


def check_times(what: str, timeout: object, retry: object = None) -> None:
    """Raise ImproperlyConfigured for a `timeout` or `retry` of the declaration `what` that cannot be used."""
    if timeout is not None and not _is_limit(timeout):
        raise ImproperlyConfigured(f"{what}: timeout is a positive time, such as timedelta(seconds=30)")
    if retry is not None and not isinstance(retry, RetryPolicy):
        raise ImproperlyConfigured(f"{what}: retry is a RetryPolicy, such as RetryPolicy(max_attempts=5)")
    if retry is not None:
        functions.check_runs(retry.delay_after, f"delay_after of the retry policy of {what}")


def _is_limit(value: object) -> bool:
    """Whether `value` can be a pause or timeout: a positive time of a year at most."""
    return isinstance(value, timedelta) and timedelta(0) < value <= LONGEST


def _time(after: Any) -> timedelta | None:
    """Return the pause that a RetryLater asks for; None if it names none. A number means seconds."""
    if isinstance(after, timedelta):
        return _bounded(after)
    if isinstance(after, int | float) and not isinstance(after, bool) and not math.isnan(after):
        return timedelta(seconds=max(0.0, min(after, LONGEST.total_seconds())))
    return None


def _bounded(rest: timedelta) -> timedelta:
    return max(timedelta(0), min(rest, LONGEST))

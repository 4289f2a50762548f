"""When a failing message comes again, and when never."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messaging.exceptions import Reject, RetryLater, Undecodable
from messaging.retry import LONGEST, RetryPolicy, rest_after

STEADY = RetryPolicy(
    max_attempts=6, first_delay=timedelta(seconds=10), max_delay=timedelta(seconds=60), jitter=0
)  # fmt: skip
BROKEN = ValueError("broken")


@pytest.mark.parametrize(
    ("attempt", "error", "rest"),
    [
        *[(attempt, BROKEN, rest) for attempt, rest in enumerate([10, 20, 40, 60, 60, None], 1)],
        (1, Reject("no such order"), None),
        (1, Undecodable("not JSON"), None),
        (1, RetryLater(after=timedelta(hours=3)), 3 * 3600),
        (1, RetryLater(after=timedelta(seconds=-5)), 0),
        (6, RetryLater(after=timedelta(hours=3)), None),
        (1, RetryLater(after=5), 5),
        (1, RetryLater(after=0.5), 0.5),
        (1, RetryLater(after=float("inf")), LONGEST.total_seconds()),
        *[(1, RetryLater(after=odd), 10) for odd in (None, "5", float("nan"), True)],
    ],
    ids=str,
)
def test_the_pause_doubles_up_to_its_cap_unless_the_error_decides(
    attempt: int, error: Exception, rest: float | None
) -> None:
    pause = STEADY.delay_after(attempt, error)
    assert pause == (rest if rest is None else timedelta(seconds=rest))


@given(attempt=st.integers(1, 2**31), jitter=st.floats(0, 1))
def test_jitter_spreads_both_ways_within_its_share(attempt: int, jitter: float) -> None:
    policy = RetryPolicy(max_attempts=2**32, first_delay=timedelta(seconds=1), jitter=jitter)
    steady = min(2.0 ** min(attempt - 1, 30), 1800.0)
    pause = policy.delay_after(attempt, BROKEN)
    assert pause is not None
    assert steady * (1 - jitter) - 0.001 <= pause.total_seconds() <= steady * (1 + jitter) + 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Odd(RetryPolicy):
    """A policy of a project's own."""

    answer: Any = None

    def delay_after(self, attempt: int, error: BaseException) -> timedelta | None:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer  # type: ignore[no-any-return]


@pytest.mark.parametrize("answer", [5, "soon", True, float("nan"), RuntimeError()])
def test_the_numbers_of_a_custom_policy_count_if_it_returns_no_time(answer: Any) -> None:
    policy = Odd(answer=answer, max_attempts=2, first_delay=timedelta(seconds=3), jitter=0)

    assert rest_after(policy, 1, BROKEN) == timedelta(seconds=3)
    assert rest_after(policy, 2, BROKEN) is None


@pytest.mark.parametrize(("answer", "rest"), [(timedelta.max, LONGEST), (timedelta(-1), timedelta(0)), (None, None)])
def test_the_pause_of_a_custom_policy_is_bounded(answer: timedelta | None, rest: timedelta | None) -> None:
    assert rest_after(Odd(answer=answer), 1, BROKEN) == rest


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_attempts": 0}, {"max_attempts": 2.5}, {"max_attempts": "3"}, {"jitter": -0.1}, {"jitter": 1.1},
        {"jitter": float("nan")}, {"jitter": "0"}, {"first_delay": timedelta(0)}, {"first_delay": 5},
        {"max_delay": timedelta.max}, {"first_delay": timedelta(minutes=2), "max_delay": timedelta(minutes=1)},
    ],
    ids=str,
)  # fmt: skip
def test_a_policy_that_cannot_be_used_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RetryPolicy(**wrong)

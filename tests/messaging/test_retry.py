"""When a failing message comes again, and when never."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messaging.exceptions import Reject, RetryLater, Undecodable
from messaging.retry import RetryPolicy

STEADY = RetryPolicy(
    max_attempts=6, first_delay=timedelta(seconds=10), max_delay=timedelta(seconds=60), jitter=0
)  # fmt: skip
BROKEN = ValueError("broken")


def test_the_pause_doubles_up_to_its_cap_and_the_last_attempt_is_the_last() -> None:
    pauses = [STEADY.delay_after(attempt, BROKEN) for attempt in range(1, 7)]
    assert [pause and pause.total_seconds() for pause in pauses] == [10, 20, 40, 60, 60, None]


def test_one_attempt_means_no_retry() -> None:
    assert RetryPolicy(max_attempts=1).delay_after(1, BROKEN) is None


@pytest.mark.parametrize("error", [Reject("no such order"), Undecodable("not JSON")])
def test_what_can_never_succeed_is_dead_at_once(error: Exception) -> None:
    assert STEADY.delay_after(1, error) is None


def test_a_handler_says_itself_how_much_later() -> None:
    assert STEADY.delay_after(1, RetryLater(after=timedelta(hours=3))) == timedelta(hours=3)
    assert STEADY.delay_after(1, RetryLater(after=timedelta(seconds=-5))) == timedelta(0)


def test_later_is_not_for_ever() -> None:
    assert STEADY.delay_after(6, RetryLater(after=timedelta(hours=3))) is None


@given(attempt=st.integers(1, 2**31), jitter=st.floats(0, 1))
def test_jitter_spreads_both_ways_within_its_share(attempt: int, jitter: float) -> None:
    policy = RetryPolicy(max_attempts=2**32, first_delay=timedelta(seconds=1), jitter=jitter)
    steady = min(2.0 ** min(attempt - 1, 30), 1800.0)
    pause = policy.delay_after(attempt, BROKEN)
    assert pause is not None
    assert steady * (1 - jitter) - 0.001 <= pause.total_seconds() <= steady * (1 + jitter) + 0.001


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_attempts": 0},
        {"jitter": -0.1},
        {"jitter": 1.1},
        {"first_delay": timedelta(0)},
        {"first_delay": timedelta(minutes=2), "max_delay": timedelta(minutes=1)},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        RetryPolicy(**wrong)

"""Waiting for what other processes do: for a condition, with a deadline, never for luck."""

import inspect
import time
from collections.abc import Callable
from typing import TypeVar

from django.db import connection

Result = TypeVar("Result")


def eventually(
    condition: Callable[[], Result],
    within: float = 15,
    *,
    every: float = 0.02,
    report: Callable[[], object] | None = None,
) -> Result:
    """Call `condition` every `every` seconds until it returns something true, and return that.

    An `AssertionError` inside counts as not yet; another exception is let through. After `within` seconds an
    `AssertionError` says what was awaited, what was there instead, and what `report()` returns.
    """
    deadline = time.monotonic() + within
    while True:
        try:
            result = condition()
            if result:
                return result
            found = f"it returned {result!r}"
        except AssertionError as error:
            found = f"it failed with: {error}"
        if time.monotonic() > deadline:
            more = f"\n{report()}" if report else ""
            raise AssertionError(f"Not within {within:g} s: {_source(condition)}\nThe last time {found}{more}")
        time.sleep(every)


def seconds_pass(seconds: float) -> None:
    """Let time pass: a fault lasts, or something must not happen meanwhile. Not for what may take so long."""
    time.sleep(seconds)


def locks_waited_for() -> int:
    """How many sessions of PostgreSQL wait for a lock that another one has."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
        return int(cursor.fetchone()[0])


def _source(condition: Callable[[], object]) -> str:
    try:
        return " ".join(inspect.getsource(condition).split())
    except (OSError, TypeError):
        return repr(condition)

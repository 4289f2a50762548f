"""Callbacks of `on_commit`: functions of the project that run once a transaction of ours has committed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from messaging.validation import functions

#: Receives the name of a callback that failed, and its error.
Failed = Callable[[str, BaseException], None]


class RaisesNothing:
    """Parent of classes that register one of their methods with `on_commit`; the method raises nothing."""


@dataclass(frozen=True, slots=True)
class _Guarded(RaisesNothing):
    callback: Callable[[], Any]
    failed: Failed

    def call(self) -> None:
        """Call it; not even SystemExit is raised."""
        try:
            self.callback()
        except BaseException as error:
            self.failed(functions.name(self.callback), error)


def guard(hooks: list[Any], failed: Failed, *, since: int = 0) -> None:
    """Guard the callbacks of a connection's `run_on_commit` from place `since` on: if one raises, `failed` is called,
    and those after it still run, as the transaction has committed."""
    for place, (savepoints, callback, robust) in enumerate(hooks[since:], since):
        if not isinstance(getattr(callback, "__self__", None), RaisesNothing):
            hooks[place] = (savepoints, _Guarded(callback, failed).call, robust)

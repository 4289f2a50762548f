"""Housekeeping for Celery: each task calls the function that its command calls. No message travels through Celery."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from typing import Any

from celery import shared_task

from messaging import consumers
from messaging.actions import prune, replay
from messaging.actions.selection import Wanted
from messaging.exceptions import ReplayStopped
from messaging.reconcile.findings import Trouble
from messaging.reconcile.reconcile import reconcile
from messaging.worker.sweep import sweep


@shared_task(name="messaging.prune")  # type: ignore[untyped-decorator]
def prune_messages() -> dict[str, int]:
    """Delete what is finished and old; return the counts."""
    return asdict(prune.prune())


@shared_task(name="messaging.sweep")  # type: ignore[untyped-decorator]
def sweep_effects() -> dict[str, int]:
    """Look after effects and messages that wait, for consumers that have no process running; return the counts."""
    return asdict(sweep(consumers.registered()))


@shared_task(name="messaging.replay")  # type: ignore[untyped-decorator]
def replay_messages(
    *,
    by: str,
    note: str = "",
    canary: int = 0,
    rate: float | None = None,
    max_failures: float = replay.MAX_FAILURES,
    since: float | None = None,
    **wanted: Any,
) -> dict[str, Any]:
    """Replay the dead messages that `wanted` says (as `Wanted`; `since` in seconds), for the person `by`; return what
    came of it. Delivered again, it goes on where it was.

    Raises ValueError where nothing is said, and ReplayStopped where too many failed again, or the canary did not end in
    time: so the task is no success.
    """
    which = Wanted(since=timedelta(seconds=since) if since is not None else None, **wanted)
    if which.is_everything:
        raise ValueError("say which messages to replay")
    pace = replay.Pace(canary=canary, rate=rate, max_failures=max_failures)
    result = replay.replay(which, by=by, note=note, pace=pace)
    if result.stopped:
        raise ReplayStopped(f"{result.replayed} replayed. {result.ending}")
    return asdict(result)


@shared_task(name="messaging.reconcile")  # type: ignore[untyped-decorator]
def reconcile_messages() -> dict[str, int]:
    """Name what was lost, doubled or is stuck, and send again what was lost; return the counts."""
    # It comes each minute: what was handled twice is found ten times over.
    report = reconcile(repair=True, by="celery", lately=timedelta(minutes=10))
    return {**{trouble.value: len(report.of(trouble)) for trouble in Trouble}, "sent again": report.sent_again}

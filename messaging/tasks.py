"""Tasks for Celery: one for each action, and two more for housekeeping. No message travels through Celery."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from datetime import timedelta
from typing import Any

from celery import shared_task

from messaging import actions, consumers
from messaging.actions.action import Action, MessageAction
from messaging.actions.selection import Selection
from messaging.exceptions import ReplayStopped
from messaging.reconcile.findings import Trouble
from messaging.reconcile.reconcile import reconcile
from messaging.worker import effect_runner, ordering


def make(action: Action) -> Callable[..., dict[str, Any]]:
    """Return the task of an action, called `messaging.<name>`.

    It is given the fields of `Selection` (`since` in seconds), the action's options, and `by` and `note` for the audit
    log; it returns the counts. It raises TypeError for any other keyword, ValueError where it is not said which
    messages, and ReplayStopped where the action ended early: such a task has failed.
    """
    choices = [field.name for field in fields(Selection)] if isinstance(action, MessageAction) else []

    def run(*, by: str = "celery", note: str = "", **told: Any) -> dict[str, Any]:
        chosen = {name: told.pop(name) for name in choices if name in told}
        if chosen.get("since") is not None:
            chosen["since"] = timedelta(seconds=chosen["since"])
        selection = Selection(**chosen)
        if choices and selection.is_everything:
            raise ValueError("say which messages")
        result = action.run(selection, by=by, note=note, **told)
        if result.stopped:
            raise ReplayStopped(f"{result.text} {result.stopped}".lstrip())
        return result.facts

    task: Callable[..., dict[str, Any]] = shared_task(name=f"messaging.{action.name}")(run)
    return task


# Celery has no types: hence the ignored errors below.

#: The tasks that are made of actions, by the action's name.
of_actions = {name: make(action) for name, action in actions.ACTIONS.items()}


@shared_task(name="messaging.run_effects")  # type: ignore[untyped-decorator]
def run_effects() -> dict[str, int]:
    """Carry out effects and send messages that are overdue at consumers without a running process; return the
    counts."""
    every = consumers.registered()
    released, _ = ordering.release_due(every)
    return {"effects": effect_runner.run_all_due(every), "released": released}


@shared_task(name="messaging.sweep")  # type: ignore[untyped-decorator]
def run_effects_by_former_name() -> dict[str, int]:
    """Do the same: the schedules of earlier versions have this name."""
    counts: dict[str, int] = run_effects()
    return counts


@shared_task(name="messaging.reconcile")  # type: ignore[untyped-decorator]
def reconcile_messages() -> dict[str, int]:
    """Find messages that were lost, handled twice or are stuck, and send lost ones again; return the counts."""
    # It runs each minute: ten minutes back is enough for what was handled twice.
    report = reconcile(repair=True, by="celery", lately=timedelta(minutes=10))
    return {**{trouble.value: len(report.of(trouble)) for trouble in Trouble}, "sent again": report.sent_again}

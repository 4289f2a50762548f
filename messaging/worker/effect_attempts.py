"""The attempts at an effect that did not simply succeed: each has a row of its own, with what the outside answered."""

from __future__ import annotations

import uuid

from messaging.models import Effect, EffectAttempt
from messaging.validation.texts import storable_text

State = Effect.State
Outcome = EffectAttempt.Outcome

#: The outcome of an attempt, by the state in which it left the effect.
_OUTCOMES = {
    State.INTENDED: Outcome.NOT_DONE,
    State.FAILED: Outcome.FAILED,
    State.SENDING: Outcome.DOUBTFUL,
    State.UNKNOWN: Outcome.UNKNOWN,
}


def record(row: Effect, state: Effect.State, error: str) -> None:
    """Write down an attempt's result, unless it succeeded; once for each time the effect was taken."""
    if state in _OUTCOMES:
        write(row, _OUTCOMES[state], error)


def record_late(row: Effect, state: Effect.State, error: str, reference: str) -> None:
    """Write down an answer that came too late to count: it may show that something was done twice."""
    if row.token is None or row.failed_attempts.filter(token=row.token, error=storable_text(error)).exists():
        return  # it was written in time, and the connection was lost after that commit
    write(row, _OUTCOMES.get(state, Outcome.DONE_LATE), f"too late to count: {error or reference or 'done'}")


def record_before_settling(row: Effect) -> None:
    """Write down the error of an effect that is about to be settled, if no attempt has it, and no person wrote it.

    Such an effect failed under a version of Warren that kept no attempts; settling overwrites its error.
    """
    if row.given_up or not row.error or row.failed_attempts.filter(error=row.error).exists():
        return
    row.failed_attempts.create(
        token=uuid.uuid4(),
        number=row.attempts,
        outcome=_OUTCOMES[State(row.state)],
        error=row.error,
        finished_at=row.changed_at,
    )


def write(row: Effect, outcome: EffectAttempt.Outcome, error: str, *, replace: bool = True) -> None:
    """Write the row of the attempt that `row` was taken for. An existing one is replaced, or left."""
    if row.token is None:
        return
    attempt = EffectAttempt(
        effect=row, token=row.token, number=row.attempts, outcome=outcome, error=storable_text(error)
    )
    if replace:
        EffectAttempt.objects.bulk_create(
            [attempt],
            update_conflicts=True,
            unique_fields=["effect", "token"],
            update_fields=["outcome", "error", "finished_at"],
        )
    else:
        EffectAttempt.objects.bulk_create([attempt], ignore_conflicts=True)

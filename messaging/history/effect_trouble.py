"""What is wrong with an effect: the same words and rows in `mq status`, lists, failure groups and reconcile."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum

from django.db.models import Q

from messaging import database
from messaging.models import Effect

#: Seconds after which an effect that no process carries out is overdue, unless the caller names others.
OVERDUE = 60.0


class EffectTrouble(StrEnum):
    """What is wrong with an effect, worst first. One effect may have several troubles."""

    UNKNOWN = "unknown"
    FAILED = "failed"
    #: An attempt failed, and another one follows.
    FAILING = "failing"
    #: Due, and no process carries it out.
    OVERDUE = "overdue"

    @property
    def words(self) -> str:
        """Its meaning, to follow "effects that"."""
        return _WORDS[self]

    @property
    def which(self) -> Q:
        """The effects that have it."""
        return {
            EffectTrouble.UNKNOWN: Q(state=Effect.State.UNKNOWN),
            EffectTrouble.FAILED: Q(state=Effect.State.FAILED, given_up=False),
            EffectTrouble.FAILING: Effect.FAILING,
        }.get(self) or overdue(OVERDUE)


_WORDS = {
    EffectTrouble.UNKNOWN: "have an unknown outcome",
    EffectTrouble.FAILED: "failed for good",
    EffectTrouble.FAILING: "failed and are to be tried again",
    EffectTrouble.OVERDUE: "are overdue",
}


def overdue(seconds: float) -> Q:
    """Return the filter for effects that have been due for longer than this and were not carried out."""
    before = database.in_future(-seconds)
    return Q(state=Effect.State.INTENDED, send_at__lt=before) | Q(state=Effect.State.SENDING, sending_until__lt=before)


def is_overdue(effect: Effect) -> bool:
    """Whether one effect has been due for longer than OVERDUE, by this machine's clock."""
    due = {Effect.State.INTENDED.value: effect.send_at, Effect.State.SENDING.value: effect.sending_until}
    since = due.get(effect.state)
    return since is not None and since < datetime.now(UTC) - timedelta(seconds=OVERDUE)


def failed_attempts(effect: Effect) -> str:
    """Say how many attempts failed: "3 attempts failed"."""
    return "1 attempt failed" if effect.attempts == 1 else f"{effect.attempts} attempts failed"


def first_trouble(effect: Effect) -> EffectTrouble | None:
    """Return the worst trouble that the row itself shows, whatever the time; None if it shows none."""
    if effect.state == Effect.State.UNKNOWN:
        return EffectTrouble.UNKNOWN
    if effect.state == Effect.State.FAILED and not effect.given_up:
        return EffectTrouble.FAILED
    return EffectTrouble.FAILING if effect.is_failing else None

"""Settle: a person says what became of an effect that nobody knows of, or what shall become of one."""

from __future__ import annotations

from enum import StrEnum

from messaging import database
from messaging.actions import audit
from messaging.logs import get_logger
from messaging.models import Effect
from messaging.validation import texts
from messaging.validation.texts import storable_text
from messaging.worker import ledger
from messaging.worker.ledger import Result

log = get_logger(__name__)

State = Effect.State


class Verdict(StrEnum):
    """What a person says about an effect."""

    #: It was done.
    DONE = "done"
    #: It was not done, and is carried out again.
    NOT_DONE = "not done"
    #: It was not done, or may not have been, and nobody tries again.
    GIVE_UP = "give up"


#: Which states each verdict is for. What is *sending* has somebody at it, who will know.
SETTLES: dict[Verdict, tuple[Effect.State, ...]] = {
    Verdict.DONE: (State.UNKNOWN, State.FAILED),
    Verdict.NOT_DONE: (State.UNKNOWN, State.FAILED),
    Verdict.GIVE_UP: (State.UNKNOWN, State.INTENDED, State.FAILED),
}


def find(name: str) -> Effect | None:
    """Return the effect of that id or key (message id:consumer:name), if there is one."""
    name = storable_text(name)
    if name.isascii() and name.isdigit() and len(name) < 19:
        return Effect.objects.filter(pk=int(name)).first()
    rest, _, effect = name.rpartition(":")
    message_id, _, consumer = rest.rpartition(":")
    return Effect.objects.filter(message_id=message_id, consumer=consumer, name=effect).first()


def settle(effect: Effect, verdict: Verdict, *, by: str, reference: str = "", note: str = "") -> bool:
    """Settle an effect; return whether its state was still one that can be settled so.

    `reference` is what the outside calls it; `by` is who says so, and `note` how they know.

    Raises ValueError for a reference that cannot be kept whole.
    """
    texts.checked("reference", reference)
    words = f"settled by {by}{f': {note}' if note else ''}"
    with database.atomic():
        settled = ledger.settle(effect.pk, was=SETTLES[verdict], result=_result(verdict, reference, words))
        audit.record(
            audit.Action.SETTLE,
            actor=by,
            about=f"effect {effect.key}",
            message_ids=[effect.message_id] if settled else [],
            verdict=verdict.value,
            reference=reference,
            note=note,
        )
    if settled:
        log.info("effect.settled", effect=effect.name, message_id=effect.message_id, verdict=verdict.value)
    return settled


def _result(verdict: Verdict, reference: str, words: str) -> Result:
    match verdict:
        case Verdict.DONE:
            return Result(state=State.DONE, reference=reference, error=words)
        case Verdict.NOT_DONE:
            return Result(state=State.INTENDED)
        case Verdict.GIVE_UP:
            return Result(state=State.FAILED, error=f"given up; {words}")

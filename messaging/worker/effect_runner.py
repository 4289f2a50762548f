"""The effect runner: carries out effects, several at once, each within its time, and writes down the results."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from datetime import timedelta
from decimal import Decimal
from functools import partial

from django.db import connections
from django.db.models import Q

from messaging import effects
from messaging.consumers import Consumer
from messaging.effects import Sending
from messaging.exceptions import NotDone, Reject, RetryLater
from messaging.logs import get_logger
from messaging.models.counts import MinuteCount, counting
from messaging.retry import rest_after
from messaging.validation import functions
from messaging.worker import ledger
from messaging.worker.database_wait import DatabaseWait
from messaging.worker.inbox import describe
from messaging.worker.ledger import AttemptResult, Claimed, State

log = get_logger(__name__)

What = MinuteCount.What

#: Effects that run, and are therefore claimed, at a time: the time of each begins with its claim.
PARALLEL = 8
#: How long an effect rests if no thread could be started for it.
NOT_BEGUN_REST = timedelta(seconds=5)


def run_all_due(consumers: Sequence[Consumer], stopping: threading.Event | None = None) -> int:
    """Carry out every effect of these consumers that is due, and return how many there were.

    May run several times at once: each effect is claimed by one. With `stopping` set it ends after the effects that
    run. If the database fails after effects were carried out, it is waited for (until `stopping`): only this process
    knows the results. Raises DatabaseError if none can be claimed.
    """
    which = Q(consumer__in=[consumer.name for consumer in consumers])
    wait = DatabaseWait("effects", stopping or threading.Event())
    return _run_due(wait, lambda: ledger.claim(which, PARALLEL))


def run_of(consumer: str, message_ids: Collection[str], wait: DatabaseWait) -> None:
    """Carry out the effects of these messages that are due. Until `wait` is told to stop the database is waited for."""
    which = Q(consumer=consumer, message_id__in=message_ids)
    _run_due(wait, lambda: wait.run(lambda: ledger.claim(which, PARALLEL)) or [])


def _run_due(wait: DatabaseWait, claim: Callable[[], list[Claimed]]) -> int:
    done = 0
    full = bool(effects.registered())
    while full:
        claimed = claim()
        if claimed:
            wait.run(partial(ledger.note, carry_out(claimed)))
        done += len(claimed)
        full = len(claimed) == PARALLEL and not wait.stopping.is_set()
    return done


def carry_out(claimed: Sequence[Claimed]) -> list[tuple[Claimed, AttemptResult]]:
    """Carry out what was claimed, all at once, and return the results. Touches no row.

    Never raises for what the outside does, and never takes longer than the effects' timeouts: a call that does not
    return is abandoned, and its effect is doubtful. An effect that cannot begin in time does not begin: others may
    take it for abandoned by then.
    """
    calls = [_Call(each) for each in claimed]
    results = [(call.claimed, call.result()) for call in calls]
    for each, result in results:
        _log(each, result)
    return results


class _Call:
    """One effect's function on a thread of its own: in no other way is it sure that the caller goes on in time."""

    def __init__(self, claimed: Claimed) -> None:
        self.claimed = claimed
        self._result: AttemptResult | None = None
        self._thread = threading.Thread(target=self._run, name=f"effect-{claimed.row.pk}", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            self._result = _not_begun(claimed, error)

    def result(self) -> AttemptResult:
        if self._result is not None:
            return self._result
        self._thread.join(max(0.0, self.claimed.deadline - time.monotonic()))
        if self._result is not None:
            return self._result
        return _doubtful(
            self.claimed, TimeoutError(f"no answer within {self.claimed.kind.timeout.total_seconds():g} s")
        )

    def _run(self) -> None:
        try:
            self._result = _attempt(self.claimed)
        finally:
            connections.close_all()


def _attempt(claimed: Claimed) -> AttemptResult:
    kind, doubtful = claimed.kind, claimed.doubtful
    try:
        if doubtful and not kind.honours_keys() and kind.ask is not None:
            found = _found(kind.ask(_sending(claimed)))
            if found is not None:
                return AttemptResult(state=State.DONE, reference=found)
            doubtful = False
        answer: object = kind.send(_sending(claimed))
        functions.require_run(answer, "the effect's function")
        return AttemptResult(state=State.DONE, reference=_reference(claimed, answer))
    except (Reject, NotDone, RetryLater) as error:
        return _doubtful(claimed, error) if doubtful else _not_done(claimed, error)
    except BaseException as error:
        return _doubtful(claimed, error)


def _found(answer: object) -> str | None:
    """Return the answer of `ask`: the outside's reference of what was done, or None if it surely was not.

    Raises TypeError for an answer that does not tell: False, zero and an empty text are ambiguous.
    """
    functions.require_run(answer, "`ask`")
    if answer is None:
        return None
    named = isinstance(answer, str | int | uuid.UUID) and not isinstance(answer, bool)
    if not named or not answer:
        raise TypeError(
            f"`ask` returned {answer!r:.60}, which does not tell whether it was done: it returns the reference as text "
            "if it was, and None if it surely was not"
        )
    return functions.text_of(answer)


def _reference(claimed: Claimed, answer: object) -> str:
    """Return what the ledger keeps of an effect's answer. Never raises: the effect was done, whatever the answer."""
    if answer is None:
        return ""
    if isinstance(answer, bytes):
        return answer.decode(errors="replace")
    if not isinstance(answer, str | int | float | Decimal | uuid.UUID) or isinstance(answer, bool):
        log.warning(
            "effect.odd_answer",
            effect=claimed.row.name,
            message_id=claimed.row.message_id,
            reason=f"its function returned {functions.kind_of(answer)}; it returns the reference as text, or None",
        )
    return functions.text_of(answer)


def _not_done(claimed: Claimed, error: BaseException) -> AttemptResult:
    rest = rest_after(claimed.kind.retry, claimed.row.attempts, error)
    if rest is None:
        return AttemptResult(state=State.FAILED, error=describe(error))
    return AttemptResult(state=State.INTENDED, error=describe(error), rest=rest)


def _not_begun(claimed: Claimed, error: BaseException) -> AttemptResult:
    """No thread could be started: the effect stays as it was, whatever its retry policy says."""
    state = State.SENDING if claimed.doubtful else State.INTENDED
    return AttemptResult(state=state, error=f"not begun: {error}", rest=NOT_BEGUN_REST)


def _doubtful(claimed: Claimed, error: BaseException) -> AttemptResult:
    """It may have been done: it stays *sending* until it is asked for or repeated, or becomes *unknown*."""
    rest = rest_after(claimed.kind.retry, claimed.row.attempts, error)
    if rest is None or not claimed.kind.can_repeat:
        return AttemptResult(state=State.UNKNOWN, error=describe(error))
    return AttemptResult(state=State.SENDING, error=describe(error), rest=rest)


def _sending(claimed: Claimed) -> Sending:
    """Return what the effect's function gets. Raises NotDone if too little of its time is left to begin."""
    row, left = claimed.row, claimed.deadline - time.monotonic()
    if left < claimed.kind.timeout.total_seconds() / 2:
        raise NotDone("its time was over before it began")
    return Sending(
        key=row.key,
        payload=row.payload,
        attempt=row.attempts,
        timeout=left,
        message_id=row.message_id,
    )


_EVENTS = {
    State.DONE: "effect.done",
    State.INTENDED: "effect.again",
    State.SENDING: "effect.doubtful",
    State.FAILED: "effect.failed",
    State.UNKNOWN: "effect.unknown",
}


def _log(claimed: Claimed, result: AttemptResult) -> None:
    row = claimed.row
    about = log.bind(effect=row.name, message_id=row.message_id, consumer=row.consumer, attempt=row.attempts)
    counting.add(What.EFFECT_DONE if result.state == State.DONE else What.EFFECT_FAILED, row.consumer)
    if result.state == State.DONE:
        about.info(_EVENTS[result.state])
    else:
        about.warning(_EVENTS[result.state], reason=result.error, rest_seconds=round(result.rest.total_seconds(), 1))

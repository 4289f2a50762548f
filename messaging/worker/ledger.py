"""The ledger of effects: what was intended, which process is sending it, and the result.

intended → sending, until a time → done / failed / unknown. *Intended* means surely not done. An effect is *sending*
from before the call to the outside until its answer is written down; past its time it may have been done or not.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db.models import Exists, F, OuterRef, Q
from django.db.models.functions import Now

from messaging import database, effects
from messaging.effects import EffectKind, Intended
from messaging.logs import get_logger
from messaging.models import Effect, EffectAttempt, InboxMessage
from messaging.models.failures import failure_group
from messaging.validation.texts import storable_text
from messaging.worker import effect_attempts

log = get_logger(__name__)

State = Effect.State
_NO_ANSWER = "the process that was sending it ended before its answer was written down: it may have been done or not"
#: Seconds after its timeout until an effect counts as abandoned. A live sender writes its answer within them.
MARGIN = 5.0


@dataclass(frozen=True, slots=True)
class _Unanswered:
    """The effects of a claim whose commit was not answered: they may be *sending*, now or later, and were never begun.
    After `until` (monotonic) the commit is no longer waited for."""

    ids: list[int]
    until: float


#: Claims whose commit was not answered, by token.
_unanswered: dict[uuid.UUID, _Unanswered] = {}


@dataclass(frozen=True, slots=True)
class Claimed:
    """An effect that this process is to send, until `deadline` (monotonic). `doubtful`: an earlier attempt may have
    done it."""

    row: Effect
    kind: EffectKind
    doubtful: bool
    deadline: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptResult:
    """The result of an attempt: the state, the outside's reference or the error, and the rest before the next try."""

    state: Effect.State
    reference: str = ""
    error: str = ""
    rest: timedelta = timedelta(0)

    @property
    def columns(self) -> dict[str, Any]:
        """What an effect's row holds after it."""
        return {
            "state": self.state,
            "reference": storable_text(self.reference)[:255],
            "error": storable_text(self.error),
            "changed_at": Now(),
        }


def write(inbox_id: int, consumer: str, message_id: str, intended: Sequence[Intended]) -> None:
    """Write down the effects that a handler intended, in its transaction. Its inbox row becomes *effects due*."""
    if not intended:
        return
    Effect.objects.bulk_create(
        Effect(
            inbox_message_id=inbox_id, consumer=consumer, message_id=message_id, name=each.name, payload=each.payload
        )
        for each in intended
    )
    InboxMessage.objects.filter(pk=inbox_id).update(state=InboxMessage.State.EFFECTS_DUE)


def claim(which: Q, limit: int) -> list[Claimed]:
    """Take up to `limit` effects of `which` that are due: intended ones, and those whose sender's time is over.

    An effect that may have been done, and can be neither repeated nor asked for, becomes *unknown* here. Two processes
    never get the same one. Kinds that this code does not know are left alone.
    """
    _take_back_unanswered()
    token = uuid.uuid4()
    claimed: list[Claimed] = []
    can_repeat: dict[str, bool] = {}
    try:
        while (unasked := _claim(which, limit, token, claimed, can_repeat)) is not None:
            # Not in the transaction: `honours_keys` is code of the project, and may break one.
            can_repeat[unasked.name] = unasked.can_repeat
    except BaseException:
        # The commit may have arrived all the same. What was doubtful before stays so.
        if mine := [each for each in claimed if not each.doubtful]:
            longest = max(each.kind.timeout.total_seconds() for each in mine)
            _unanswered[token] = _Unanswered([each.row.pk for each in mine], time.monotonic() + longest + MARGIN)
        raise
    return claimed


@database.atomic()
def _claim(
    which: Q, limit: int, token: uuid.UUID, claimed: list[Claimed], can_repeat: Mapping[str, bool]
) -> EffectKind | None:
    """Take what is due with `token` and add it to `claimed`; if that depends on a kind that `can_repeat` does not
    name yet, take nothing and return that kind."""
    kinds = {kind.name: kind for kind in effects.registered()}
    due = Q(state=State.INTENDED, send_at__lte=Now()) | Q(state=State.SENDING, sending_until__lte=Now())
    rows = list(
        Effect.objects.filter(which, due, name__in=kinds).order_by("pk").select_for_update(skip_locked=True)[:limit]
    )
    for row in rows:
        if row.state == State.SENDING and row.name not in can_repeat:
            return kinds[row.name]
    abandoned: list[Effect] = []
    for row in rows:
        kind, doubtful = kinds[row.name], row.state == State.SENDING
        if doubtful and not can_repeat[row.name]:
            abandoned.append(row)
        else:
            claimed.append(Claimed(row, kind, doubtful, time.monotonic() + kind.timeout.total_seconds()))
    for each in claimed:
        if each.doubtful:
            # Its sender died. One that wrote down an answer has a row of this token, which stays.
            effect_attempts.write(each.row, EffectAttempt.Outcome.DOUBTFUL, _NO_ANSWER, replace=False)
    _take(claimed, token)
    _give_up(abandoned)
    return None


def has_unanswered() -> bool:
    """Whether this process still has to undo a claim whose commit was not answered; `claim` does it."""
    return bool(_unanswered)


def _take_back_unanswered() -> None:
    """Undo claims whose commit was not answered, also if other processes have taken the effects for abandoned since.

    Such a commit may become visible after this look. Its claim is forgotten when it was undone, or at the first look
    after the time of its effects.
    """
    for token, unanswered in list(_unanswered.items()):
        is_last = time.monotonic() > unanswered.until
        if _take_back(token, unanswered.ids) or is_last:
            _unanswered.pop(token, None)


@database.atomic()
def _take_back(token: uuid.UUID, ids: Collection[int]) -> bool:
    """Undo the claim with this token, and return whether it is in the database."""
    mine = Effect.objects.filter(pk__in=ids, token=token, state__in=[State.SENDING, State.UNKNOWN])
    inbox_ids = lock_messages(mine)
    if not inbox_ids:
        return False
    EffectAttempt.objects.filter(effect__in=ids, token=token).delete()
    mine.filter(state=State.UNKNOWN).update(error="", failure_group="")
    if mine.update(state=State.INTENDED, attempts=F("attempts") - 1, token=None, sending_until=None):
        _reopen(inbox_ids)
    return True


def note(results: Sequence[tuple[Claimed, AttemptResult]]) -> None:
    """Write down the results of attempts, and close the inbox rows whose last effect they settle.

    A result counts only while the effect has its sender's token: after that another process or a person has moved it
    on. It still counts if the effect is *unknown* meanwhile: now it is known. Noted again, it changes nothing.
    """
    with database.atomic():
        inbox_ids = lock_messages(claimed.row for claimed, _ in results)
        for claimed, result in results:
            waits = database.in_future(result.rest.total_seconds())
            effect = Effect.objects.filter(pk=claimed.row.pk)
            changed = effect.filter(token=claimed.row.token).update(
                **result.columns,
                failure_group=_group_of(claimed.row, result),
                send_at=waits if result.state == State.INTENDED else F("send_at"),
                sending_until=waits if result.state == State.SENDING else None,
            )
            if changed:
                effect_attempts.record(claimed.row, result.state, result.error)
            elif effect.exists():
                effect_attempts.record_late(claimed.row, result.state, result.error, result.reference)
                log.warning("effect.late_result", effect=claimed.row.name, message_id=claimed.row.message_id)
        close(inbox_ids)


def settle(rows: Sequence[Effect], result: AttemptResult) -> None:
    """Write down an operator's decision about effects, in the caller's transaction, which has locked them and their
    messages. The results of their attempts stay in rows of their own.

    An effect that is *intended* again is carried out as if for the first time, with a whole new retry policy. A late
    result of an earlier sender no longer changes anything.
    """
    for row in rows:
        effect_attempts.record_before_settling(row)
    again = result.state == State.INTENDED
    anew: dict[str, Any] = {"attempts": 0, "send_at": Now()} if again else {}
    Effect.objects.filter(pk__in=[row.pk for row in rows]).update(
        **result.columns,
        **anew,
        failure_group="",
        given_up=result.state == State.FAILED,
        sending_until=None,
        token=None,
    )
    (_reopen if again else close)([row.inbox_message_id for row in rows])


def close(inbox_ids: Collection[int]) -> None:
    """Move inbox rows without an open effect from *effects due* to *handled*, in the caller's transaction."""
    still_open = Effect.objects.filter(inbox_message_id=OuterRef("pk"), state__in=Effect.OPEN)
    InboxMessage.objects.filter(~Exists(still_open), pk__in=inbox_ids, state=InboxMessage.State.EFFECTS_DUE).update(
        state=InboxMessage.State.HANDLED, changed_at=Now()
    )


def _reopen(inbox_ids: Collection[int]) -> None:
    InboxMessage.objects.filter(pk__in=inbox_ids, state=InboxMessage.State.HANDLED).update(
        state=InboxMessage.State.EFFECTS_DUE, changed_at=Now()
    )


def _take(claimed: Sequence[Claimed], token: uuid.UUID) -> None:
    for timeout in {each.kind.timeout for each in claimed}:
        ids = [each.row.pk for each in claimed if each.kind.timeout == timeout]
        Effect.objects.filter(pk__in=ids).update(
            state=State.SENDING,
            token=token,
            attempts=F("attempts") + 1,
            sending_until=database.in_future(timeout.total_seconds() + MARGIN),
            changed_at=Now(),
        )
    for each in claimed:
        each.row.token = token
        each.row.attempts += 1


def _give_up(rows: Sequence[Effect]) -> None:
    if not rows:
        return
    inbox_ids = lock_messages(rows)
    result = AttemptResult(state=State.UNKNOWN, error=_NO_ANSWER)
    for row in rows:
        Effect.objects.filter(pk=row.pk).update(**result.columns, failure_group=_group_of(row, result))
        effect_attempts.record(row, result.state, result.error)
    close(inbox_ids)
    for row in rows:
        log.error("effect.unknown", effect=row.name, message_id=row.message_id, consumer=row.consumer)


def _group_of(row: Effect, result: AttemptResult) -> str:
    """Return the failure group of an effect with this result; empty for a success."""
    return "" if result.state == State.DONE else failure_group(row.consumer, row.name, result.error)


def lock_messages(rows: Iterable[Effect]) -> list[int]:
    """Lock the inbox rows of these effects: of two processes that finish a message's last two effects, the second must
    see the first."""
    ids = sorted({row.inbox_message_id for row in rows})
    list(InboxMessage.objects.filter(pk__in=ids).order_by("pk").select_for_update().values_list("pk"))
    return ids

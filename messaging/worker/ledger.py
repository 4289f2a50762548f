"""The ledger of effects: what was intended, who is sending it, and what is known of it.

intended → sending, until a time → done / failed / unknown. *Intended* means surely not done. An effect is *sending*
from before the outside is spoken to until its answer is written down; past its time nobody knows whether it was done.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from django.db.models import Exists, F, OuterRef, Q
from django.db.models.functions import Now

from messaging import database, effects
from messaging.effects import EffectKind, Intended
from messaging.logs import get_logger
from messaging.models import Effect, EffectAttempt, InboxMessage
from messaging.validation.texts import storable_text
from messaging.worker.inbox import failure_group

log = get_logger(__name__)

State = Effect.State
Outcome = EffectAttempt.Outcome

#: What an attempt was, by the state that it left the effect in.
_OUTCOMES = {
    State.INTENDED: Outcome.NOT_DONE,
    State.FAILED: Outcome.FAILED,
    State.SENDING: Outcome.DOUBTFUL,
    State.UNKNOWN: Outcome.UNKNOWN,
}
_NO_ANSWER = "the process that was sending it ended before its answer was written down: it may have been done or not"
#: Seconds beyond its timeout for which an effect is not taken for abandoned: a live sender writes its answer in them.
MARGIN = 5.0

#: Effects that this process took in a claim whose commit was not answered, and by which token: they may be *sending*,
#: and were never begun.
_never_begun: dict[int, uuid.UUID] = {}


@dataclass(frozen=True, slots=True)
class Claimed:
    """An effect that is this process's to send, until `deadline` (monotonic). `doubtful`: an earlier attempt may have
    done it."""

    row: Effect
    kind: EffectKind
    doubtful: bool
    deadline: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What an attempt came to: the state, the outside's reference or the error, and the rest before the next try."""

    state: Effect.State
    reference: str = ""
    error: str = ""
    rest: timedelta = timedelta(0)


def write(inbox_id: int, consumer: str, message_id: str, intended: Sequence[Intended]) -> None:
    """Write down what a handler intended, in its transaction; its inbox row waits for it."""
    if not intended:
        return
    Effect.objects.bulk_create(
        Effect(
            inbox_message_id=inbox_id, consumer=consumer, message_id=message_id, name=each.name, payload=each.payload
        )
        for each in intended
    )
    InboxMessage.objects.filter(pk=inbox_id).update(state=InboxMessage.State.EFFECTS_DUE)


def of_messages(consumer: str, message_ids: Collection[str]) -> Q:
    """Return which effects follow from these messages at a consumer."""
    return Q(consumer=consumer, message_id__in=message_ids)


def claim(which: Q, limit: int) -> list[Claimed]:
    """Take up to `limit` effects that are due, of `which`: intended ones, those whose sender's time is over, and those
    that this process took before without learning that it had.

    What may have been done and can be neither repeated nor asked for becomes *unknown* here. Two processes never get
    the same one. Kinds that this code does not know are left alone.
    """
    token = uuid.uuid4()
    claimed: list[Claimed] = []
    can_repeat: dict[str, bool] = {}
    try:
        while (unasked := _claim(which, limit, token, claimed, can_repeat)) is not None:
            # Not in the transaction: `honours_keys` is the project's code, and may break one.
            can_repeat[unasked.name] = unasked.can_repeat
    except BaseException:
        # The commit may have arrived all the same. What was in doubt before stays so.
        _never_begun.update({each.row.pk: token for each in claimed if not each.doubtful})
        raise
    for each in claimed:
        _never_begun.pop(each.row.pk, None)
    return claimed


@database.atomic()
def _claim(
    which: Q, limit: int, token: uuid.UUID, claimed: list[Claimed], can_repeat: Mapping[str, bool]
) -> EffectKind | None:
    """Take what is due with `token` and add it to `claimed`; where it depends on a kind that `can_repeat` does not
    name yet, take nothing and return that kind."""
    kinds = {kind.name: kind for kind in effects.registered()}
    due = Q(state=State.INTENDED, send_at__lte=Now()) | Q(state=State.SENDING, sending_until__lte=Now())
    if mine := list(_never_begun):
        due |= Q(state__in=[State.SENDING, State.UNKNOWN], pk__in=mine, token__in=list(_never_begun.values()))
    found = Effect.objects.filter(which, due, name__in=kinds).order_by("pk")
    rows = list(found.select_for_update(skip_locked=True)[:limit])
    never_begun = [row for row in rows if row.token is not None and row.token == _never_begun.get(row.pk)]
    doubtful = {row.pk for row in rows if row.state == State.SENDING and row not in never_begun}
    for row in rows:
        if row.pk in doubtful and row.name not in can_repeat:
            return kinds[row.name]
    abandoned: list[Effect] = []
    for row in rows:
        kind = kinds[row.name]
        if row.pk in doubtful and not can_repeat[row.name]:
            abandoned.append(row)
        else:
            claimed.append(Claimed(row, kind, row.pk in doubtful, time.monotonic() + kind.timeout.total_seconds()))
    if never_begun:
        _take_back(never_begun)
    for each in claimed:
        if each.doubtful:
            # No row yet: its sender died. One that wrote down an answer has a row of this token.
            _write_attempt(each.row, Outcome.DOUBTFUL, _NO_ANSWER, replace=False)
    _take(claimed, token)
    _give_up(abandoned)
    return None


def note(results: Sequence[tuple[Claimed, Result]]) -> None:
    """Write down what attempts came to, and which inbox rows are done with by that.

    A result counts only while the effect is its sender's own: one that was late finds that others have moved it on.
    It still counts where the effect is *unknown* meanwhile: now it is known.
    """
    with database.atomic():
        inbox_ids = lock_messages(claimed.row for claimed, _ in results)
        for claimed, result in results:
            mine = Effect.objects.filter(
                pk=claimed.row.pk, token=claimed.row.token, state__in=[State.SENDING, State.UNKNOWN]
            )
            waits = database.in_future(result.rest.total_seconds())
            changed = mine.update(
                state=result.state,
                reference=storable_text(result.reference)[:255],
                error=storable_text(result.error),
                failure_group=_group_of(claimed.row, result),
                changed_at=Now(),
                send_at=waits if result.state == State.INTENDED else F("send_at"),
                sending_until=waits if result.state == State.SENDING else None,
            )
            if changed:
                _keep(claimed.row, result)
            elif Effect.objects.filter(~Q(token=claimed.row.token) | Q(token=None), pk=claimed.row.pk).exists():
                _keep_late(claimed.row, result)
                log.warning("effect.late_result", effect=claimed.row.name, message_id=claimed.row.message_id)
        close(inbox_ids)


def settle(effect_id: int, *, was: Collection[Effect.State], result: Result) -> bool:
    """Write down what a person says about an effect, in the caller's transaction, where its state is still one of
    `was`; return whether it is. What its attempts came to stays in their own rows.

    One that is *intended* again is carried out as if for the first time, with a whole new retry policy. A result of an
    earlier sender that comes late changes nothing any more.
    """
    inbox_ids = lock_messages(Effect.objects.filter(pk=effect_id).only("inbox_message"))
    _keep_what_is_known(effect_id, was)
    again = result.state == State.INTENDED
    changed = Effect.objects.filter(pk=effect_id, state__in=was).update(
        state=result.state,
        reference=storable_text(result.reference)[:255],
        error=storable_text(result.error),
        failure_group="",
        given_up=result.state == State.FAILED,
        changed_at=Now(),
        attempts=0 if again else F("attempts"),
        send_at=Now() if again else F("send_at"),
        sending_until=None,
        token=None,
    )
    if changed and again:
        InboxMessage.objects.filter(pk__in=inbox_ids, state=InboxMessage.State.HANDLED).update(
            state=InboxMessage.State.EFFECTS_DUE, changed_at=Now()
        )
    elif changed:
        close(inbox_ids)
    return bool(changed)


def close(inbox_ids: Collection[int]) -> None:
    """Move inbox rows that no effect is open for from *effects due* to *handled*, in the caller's transaction."""
    still_open = Effect.objects.filter(inbox_message_id=OuterRef("pk"), state__in=Effect.OPEN)
    InboxMessage.objects.filter(~Exists(still_open), pk__in=inbox_ids, state=InboxMessage.State.EFFECTS_DUE).update(
        state=InboxMessage.State.HANDLED, changed_at=Now()
    )


def _take_back(rows: Sequence[Effect]) -> None:
    """Undo claims of effects that were never begun, as if they had not been made; another process may have taken them
    for abandoned meanwhile."""
    for row in rows:
        EffectAttempt.objects.filter(effect=row, token=_never_begun[row.pk]).delete()
        row.attempts -= 1
    ids = [row.pk for row in rows]
    Effect.objects.filter(pk__in=ids).update(attempts=F("attempts") - 1)
    unknown = [row for row in rows if row.state == State.UNKNOWN]
    Effect.objects.filter(pk__in=[row.pk for row in unknown]).update(error="", failure_group="")
    InboxMessage.objects.filter(pk__in=lock_messages(unknown), state=InboxMessage.State.HANDLED).update(
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
    result = Result(state=State.UNKNOWN, error=_NO_ANSWER)
    for row in rows:
        Effect.objects.filter(pk=row.pk).update(
            state=result.state, error=result.error, failure_group=_group_of(row, result), changed_at=Now()
        )
        _keep(row, result)
    close(inbox_ids)
    for row in rows:
        log.error("effect.unknown", effect=row.name, message_id=row.message_id, consumer=row.consumer)


def _group_of(row: Effect, result: Result) -> str:
    """Return the failure group of an effect with this result; empty for a success."""
    return "" if result.state == State.DONE else failure_group(row.consumer, row.name, result.error)


def _keep(row: Effect, result: Result) -> None:
    """Write down what an attempt came to, unless it succeeded; once for each time the effect was taken."""
    if result.state in _OUTCOMES:
        _write_attempt(row, _OUTCOMES[result.state], result.error)


def _keep_what_is_known(effect_id: int, was: Collection[Effect.State]) -> None:
    """Write down the error of an effect that is about to be settled, where no attempt of it holds that: it failed
    before attempts were kept."""
    row = Effect.objects.filter(pk=effect_id, state__in=was, given_up=False).exclude(error="").first()
    if row is not None and not row.failed_attempts.filter(error=row.error).exists():
        row.failed_attempts.create(
            token=uuid.uuid4(),
            number=row.attempts,
            outcome=_OUTCOMES[Effect.State(row.state)],
            error=row.error,
            finished_at=row.changed_at,
        )


def _keep_late(row: Effect, result: Result) -> None:
    """Write down an answer that came too late to count: it may show that something was done twice."""
    if row.token is None or row.failed_attempts.filter(token=row.token, error=storable_text(result.error)).exists():
        return  # it was written down in time: the connection was lost after that commit
    outcome = _OUTCOMES.get(result.state, Outcome.DONE_LATE)
    _write_attempt(row, outcome, f"too late to count: {result.error or result.reference or 'done'}")


def _write_attempt(row: Effect, outcome: EffectAttempt.Outcome, error: str, *, replace: bool = True) -> None:
    """Write the row of the attempt that `row` was taken for; one that there is already is replaced, or left."""
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


def lock_messages(rows: Iterable[Effect]) -> list[int]:
    """Lock the inbox rows: of two that finish the last two effects of one message, the second must see the first."""
    ids = sorted({row.inbox_message_id for row in rows})
    list(InboxMessage.objects.filter(pk__in=ids).order_by("pk").select_for_update().values_list("pk", flat=True))
    return ids

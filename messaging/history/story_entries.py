"""What each row tells: rows of outbox, inbox, effects and audit log as entries of a story."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from messaging import conf
from messaging.actions.audit import Action
from messaging.history.story import Entry, Kind
from messaging.models import ActionOnMessage, DeliveryAttempt, Effect, EffectAttempt, InboxMessage, OutboxMessage

_KIND_OF_OUTCOME = {
    DeliveryAttempt.Outcome.HANDLED.value: Kind.HANDLED,
    DeliveryAttempt.Outcome.FAILED.value: Kind.ATTEMPT_FAILED,
    DeliveryAttempt.Outcome.REJECTED.value: Kind.REJECTED,
    DeliveryAttempt.Outcome.CRASHED.value: Kind.CRASHED,
}
_KIND_OF_EFFECT_OUTCOME = {
    EffectAttempt.Outcome.NOT_DONE.value: Kind.EFFECT_NOT_DONE,
    EffectAttempt.Outcome.DOUBTFUL.value: Kind.EFFECT_DOUBTFUL,
    EffectAttempt.Outcome.FAILED.value: Kind.EFFECT_FAILED,
    EffectAttempt.Outcome.UNKNOWN.value: Kind.EFFECT_UNKNOWN,
    EffectAttempt.Outcome.DONE_LATE.value: Kind.EFFECT_DONE_LATE,
}
#: The others have rows that say who it was.
_KIND_OF_ACTION: dict[str, Kind] = {
    Action.REPLAY: Kind.REPLAYED,
    Action.HASTEN: Kind.HASTENED,
    Action.RECONCILE: Kind.RECONCILED,
    Action.SETTLE: Kind.SETTLED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """All rows of the messages that a story is about."""

    outbox: Sequence[OutboxMessage]
    inbox: Sequence[InboxMessage]
    attempts: Sequence[DeliveryAttempt]
    effects: Sequence[Effect]
    effect_attempts: Sequence[EffectAttempt]
    actions: Sequence[ActionOnMessage]


def entries_of(rows: Rows, *, complete: bool) -> Iterator[Entry]:
    """Return what the rows tell, in no order. `complete`: no row of these messages was left out."""
    # Where rows were left out, one that is missing says nothing.
    received = {(row.message_id, row.consumer): row for row in rows.inbox}
    waited_for: set[tuple[str, str, int]] = set()
    for sent in rows.outbox:
        yield from _of_outbox(sent)
        for consumer in [sent.consumer] if sent.consumer else sent.expected_consumers:
            waited_for.add((sent.message_id, consumer, sent.attempt))
            row = received.get((sent.message_id, consumer))
            if sent.state == OutboxMessage.State.PUBLISHED and (row or complete):
                yield from _if_unhandled(sent, consumer, row)
    from_here = {sent.message_id for sent in rows.outbox if sent.origin == OutboxMessage.Origin.EVENT}
    attempts: dict[int, list[DeliveryAttempt]] = {}
    for attempt in rows.attempts:
        attempts.setdefault(attempt.inbox_message_id, []).append(attempt)
    for got in rows.inbox:
        yield from _of_inbox(got, attempts.get(got.pk, []), from_here=got.message_id in from_here)
        expected = (got.message_id, got.consumer, got.attempt)
        if got.state == InboxMessage.State.RETRYING and complete and expected not in waited_for:
            yield _unhandled(got, "no outbox row carries this attempt; it comes from the broker")
    types = {row.pk: row.type for row in rows.inbox}
    tries: dict[int, list[EffectAttempt]] = {}
    for tried in rows.effect_attempts:
        tries.setdefault(tried.effect_id, []).append(tried)
    for effect in rows.effects:
        yield from _of_effect(effect, types.get(effect.inbox_message_id, ""), tries.get(effect.pk, []))
    for acted_on in rows.actions:
        yield from _of_action(acted_on)


def _of_outbox(row: OutboxMessage) -> Iterator[Entry]:
    common = Entry(
        kind=Kind.WRITTEN,
        message_id=row.message_id,
        type=row.type,
        attempt=row.attempt,
        consumer=row.consumer,
        at=row.created_at,
        origin=row.origin,
        outbox_id=row.pk,
    )
    yield common
    match row.state:
        case OutboxMessage.State.PUBLISHED:
            audience = ", ".join(row.expected_consumers)
            detail = f"for {audience}" if audience else ""
            yield replace(common, kind=Kind.PUBLISHED, at=row.published_at, detail=detail)
        # Such a row's `publish_at` is when that was noted: it has no next try.
        case OutboxMessage.State.FAILED:
            yield replace(common, kind=Kind.FAILED, at=row.publish_at, detail=row.last_error)
        case OutboxMessage.State.CANCELLED:
            yield replace(common, kind=Kind.CANCELLED, at=row.publish_at, detail=row.last_error)
        case OutboxMessage.State.UNROUTABLE:
            yield replace(common, kind=Kind.UNROUTABLE, at=None, due=row.publish_at, detail=row.last_error)
        case _:
            yield replace(common, kind=Kind.PENDING, at=None, due=row.publish_at, detail=row.last_error)


def _if_unhandled(sent: OutboxMessage, consumer: str, row: InboxMessage | None) -> Iterator[Entry]:
    if row is None:
        yield Entry(
            kind=Kind.UNHANDLED,
            message_id=sent.message_id,
            type=sent.type,
            attempt=sent.attempt,
            consumer=consumer,
            outbox_id=sent.pk,
        )
    elif row.state == InboxMessage.State.RETRYING and row.attempt == sent.attempt:
        yield _unhandled(row, "")


def _unhandled(row: InboxMessage, detail: str) -> Entry:
    if row.starts:
        detail = f"its handling was started {row.starts} times and has not ended"
    return replace(_about(row), kind=Kind.UNHANDLED, attempt=row.attempt, detail=detail)


def _of_inbox(row: InboxMessage, attempts: Sequence[DeliveryAttempt], *, from_here: bool) -> Iterator[Entry]:
    if not from_here and row.app_id != conf.get().app_id:
        yield replace(_about(row), kind=Kind.RECEIVED, attempt=1, at=row.received_at, detail=_sender(row))
    for attempt in attempts:
        yield replace(
            _about(row),
            kind=_KIND_OF_OUTCOME[attempt.outcome],
            attempt=attempt.number,
            at=attempt.finished_at,
            duration=attempt.duration,
            detail=attempt.error,
        )
    match row.state:
        case InboxMessage.State.DEAD | InboxMessage.State.DISCARDED:
            kind = Kind.DEAD if row.state == InboxMessage.State.DEAD else Kind.DISCARDED
            # Both are written in one transaction, the row first: it died of the attempt all the same.
            at = max([row.changed_at, *(attempt.finished_at for attempt in attempts)])
            yield replace(_about(row), kind=kind, attempt=row.attempt, at=at, detail=row.reason)
        case InboxMessage.State.WAITING:
            detail = f"until the earlier messages of {row.ordering_key} are settled"
            yield replace(_about(row), kind=Kind.WAITING, attempt=row.attempt, detail=detail)


def _sender(row: InboxMessage) -> str:
    sender = f"published by {row.app_id}" if row.app_id else "published by a client without an app_id"
    if row.identified:
        return sender
    return f"{sender}, without a message_id: at-least-once, a copy of it would be handled too"


def _of_effect(effect: Effect, type: str, attempts: Sequence[EffectAttempt]) -> Iterator[Entry]:
    common = Entry(
        kind=Kind.INTENDED,
        message_id=effect.message_id,
        type=type,
        attempt=effect.attempts,
        consumer=effect.consumer,
        at=effect.intended_at,
        effect=effect.name,
        effect_id=effect.pk,
    )
    yield common
    for attempt in attempts:
        kind = _KIND_OF_EFFECT_OUTCOME[attempt.outcome]
        yield replace(common, kind=kind, attempt=attempt.number, at=attempt.finished_at, detail=attempt.error)
    at, error = effect.changed_at, effect.error
    told = any(attempt.outcome == effect.state and attempt.error == error for attempt in attempts)
    match effect.state:
        case Effect.State.INTENDED:
            yield replace(common, kind=Kind.EFFECT_DUE, at=None, due=effect.send_at, detail=error)
        case Effect.State.SENDING:
            yield replace(common, kind=Kind.EFFECT_SENDING, at=None, due=effect.sending_until, detail=error)
        case Effect.State.DONE:
            detail = "; ".join(filter(None, [effect.reference, error]))
            yield replace(common, kind=Kind.EFFECT_DONE, at=at, detail=detail)
        case Effect.State.FAILED if not told:
            yield replace(common, kind=Kind.EFFECT_FAILED, at=at, detail=error)
        case Effect.State.UNKNOWN if not told:
            yield replace(common, kind=Kind.EFFECT_UNKNOWN, at=at, detail=error)


def _of_action(acted_on: ActionOnMessage) -> Iterator[Entry]:
    action = acted_on.action
    kind = _KIND_OF_ACTION.get(action.action)
    if kind is not None:
        note = ", ".join(str(action.details[name]) for name in ("verdict", "note") if name in action.details)
        yield Entry(
            kind=kind,
            message_id=acted_on.message_id,
            at=action.at,
            detail=note,
            actor=action.actor,
            action_id=action.pk,
        )


def _about(row: InboxMessage) -> Entry:
    return Entry(
        kind=Kind.HANDLED,
        message_id=row.message_id,
        type=row.type,
        attempt=row.attempt,
        consumer=row.consumer,
        inbox_id=row.pk,
    )

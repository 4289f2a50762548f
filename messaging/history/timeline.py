"""The story of a message, or of all messages about a subject: what happened, when, and what is still to happen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from django.db.models import Q

from messaging import actions, conf, consumers
from messaging.models import ActionOnMessage, DeliveryAttempt, Effect, EffectAttempt, InboxMessage, OutboxMessage
from messaging.validation.texts import storable_text

#: Rows of each table that a story reads, the newest ones.
ROW_LIMIT = 500
#: What a story tells of an action's details. *verdict* is what earlier versions called *decision*.
TOLD_DETAILS = ("decision", "verdict", "note")

_LAST = datetime.max.replace(tzinfo=UTC)


class Kind(StrEnum):
    """What an entry tells. Of entries of the same moment the earlier kind comes first."""

    #: A person did something; the rows of cancelled and discarded messages tell that themselves.
    ACTED = "acted"

    WRITTEN = "written"
    PUBLISHED = "published"
    #: From another application's publisher: no outbox row tells of it.
    RECEIVED = "received"
    HANDLED = "handled"
    ATTEMPT_FAILED = "attempt failed"
    REJECTED = "rejected"
    CRASHED = "crashed"
    DEAD = "dead"
    DISCARDED = "discarded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTENDED = "intended"
    #: Surely not done this time, and tried again.
    EFFECT_NOT_DONE = "effect not done"
    #: Perhaps done this time; sent again with the same key, or asked for.
    EFFECT_DOUBTFUL = "effect doubtful"
    EFFECT_DONE_LATE = "effect done late"
    EFFECT_DONE = "effect done"
    EFFECT_FAILED = "effect failed"
    EFFECT_UNKNOWN = "effect unknown"
    # Still open.
    PENDING = "pending"
    UNROUTABLE = "unroutable"
    UNHANDLED = "unhandled"
    WAITING = "waiting"
    EFFECT_DUE = "effect due"
    EFFECT_SENDING = "effect sending"


OPEN = frozenset({Kind.PENDING, Kind.UNROUTABLE, Kind.UNHANDLED, Kind.WAITING, Kind.EFFECT_DUE, Kind.EFFECT_SENDING})


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of a story, with the row that it was read from: an outbox or inbox message, an effect, or a person's
    action.

    `at` is when it happened by the database's clock, None for what is open. `due` is when an open one may go on.
    `gap` is the time since the entry before, never negative, None where either has no time. `effect` is the name of
    one, `action` what the person `actor` did, as "replayed".
    """

    kind: Kind
    message_id: str
    row: Any = None
    type: str = ""
    attempt: int = 0
    consumer: str = ""
    at: datetime | None = None
    due: datetime | None = None
    gap: timedelta | None = None
    duration: timedelta | None = None
    detail: str = ""
    effect: str = ""
    action: str = ""
    actor: str = ""

    @property
    def is_open(self) -> bool:
        """Whether this is still to happen."""
        return self.kind in OPEN

    @property
    def what(self) -> str:
        """What it tells, in a word or two."""
        return self.action or self.kind.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """What happened, in order, and then what is open. `truncated`: older rows than are read at most were left out."""

    entries: tuple[Entry, ...]
    truncated: bool = False

    @property
    def message_ids(self) -> list[str]:
        """The messages it is about, each once, in the order they appear."""
        return list(dict.fromkeys(entry.message_id for entry in self.entries))


def for_message(message_id: str) -> Story:
    """Return the story of one message at all its consumers; empty where none has that id. Six queries at most."""
    named = Q(message_id=storable_text(message_id))
    return _story(named, named)


def for_subject(subject: str) -> Story:
    """Return the story of all messages about `subject`, in one order; empty where there are none. Seven queries at
    most.

    Rows of these messages that lost their subject on the way belong to it.
    """
    if not subject:
        return Story(entries=())  # it would be everything that has no subject
    subject = storable_text(subject)
    newest = OutboxMessage.objects.filter(subject=subject).order_by("-id").values_list("message_id", flat=True)
    return _story(Q(subject=subject), Q(subject=subject) | Q(message_id__in=list(newest[:ROW_LIMIT])))


def _story(of_outbox: Q, of_inbox: Q) -> Story:
    outbox = list(OutboxMessage.objects.filter(of_outbox).defer("body", "headers").order_by("-id")[: ROW_LIMIT + 1])
    received = InboxMessage.objects.filter(of_inbox).defer("body", "headers", "body_truncated")
    inbox = list(received.order_by("-id")[: ROW_LIMIT + 1])
    truncated = len(outbox) > ROW_LIMIT or len(inbox) > ROW_LIMIT
    entries = [
        *_of_messages(outbox[:ROW_LIMIT], inbox[:ROW_LIMIT], complete=not truncated),
        *_of_effects(inbox),
        *_of_actions({row.message_id for row in [*outbox, *inbox]}),
    ]
    return Story(entries=tuple(_in_order(entries)), truncated=truncated)


def _in_order(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Put entries in the order of their times, the open ones last, and measure the gaps. Of entries of the same moment
    the cause comes first."""
    order = list(Kind)

    def place(entry: Entry) -> tuple[bool, datetime, int, int]:
        return entry.is_open, entry.at or entry.due or _LAST, entry.attempt, order.index(entry.kind)

    before = None
    for entry in sorted(entries, key=place):
        if entry.at is not None:
            entry = replace(entry, gap=entry.at - before if before else None)
            before = entry.at
        yield entry


def _entry(row: OutboxMessage | InboxMessage, kind: Kind, **facts: Any) -> Entry:
    about = {name: getattr(row, name) for name in ("message_id", "type", "attempt", "consumer")}
    return Entry(kind=kind, row=row, **about | facts)


def _of_messages(outbox: Sequence[OutboxMessage], inbox: Sequence[InboxMessage], *, complete: bool) -> Iterator[Entry]:
    """Tell of messages. If they are not `complete`, a row that is missing may just not have been read."""
    received = {(row.message_id, row.consumer): row for row in inbox}
    carried: set[tuple[str, str, int]] = set()
    for sent in outbox:
        yield from _of_outbox(sent)
        for consumer in [sent.consumer] if sent.consumer else consumers.recording(sent.expected_consumers):
            carried.add((sent.message_id, consumer, sent.attempt))
            row = received.get((sent.message_id, consumer))
            if sent.state != OutboxMessage.State.PUBLISHED:
                continue
            if row is None and complete:
                yield _entry(sent, Kind.UNHANDLED, consumer=consumer)
            elif row and row.state == InboxMessage.State.RETRYING and row.attempt == sent.attempt:
                yield _unhandled(row, "")
    from_here = {sent.message_id for sent in outbox if sent.origin == OutboxMessage.Origin.EVENT}
    attempts: dict[int, list[DeliveryAttempt]] = defaultdict(list)
    for attempt in DeliveryAttempt.objects.filter(inbox_message__in=[row.pk for row in inbox]).defer("traceback"):
        attempts[attempt.inbox_message_id].append(attempt)
    for got in inbox:
        if got.message_id not in from_here and got.app_id != conf.get().app_id:
            yield _entry(got, Kind.RECEIVED, attempt=1, at=got.received_at, detail=_sender(got))
        yield from _of_inbox(got, attempts[got.pk])
        is_carried = (got.message_id, got.consumer, got.attempt) in carried
        if got.state == InboxMessage.State.RETRYING and complete and not is_carried:
            yield _unhandled(got, "no outbox row carries this attempt; it comes from the broker")


def _of_outbox(row: OutboxMessage) -> Iterator[Entry]:
    yield _entry(row, Kind.WRITTEN, at=row.created_at)
    kind = Kind(row.state)
    match row.state:
        case OutboxMessage.State.PUBLISHED:
            audience = ", ".join(row.expected_consumers)
            yield _entry(row, kind, at=row.published_at, detail=f"for {audience}" if audience else "")
        case OutboxMessage.State.FAILED | OutboxMessage.State.CANCELLED:
            # `publish_at` is when that was noted: the row has no next attempt.
            yield _entry(row, kind, at=row.publish_at, detail=row.last_error)
        case _:
            yield _entry(row, kind, due=row.publish_at, detail=row.last_error)


def _unhandled(row: InboxMessage, detail: str) -> Entry:
    if row.starts:
        detail = f"its handling was started {row.starts} times and has not ended"
    return _entry(row, Kind.UNHANDLED, detail=detail)


def _of_inbox(row: InboxMessage, attempts: Sequence[DeliveryAttempt]) -> Iterator[Entry]:
    for each in [*attempts, row.success]:
        if each is None:
            continue
        facts = {"attempt": each.number, "at": each.finished_at, "duration": each.duration, "detail": each.error}
        failed = each.outcome == DeliveryAttempt.Outcome.FAILED
        yield _entry(row, Kind.ATTEMPT_FAILED if failed else Kind(each.outcome), **facts)
    match row.state:
        case InboxMessage.State.DEAD | InboxMessage.State.DISCARDED:
            # Row and last attempt are written in one transaction, the row first; the attempt was the cause.
            at = max([row.changed_at, *(attempt.finished_at for attempt in attempts)])
            yield _entry(row, Kind(row.state), at=at, detail=row.reason)
        case InboxMessage.State.WAITING:
            yield _entry(row, Kind.WAITING, detail=f"until the earlier messages of {row.ordering_key} are settled")


def _sender(row: InboxMessage) -> str:
    sender = f"published by {row.app_id}" if row.app_id else "published by a client without an app_id"
    if row.identified:
        return sender
    return f"{sender}, without a message_id: at-least-once, a copy of it would be handled too"


def _of_effects(inbox: Sequence[InboxMessage]) -> Iterator[Entry]:
    types = {row.pk: row.type for row in inbox}
    effects = list(Effect.objects.filter(inbox_message__in=types).defer("payload"))
    attempts: dict[int, list[EffectAttempt]] = defaultdict(list)
    if effects:
        found = EffectAttempt.objects.filter(effect__in=[effect.pk for effect in effects]).order_by("-id")
        for attempt in found[:ROW_LIMIT]:
            attempts[attempt.effect_id].append(attempt)
    for effect in effects:
        yield from _of_effect(effect, types[effect.inbox_message_id], attempts[effect.pk])


def _of_effect(effect: Effect, type: str, attempts: Sequence[EffectAttempt]) -> Iterator[Entry]:
    def entry(kind: Kind, **facts: Any) -> Entry:
        about: dict[str, Any] = {"attempt": effect.attempts, "consumer": effect.consumer, "effect": effect.name}
        return Entry(
            kind=kind, message_id=effect.message_id, row=effect, type=type, **about | {"detail": effect.error} | facts
        )

    yield entry(Kind.INTENDED, at=effect.intended_at, detail="")
    for each in attempts:
        kind = Kind(f"effect {each.outcome}")
        yield entry(kind, attempt=each.number, at=each.finished_at, detail=each.error)
    match effect.state:
        case Effect.State.INTENDED:
            yield entry(Kind.EFFECT_DUE, due=effect.send_at)
        case Effect.State.SENDING:
            yield entry(Kind.EFFECT_SENDING, due=effect.sending_until)
        case Effect.State.DONE:
            detail = "; ".join(filter(None, [effect.reference, effect.error]))
            yield entry(Kind.EFFECT_DONE, at=effect.changed_at, detail=detail)
        case state if not any(each.outcome == state and each.error == effect.error for each in attempts):
            yield entry(Kind(f"effect {state}"), at=effect.changed_at)


def _of_actions(message_ids: Collection[str]) -> Iterator[Entry]:
    words = actions.audited()
    acted_on = ActionOnMessage.objects.filter(message_id__in=message_ids)
    acted_on = acted_on.exclude(action__action__in=[name for name, said in words.items() if not said])
    for each in acted_on.select_related("action").order_by("-id")[:ROW_LIMIT]:
        row = each.action
        yield Entry(
            kind=Kind.ACTED,
            message_id=each.message_id,
            row=row,
            at=row.at,
            detail=", ".join(str(row.details[name]) for name in TOLD_DETAILS if name in row.details),
            action=words.get(row.action, row.action),
            actor=row.actor,
        )

"""The story of a message, or of all messages about a subject: what happened, when, and what is still to happen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from django.db.models import Q

from messaging.models import DeliveryAttempt, InboxMessage, OutboxMessage

#: Rows of each table that a story reads, the newest ones.
ROW_LIMIT = 500


class Kind(StrEnum):
    """What an entry tells."""

    WRITTEN = "written"
    PUBLISHED = "published"
    HANDLED = "handled"
    ATTEMPT_FAILED = "attempt failed"
    REJECTED = "rejected"
    CRASHED = "crashed"
    DEAD = "dead"
    FAILED = "failed"
    # Still open: what everybody waits for.
    PENDING = "pending"
    UNROUTABLE = "unroutable"
    UNHANDLED = "unhandled"


_LAST = datetime.max.replace(tzinfo=UTC)

OPEN = frozenset({Kind.PENDING, Kind.UNROUTABLE, Kind.UNHANDLED})

_KIND_OF_OUTCOME = {
    DeliveryAttempt.Outcome.HANDLED.value: Kind.HANDLED,
    DeliveryAttempt.Outcome.FAILED.value: Kind.ATTEMPT_FAILED,
    DeliveryAttempt.Outcome.REJECTED.value: Kind.REJECTED,
    DeliveryAttempt.Outcome.CRASHED.value: Kind.CRASHED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of a story, with the row that it was read from (one of `outbox_id` and `inbox_id`).

    `at` is when it happened by the database's clock, None for what is open. `due` is when an open one may go on.
    `gap` is the time since the entry before, never negative, None where either has no time.
    """

    kind: Kind
    message_id: str
    type: str
    attempt: int
    consumer: str = ""
    at: datetime | None = None
    due: datetime | None = None
    gap: timedelta | None = None
    duration: timedelta | None = None
    detail: str = ""
    outbox_id: int | None = None
    inbox_id: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether this is still to happen."""
        return self.kind in OPEN


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """What happened, in order, and then what is open. `truncated`: older rows than ROW_LIMIT were left out."""

    entries: tuple[Entry, ...]
    truncated: bool = False

    @property
    def times_go_back(self) -> bool:
        """Whether some message was marked published after it was handled."""
        times = [entry.at for entry in self.entries if entry.at]
        return times != sorted(times)

    @property
    def message_ids(self) -> list[str]:
        """The messages it is about, each once, in the order they appear."""
        return list(dict.fromkeys(entry.message_id for entry in self.entries))


def for_message(message_id: str) -> Story:
    """Return the story of one message at all its consumers; empty where none has that id. Three queries."""
    return _story(Q(message_id=message_id), Q(message_id=message_id))


def for_subject(subject: str) -> Story:
    """Return the story of all messages about `subject`, told together; empty where there are none. Four queries.

    Rows of these messages that lost their subject on the way belong to it.
    """
    if not subject:
        return Story(entries=())  # it would be everything that has no subject
    newest = OutboxMessage.objects.filter(subject=subject).order_by("-id").values_list("message_id", flat=True)
    ids = list(newest[:ROW_LIMIT])
    return _story(Q(subject=subject), Q(subject=subject) | Q(message_id__in=ids))


def _story(of_outbox: Q, of_inbox: Q) -> Story:
    outbox = list(OutboxMessage.objects.filter(of_outbox).defer("body", "headers").order_by("-id")[: ROW_LIMIT + 1])
    inbox = list(
        InboxMessage.objects.filter(of_inbox)
        .defer("body", "headers", "body_truncated")
        .order_by("-id")[: ROW_LIMIT + 1]
    )
    attempts: dict[int, list[DeliveryAttempt]] = {}
    for attempt in DeliveryAttempt.objects.filter(inbox_message__in=[row.pk for row in inbox]).defer("traceback"):
        attempts.setdefault(attempt.inbox_message_id, []).append(attempt)
    truncated = len(outbox) > ROW_LIMIT or len(inbox) > ROW_LIMIT
    entries = _entries(outbox[:ROW_LIMIT], inbox[:ROW_LIMIT], attempts, complete=not truncated)
    return Story(entries=tuple(_in_order(entries)), truncated=truncated)


def _entries(
    outbox: Sequence[OutboxMessage],
    inbox: Sequence[InboxMessage],
    attempts: dict[int, list[DeliveryAttempt]],
    *,
    complete: bool,
) -> Iterator[Entry]:
    # Where rows were left out, one that is missing says nothing.
    received = {(row.message_id, row.consumer): row for row in inbox}
    waited_for: set[tuple[str, str, int]] = set()
    for sent in outbox:
        yield from _of_outbox(sent)
        for consumer in [sent.consumer] if sent.consumer else sent.expected_consumers:
            waited_for.add((sent.message_id, consumer, sent.attempt))
            row = received.get((sent.message_id, consumer))
            if sent.state == OutboxMessage.State.PUBLISHED and (row or complete):
                yield from _if_unhandled(sent, consumer, row)
    for got in inbox:
        yield from _of_inbox(got, attempts.get(got.pk, []))
        expected = (got.message_id, got.consumer, got.attempt)
        if got.state == InboxMessage.State.RETRYING and complete and expected not in waited_for:
            yield _unhandled(got, "no outbox row carries this attempt; it comes from the broker")


def _of_outbox(row: OutboxMessage) -> Iterator[Entry]:
    common = Entry(
        kind=Kind.WRITTEN,
        message_id=row.message_id,
        type=row.type,
        attempt=row.attempt,
        consumer=row.consumer,
        at=row.created_at,
        outbox_id=row.pk,
    )
    yield common
    match row.state:
        case OutboxMessage.State.PUBLISHED:
            audience = ", ".join(row.expected_consumers)
            detail = f"confirmed by the broker; for {audience}" if audience else "confirmed by the broker"
            yield replace(common, kind=Kind.PUBLISHED, at=row.published_at, detail=detail)
        case OutboxMessage.State.FAILED:
            # A failed row's `publish_at` is when that was noted: it has no next try.
            yield replace(common, kind=Kind.FAILED, at=row.publish_at, detail=row.last_error)
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


def _of_inbox(row: InboxMessage, attempts: Sequence[DeliveryAttempt]) -> Iterator[Entry]:
    for attempt in attempts:
        yield replace(
            _about(row),
            kind=_KIND_OF_OUTCOME[attempt.outcome],
            attempt=attempt.number,
            at=attempt.finished_at,
            duration=attempt.duration,
            detail=attempt.error,
        )
    if row.state == InboxMessage.State.DEAD:
        # Both are written in one transaction, the row first: it died of the attempt all the same.
        at = max([row.changed_at, *(attempt.finished_at for attempt in attempts)])
        yield replace(_about(row), kind=Kind.DEAD, attempt=row.attempt, at=at, detail=row.reason)


def _about(row: InboxMessage) -> Entry:
    return Entry(
        kind=Kind.HANDLED,
        message_id=row.message_id,
        type=row.type,
        attempt=row.attempt,
        consumer=row.consumer,
        inbox_id=row.pk,
    )


def _in_order(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Put entries in the order of cause and effect, the open ones last, and measure the gaps."""
    entries = list(entries)
    ended = _first_ends(entries)
    order = list(Kind)

    def place(entry: Entry) -> tuple[bool, datetime, int, int]:
        at = entry.at or entry.due or _LAST
        if entry.kind is Kind.PUBLISHED:
            # The mark is written a moment after the confirm: a quick consumer has handled the message by then.
            at = min(at, ended.get((entry.message_id, entry.attempt, entry.consumer), at))
        return entry.is_open, at, entry.attempt, order.index(entry.kind)

    latest = None
    for entry in sorted(entries, key=place):
        if entry.at is not None:
            gap = entry.at - latest if latest else None
            latest = max(entry.at, latest) if latest else entry.at
            entry = replace(entry, gap=gap and max(gap, timedelta(0)))
        yield entry


def _first_ends(entries: Iterable[Entry]) -> dict[tuple[str, int, str], datetime]:
    """Return when each attempt ended first, by (message id, attempt, consumer), and with consumer "" at any."""
    ended: dict[tuple[str, int, str], datetime] = {}
    for entry in entries:
        if entry.duration is not None and entry.at is not None:
            for consumer in ("", entry.consumer):
                key = (entry.message_id, entry.attempt, consumer)
                ended[key] = min(entry.at, ended.get(key, entry.at))
    return ended

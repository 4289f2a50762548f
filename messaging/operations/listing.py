"""Listing: rows of outbox and inbox side by side, the newest first."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db.models import QuerySet

from messaging import database
from messaging.models import InboxMessage, OutboxMessage

#: Every state a row can have; no two boxes share one.
STATES = (*OutboxMessage.State.values, *InboxMessage.State.values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which rows; an empty field asks for nothing in particular."""

    states: Collection[str] = ()
    type: str = ""
    consumer: str = ""
    subject: str = ""
    since: timedelta | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of a box. `at`: when it was written to the outbox, or changed last in the inbox."""

    at: datetime
    box: str
    state: str
    type: str
    subject: str
    consumer: str
    attempt: int
    message_id: str
    reason: str


def newest(wanted: Wanted, limit: int) -> list[Row]:
    """Return the newest rows that are `wanted`, at most `limit`.

    `consumer` finds what it received and what is addressed to it alone (its retries), not what it will get with
    others.
    """
    rows = sorted(_rows(wanted, limit), key=lambda row: row.at, reverse=True)
    return rows[:limit]


def _rows(wanted: Wanted, limit: int) -> Iterator[Row]:
    # State by state, because the indexes are (state, time): no query reads more than it returns.
    for state in wanted.states or STATES:
        if state in OutboxMessage.State:
            sent = _narrowed(OutboxMessage.objects.filter(state=state), "created_at", wanted)[:limit]
            yield from (_row(each, "outbox", each.created_at, each.last_error) for each in sent)
        else:
            received = _narrowed(InboxMessage.objects.filter(state=state), "changed_at", wanted)[:limit]
            yield from (_row(each, "inbox", each.changed_at, each.reason) for each in received)


def _narrowed(rows: QuerySet[Any], time_field: str, wanted: Wanted) -> QuerySet[Any]:
    exact = {"type": wanted.type, "consumer": wanted.consumer, "subject": wanted.subject}
    rows = rows.filter(**{name: value for name, value in exact.items() if value})
    if wanted.since is not None:
        rows = rows.filter(**{f"{time_field}__gte": database.in_future(-wanted.since.total_seconds())})
    return rows.defer("body", "headers").order_by(f"-{time_field}", "-id")


def _row(found: OutboxMessage | InboxMessage, box: str, at: datetime, reason: str) -> Row:
    return Row(
        at=at,
        box=box,
        state=found.state,
        type=found.type,
        subject=found.subject,
        consumer=found.consumer,
        attempt=found.attempt,
        message_id=found.message_id,
        reason=reason,
    )

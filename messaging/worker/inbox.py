"""The inbox: one row for each message at each consumer, and what becomes of it without a success; see `fence`.

A delivery may run only if its attempt is the one the row expects. The first delivery of an attempt moves the row;
every other one is a duplicate. `handled` is never overwritten.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from django.db.models.functions import Now

from messaging import conf, database
from messaging.headers import storable_headers
from messaging.message import Delivery
from messaging.models import DeliveryAttempt, InboxMessage
from messaging.models.failures import REASON_LIMIT, failure_group
from messaging.processes import process_name
from messaging.validation.functions import text_of
from messaging.validation.texts import storable_text

State = InboxMessage.State

#: Characters of a traceback that are kept, from its end: the failing line is there.
TRACEBACK_LIMIT = 20_000


def wait(delivery: Delivery) -> InboxMessage | None:
    """Let the message wait until the earlier ones of its ordering key are settled. Returns None for a duplicate."""
    return _move(delivery, state=State.WAITING, attempt=delivery.attempt, **_kept(delivery))


def start(delivery: Delivery) -> InboxMessage | None:
    """Count the start of a redelivered message, to be committed before the work.

    Returns the row; its `starts` include this one. A message that kills its process adds one with each death.
    Returns None for a duplicate.
    """
    delivery.tries.counted = True
    # The reason and body that an earlier attempt may have left stay.
    row = _move(delivery, columns=["changed_at"], state=State.RETRYING, attempt=delivery.attempt, starts=1)
    if row is None:
        return None
    row.refresh_from_db(fields=["starts"])
    return row


def expect_next(delivery: Delivery, reason: str) -> InboxMessage | None:
    """Move the row on after a failure, so that only the next attempt may run. Returns None for a duplicate."""
    return _move(delivery, state=State.RETRYING, attempt=delivery.attempt + 1, **_letter(delivery, reason))


def bury(delivery: Delivery, reason: str) -> InboxMessage | None:
    """Make the message dead, with reason and body. Returns None for a duplicate."""
    return _move(delivery, state=State.DEAD, attempt=delivery.attempt, **_letter(delivery, reason))


def record(
    row: InboxMessage,
    delivery: Delivery,
    outcome: DeliveryAttempt.Outcome,
    *,
    seconds: float = 0.0,
    error: str = "",
    traceback: str = "",
) -> None:
    """Write down one attempt of the handler that did not succeed."""
    DeliveryAttempt.objects.create(
        inbox_message=row,
        number=delivery.attempt,
        outcome=outcome,
        duration=timedelta(seconds=seconds),
        process=process_name(),
        redelivered=delivery.redelivered,
        error=error,
        traceback=traceback,
    )


def add_error(delivery: Delivery, text: str) -> None:
    """Add a failure after the commit to the row of a message that was handled, if it has one, for its history."""
    for row in InboxMessage.objects.filter(consumer=delivery.consumer, message_id=delivery.message_id).only("reason"):
        row.reason = "; ".join(filter(None, [row.reason, storable_text(text)[:REASON_LIMIT]]))
        row.save(update_fields=["reason"])


def describe(error: BaseException) -> str:
    """Return the error in one line, storable in any database."""
    return storable_text(f"{type(error).__name__}: {text_of(error)}".rstrip(": "))[:REASON_LIMIT]


def trace(error: BaseException) -> str:
    """Return the error's traceback, storable in any database."""
    return storable_text("".join(traceback.format_exception(error)))[-TRACEBACK_LIMIT:]


def attempts_before(delivery: Delivery) -> int:
    """Return how many attempts there were before the latest replay: the retry policy starts anew there."""
    row = InboxMessage.objects.filter(consumer=delivery.consumer, message_id=delivery.message_id)
    return row.values_list("attempts_before", flat=True).first() or 0


def _letter(delivery: Delivery, reason: str) -> dict[str, Any]:
    """Return what is kept of a failed message: why, and enough to replay it."""
    reason = storable_text(reason)[:REASON_LIMIT]
    group = failure_group(delivery.consumer, delivery.message.type, reason)
    return {"reason": reason, "failure_group": group, **_kept(delivery)}


def _kept(delivery: Delivery) -> dict[str, Any]:
    """Return what is kept for another delivery of the message."""
    limit = conf.get().max_body_bytes
    return {
        "body": delivery.message.body[:limit],
        "body_truncated": len(delivery.message.body) > limit,
        "headers": storable_headers(delivery.message.headers),
    }


_MOVED = ("state", "attempt", "changed_at", "reason", "failure_group", "body", "body_truncated", "headers")


def _move(delivery: Delivery, *, columns: Sequence[str] = _MOVED, **change: Any) -> InboxMessage | None:
    """Insert the row, or change `columns` of it where it expects this very attempt; return it, or None for a
    duplicate.

    One statement, so that of two processes with the same attempt only one gets through: the other waits on the
    unique index, and then finds the row moved.
    """
    message = delivery.message
    connection = database.connection()
    row = InboxMessage(
        consumer=delivery.consumer,
        message_id=delivery.message_id,
        identified=delivery.identified,
        type=message.type,
        version=_number(lambda: message.version) or 1,
        subject=message.subject,
        correlation_id=message.correlation_id,
        app_id=message.app_id,
        ordering_key=message.ordering_key,
        position=_number(lambda: message.position) if message.ordering_key else None,
        priority=message.priority,
        **change,
    )
    # The times are left to the database.
    fields = [f for f in row._meta.concrete_fields if not f.primary_key and not isinstance(f.db_default, Now)]
    table = connection.ops.quote_name(row._meta.db_table)
    names = ", ".join(f'"{f.column}"' for f in fields)
    values = [f.get_db_prep_save(getattr(row, f.attname), connection) for f in fields]
    moved = ", ".join(f'"{name}" = EXCLUDED."{name}"' for name in columns)
    sql = (
        f"INSERT INTO {table} ({names}) VALUES ({', '.join(['%s'] * len(values))}) "  # noqa: S608
        f"ON CONFLICT (consumer, message_id) DO UPDATE SET {moved}, starts = "
        # The starts of one attempt add up; a new attempt begins at none.
        f"CASE WHEN EXCLUDED.attempt = {table}.attempt THEN {table}.starts + EXCLUDED.starts ELSE 0 END "
        f"WHERE {table}.state = %s AND {table}.attempt = %s RETURNING id"
    )
    with connection.cursor() as cursor:
        cursor.execute(sql, [*values, State.RETRYING, delivery.attempt])
        found = cursor.fetchone()
    if not found:
        return None
    [row.pk] = found
    return row


def _number(read: Callable[[], int]) -> int | None:
    """Return a number from a header, or None: a bad one makes the message dead, but its row must be written."""
    try:
        return read()
    except ValueError:
        return None

"""The relay's two statements for many rows at once, in plain SQL: the ORM takes longer over them than the database.

Both are understood by PostgreSQL and SQLite. A claimed row is no model instance but a `Row`, which takes a tenth of the
time to make.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache, lru_cache
from typing import Any, NamedTuple

from messaging import database
from messaging.models import OutboxMessage
from messaging.models.clock import NOW, later


class Row(NamedTuple):
    """A claimed row of the outbox: what its message is made from, and what decides about its next try."""

    pk: int
    lease_token: uuid.UUID | None
    #: In whole seconds, as AMQP has it.
    created_at: datetime
    headers: dict[str, Any]
    body: bytes
    state: str
    publish_attempts: int
    message_id: str
    type: str
    version: int
    subject: str
    correlation_id: str
    ordering_key: str
    position: int | None
    priority: int | None
    attempt: int
    exchange: str
    routing_key: str
    consumer: str


#: A row that was handed over is the model instance that its writer has; both are read alike.
AnyRow = Row | OutboxMessage

#: The columns that are read as the driver returns them: those of `Row` behind `headers`.
_PLAIN = ", ".join(Row._fields[4:])


def lease(limit: int, max_bytes: int, token: uuid.UUID, seconds: float) -> list[Row]:
    """Lease up to `limit` rows that are due and free, oldest first, and return them; fewer if their bodies exceed
    `max_bytes`, the row that exceeds it included.

    Runs in the caller's transaction. PostgreSQL skips rows that another transaction has locked.
    """
    with database.connection().cursor() as cursor:
        cursor.execute(
            _lease(database.connection().vendor), [limit, max_bytes, _as_stored("lease_token", token), seconds]
        )
        found = sorted(cursor.fetchall())
    return [
        Row(pk, token, _at(created), json.loads(headers), bytes(body), *plain)
        for _, pk, created, headers, body, *plain in found
    ]


@lru_cache(100)
def _at(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


@cache
def _lease(vendor: str) -> str:
    is_sqlite = vendor == "sqlite"
    now = NOW[vendor]
    # Written exactly as in the index of such rows: SQLite recognises it only so. Without `unlikely` SQLite would take
    # an index on the state alone, and read and sort all waiting rows for each batch.
    waits = "state IN ('pending', 'unroutable')"
    waits = f"unlikely({waits})" if is_sqlite else waits
    epoch = "STRFTIME('%%s', created_at)" if is_sqlite else "FLOOR(EXTRACT(EPOCH FROM created_at))"
    # As a number: a driver takes longer to read a time.
    due = "publish_at" if is_sqlite else "CAST(EXTRACT(EPOCH FROM publish_at) AS DOUBLE PRECISION)"
    size = "LENGTH(body)" if is_sqlite else "OCTET_LENGTH(body)"
    return (
        f"WITH due AS (SELECT id, publish_at, {size} AS size FROM {_TABLE}"  # noqa: S608  (constants only)
        f" WHERE {waits} AND (lease_until IS NULL OR lease_until <= {now}) AND publish_at <= {now}"
        f" ORDER BY publish_at, id LIMIT %s{'' if is_sqlite else ' FOR UPDATE SKIP LOCKED'}),"
        " summed AS (SELECT id, SUM(size) OVER (ORDER BY publish_at, id) - size AS before FROM due),"
        " fitting AS (SELECT id AS due_id FROM summed WHERE before < %s)"
        f" UPDATE {_TABLE} SET lease_token = %s, lease_until = {later(vendor, '%s')}"
        f" FROM fitting WHERE id = due_id RETURNING {due}, id, CAST({epoch} AS BIGINT), headers, {_PLAIN}"
    )


def mark_published(ids: Sequence[tuple[int, int]], token: uuid.UUID | None, expected: Sequence[str]) -> None:
    """Mark rows published that still have this lease: `ids`, and how many milliseconds ago each was confirmed."""
    values = ", ".join(f"({pk}, {milliseconds})" for pk, milliseconds in ids)
    with database.connection().cursor() as cursor:
        cursor.execute(
            _mark_published(database.connection().vendor).replace("VALUES", f"VALUES {values}"),
            [_as_stored("expected_consumers", list(expected)), _as_stored("lease_token", token)],
        )


@cache
def _mark_published(vendor: str) -> str:
    return (
        f"UPDATE {_TABLE} SET state = 'published', published_at = {later(vendor, '-column2 / 1000.0')},"  # noqa: S608  (constants)
        " publish_attempts = publish_attempts + 1, expected_consumers = %s, last_error = '',"
        " lease_token = NULL, lease_until = NULL FROM (VALUES) AS confirmed"
        # COALESCE changes nothing. Without it PostgreSQL, whose statistics know no tokens, expects a single row with
        # this one: it then compares each of 500 such rows with all 500 that were confirmed.
        " WHERE id = column1 AND COALESCE(lease_token, lease_token) = %s"
    )


_TABLE = OutboxMessage._meta.db_table


def _as_stored(column: str, value: Any) -> Any:
    return OutboxMessage._meta.get_field(column).get_db_prep_value(value, database.connection())  # type: ignore[union-attr]

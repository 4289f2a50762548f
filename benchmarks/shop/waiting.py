"""Many rows that wait in the outbox."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import connection, transaction

if TYPE_CHECKING:
    from messaging.models import OutboxMessage


def fill_outbox(count: int) -> None:
    """Add `count` events for a relay elsewhere: one by `outbox.add`, the others as copies of its row.

    Each has its own message id and subject.
    """
    from benchmarks.shop.events import order_placed
    from messaging import outbox

    with transaction.atomic():
        (row,) = outbox.add(order_placed("N00000000"), subject="N00000000")
        if count > 1:
            _copy(row, count - 1)
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            # As in a table that has grown slowly: its statistics are known, its pages are written.
            cursor.execute("ANALYZE messaging_outboxmessage")
            cursor.execute("CHECKPOINT")


def _copy(row: OutboxMessage, count: int) -> None:
    own = {"id", "message_id", "subject"}
    columns = ", ".join(field.column for field in row._meta.concrete_fields if field.column not in own)
    numbers, new_id, subject = (
        ("generate_series(1, %s)", "gen_random_uuid()", "'N' || lpad(number::text, 8, '0')")
        if connection.vendor == "postgresql"
        else (
            "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %s) SELECT i AS number FROM n)",
            "lower(hex(randomblob(16)))",
            "printf('N%%08d', number)",
        )
    )
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO messaging_outboxmessage (message_id, subject, {columns})"
            f" SELECT {new_id}, {subject}, {columns} FROM messaging_outboxmessage, {numbers} AS number WHERE id = %s",
            [count, row.pk],
        )

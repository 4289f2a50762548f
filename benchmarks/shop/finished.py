"""Many finished rows: messages that were published and handled, as a shop has after ten days."""

from __future__ import annotations

from django.db import connection, transaction
from django.db.models import Model

#: Seconds over which the rows are spread, whatever their number: younger than any retention.
SPREAD = 10 * 86_400

_POSTGRESQL = {
    "numbers": "generate_series(1, %(count)s)",
    "id": "md5(number::text)",
    "subject": "'W-' || upper(substr(md5('w' || number), 1, 8))",
    "time": "now() - (%(count)s - number) * interval '1 second' * %(step)s",
}
_SQLITE = {
    "numbers": "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %(count)s)"
    " SELECT i AS number FROM n)",
    "id": "printf('%%016x%%016x', number * 7919 %% 1000003, number)",
    "subject": "printf('W-%%08X', number * 7919 %% 1000003 * 4096 + number)",
    "time": "strftime('%%Y-%%m-%%d %%H:%%M:%%f', 'now', (-(%(count)s - number) * %(step)s) || ' seconds')",
}
#: Columns that differ from row to row, and which of the texts above they hold.
_OWN = {"message_id": "id", "subject": "subject"}
_TIMES = {"created_at", "publish_at", "published_at", "received_at", "changed_at", "handled_at"}


def fill(count: int) -> None:
    """Have so many messages, published and handled by one consumer, and nothing else, in outbox and inbox."""
    from messaging.models import InboxMessage, OutboxMessage

    sent = {"type": "order.placed", "routing_key": "order.placed", "exchange": "orders.events", "state": "published"}
    outbox = OutboxMessage(**sent, body=b"x" * 500, expected_consumers=["sms"], publish_attempts=1)
    inbox = InboxMessage(type="order.placed", consumer="sms", app_id="warren", state="handled")
    for row in (outbox, inbox):
        _empty(type(row))
        with transaction.atomic():
            row.message_id = "pattern"
            row.save()
            _copy(row, count)
            row.delete()
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            # As in a table that has grown slowly: its statistics are known, its pages are written.
            cursor.execute("VACUUM ANALYZE messaging_outboxmessage, messaging_inboxmessage")
            cursor.execute("CHECKPOINT")


def _empty(model: type[Model]) -> None:
    with connection.cursor() as cursor:
        how = "TRUNCATE {} CASCADE" if connection.vendor == "postgresql" else "DELETE FROM {}"
        cursor.execute(how.format(model._meta.db_table))


def _copy(row: Model, count: int) -> None:
    sql = _POSTGRESQL if connection.vendor == "postgresql" else _SQLITE
    columns = [str(field.column) for field in row._meta.concrete_fields if field.column != "id"]
    values = [sql[_OWN[each]] if each in _OWN else sql["time"] if each in _TIMES else each for each in columns]
    table = row._meta.db_table
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {table} ({', '.join(columns)})"
            f" SELECT {', '.join(values)} FROM {table}, {sql['numbers']} AS number WHERE id = %(row)s",
            {"count": count, "step": SPREAD / count, "row": row.pk},
        )

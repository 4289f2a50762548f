"""The fence around handlers: what a success writes, in the handler's transaction.

`admit` writes the inbox row as *handled* before the handler runs: another process with the same attempt waits for this
transaction. `finish` adds when, where and how long. Both are plain SQL whose text is made once: with a model they took
a quarter of a consumer's time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from messaging import database
from messaging.message import Delivery
from messaging.models import DeliveryAttempt, InboxMessage
from messaging.processes import process_name

_TABLE = f'"{InboxMessage._meta.db_table}"'
#: What each new row gets, as text for both databases.
_CONSTANT = {
    "state": "'handled'",
    "headers": "'{}'",
    "starts": "0",
    "attempts_before": "0",
    "reason": "''",
    "failure_group": "''",
    "body_truncated": "FALSE",
}
#: Columns that most messages leave as they are: a statement names them if one of its messages does not.
_USUAL: dict[str, tuple[Any, str]] = {
    "identified": (True, "TRUE"),
    "version": (1, "1"),
    "ordering_key": ("", "''"),
    "position": (None, "NULL"),
    "priority": (None, "NULL"),
    "attempt": (1, "1"),
}
#: A row that waits for this very attempt is moved; of any other, nothing is returned.
_MOVE = f"""
ON CONFLICT (consumer, message_id) DO UPDATE SET state = 'handled', changed_at = EXCLUDED.changed_at, reason = '',
failure_group = '', body = NULL, body_truncated = FALSE, headers = '{{}}'
WHERE {_TABLE}.state = 'retrying' AND {_TABLE}.attempt = EXCLUDED.attempt
RETURNING id, handled_at"""
_NOW = {"postgresql": "STATEMENT_TIMESTAMP()", "sqlite": "STRFTIME('%%Y-%%m-%%d %%H:%%M:%%f', 'NOW')"}


@dataclass(frozen=True, slots=True)
class Admitted:
    """A delivery whose handler may run in this transaction, and its inbox row.

    `again`: the row holds a success already. That should never be; the new one is kept as an attempt.
    """

    delivery: Delivery
    row_id: int
    again: bool = False


def admit(delivery: Delivery) -> Admitted | None:
    """Move the delivery's row to *handled*, or insert it so, and return it; None for a duplicate.

    One statement: of two processes with the same attempt one gets through. The other waits on the unique index, and
    then finds the row moved.
    """
    row = _row_of(delivery)
    columns = tuple(row)
    with database.connection().cursor() as cursor:
        cursor.execute(_insert(columns) + _MOVE, list(row.values()))
        found = cursor.fetchone()
    return Admitted(delivery, row_id=found[0], again=found[1] is not None) if found else None


def finish(admitted: Sequence[Admitted]) -> None:
    """Write down when, where and how long the handler of each ran, by `delivery.tries.seconds`.

    Raises RuntimeError if a handler has ended the transaction by a ROLLBACK: `admit`, and what handlers wrote before,
    came to nothing, and its delivery must not count as handled.
    """
    connection = database.connection()
    with connection.cursor() as cursor:
        cursor.execute(_finish(connection, admitted), [process_name()])
        held = cursor.rowcount
    if held != len(admitted):
        raise RuntimeError("the handler ended the transaction that it runs in, by a ROLLBACK of its own")
    for each in admitted:
        if each.again:
            _keep(each)


def _keep(admitted: Admitted) -> None:
    delivery = admitted.delivery
    DeliveryAttempt.objects.create(
        inbox_message_id=admitted.row_id,
        number=delivery.attempt,
        outcome=DeliveryAttempt.Outcome.HANDLED,
        duration=timedelta(seconds=delivery.tries.seconds),
        process=process_name(),
        redelivered=delivery.redelivered,
    )


def _row_of(delivery: Delivery) -> dict[str, Any]:
    """Return the columns of a delivery's row that are not the same in every row."""
    message = delivery.message
    row: dict[str, Any] = {
        "consumer": delivery.consumer,
        "message_id": delivery.message_id,
        "type": message.type,
        "subject": message.subject,
        "correlation_id": message.correlation_id,
        "app_id": message.app_id,
    }
    unusual: dict[str, Any] = {
        "identified": delivery.identified,
        "version": message.version,
        "priority": message.priority,
        "attempt": delivery.attempt,
    }
    if message.ordering_key:
        unusual |= {"ordering_key": message.ordering_key, "position": message.position}
    row |= {name: value for name, value in unusual.items() if value != _USUAL[name][0]}
    return row


@cache
def _insert(columns: tuple[str, ...]) -> str:
    """Return the text that inserts a row with these columns; a column has one parameter."""
    constant = {**_CONSTANT, **{name: text for name, (_, text) in _USUAL.items() if name not in columns}}
    names = ", ".join([*columns, *constant])
    values = ", ".join([*["%s"] * len(columns), *constant.values()])
    return f"INSERT INTO {_TABLE} ({names}) VALUES ({values})"  # noqa: S608 (names of our own)


def _finish(connection: BaseDatabaseWrapper, admitted: Sequence[Admitted]) -> str:
    """Return the text that finishes these rows. It has numbers only, beside a parameter for the process."""
    numbers = ", ".join(
        f"({each.row_id}, {each.delivery.attempt}, {each.delivery.tries.seconds * 1000:.3f})" for each in admitted
    )
    return (
        # The first success stays.
        f"UPDATE {_TABLE} SET handled_at = COALESCE(handled_at, {_NOW[connection.vendor]}), "  # noqa: S608
        "process = COALESCE(process, %s), milliseconds = COALESCE(milliseconds, done.column3) "
        f"FROM (VALUES {numbers}) AS done WHERE {_TABLE}.id = done.column1 AND {_TABLE}.attempt = done.column2 "
        f"AND {_TABLE}.state IN ('handled', 'effects_due')"
    )

"""The fence around handlers: what a success writes, in the handler's transaction.

`admit` writes the inbox row as *handled* before the handler runs: another process with the same attempt waits for this
transaction. `finish` adds when, where and how long. Of a batch the new rows are *retrying* until `finish`: if a handler
ends the transaction by a COMMIT of its own, the messages behind it are not taken for handled. All of it is plain SQL
whose text is made once: with models it took a quarter of a consumer's time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from messaging import database
from messaging.message import Delivery
from messaging.models import DeliveryAttempt, InboxMessage
from messaging.models.clock import NOW
from messaging.processes import process_name

_TABLE = f'"{InboxMessage._meta.db_table}"'
#: What each new row gets, as text for both databases.
_CONSTANT = {
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
_SKIP = "\nON CONFLICT (consumer, message_id) DO NOTHING RETURNING id, message_id"
#: Rows of one statement: a database takes so many parameters, and so long a text.
_ROWS_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Admitted:
    """A delivery whose handler may run in this transaction, and its inbox row.

    `again`: the row holds a success already. That should never be; the new one is kept as an attempt.
    """

    delivery: Delivery
    row_id: int
    again: bool = False
    #: The state of the row until `finish`.
    state: str = InboxMessage.State.HANDLED.value


def admit(delivery: Delivery) -> Admitted | None:
    """Insert the delivery's row as *handled*, or move it there, and return it; None for a duplicate.

    Of two processes with the same attempt one gets through. The other waits on the unique index, and then finds the row
    moved.
    """
    row = _row_of(delivery)
    head, values = _insert(tuple(row), InboxMessage.State.HANDLED.value)
    with database.connection().cursor() as cursor:
        if delivery.attempt == 1 and not delivery.tries.counted:
            # It has no row yet, unless it is a duplicate: an insert alone is cheaper to plan.
            cursor.execute(f"{head}{values}{_SKIP}", list(row.values()))
            if found := cursor.fetchone():
                return Admitted(delivery, row_id=found[0])
        cursor.execute(f"{head}{values}{_MOVE}", list(row.values()))
        found = cursor.fetchone()
    return Admitted(delivery, row_id=found[0], again=found[1] is not None) if found else None


def admit_new(deliveries: Sequence[Delivery]) -> dict[str, Admitted]:
    """Insert the rows of those deliveries whose messages have none, by one statement; return them by message id.

    What is not returned is a duplicate, or has a row that may wait for it: `admit` tells.
    """
    by_id: dict[str, Delivery] = {}
    # In one order in all processes: of two with some of the same messages one waits, and not each for the other.
    for each in sorted(deliveries, key=lambda each: each.message_id):
        by_id.setdefault(each.message_id, each)
    admitted = {}
    state = InboxMessage.State.RETRYING.value
    for some in _pages(list(by_id.values())):
        rows = [_row_of(each) for each in some]
        columns = tuple(dict.fromkeys(name for row in rows for name in row))
        head, values = _insert(columns, state)
        parameters = [row[name] if name in row else _USUAL[name][0] for row in rows for name in columns]
        with database.connection().cursor() as cursor:
            cursor.execute(f"{head}{', '.join([values] * len(rows))}{_SKIP}", parameters)
            found = cursor.fetchall()
        admitted.update({message_id: Admitted(by_id[message_id], row_id, state=state) for row_id, message_id in found})
    return admitted


def finish(admitted: Sequence[Admitted]) -> None:
    """Write down when, where and how long the handler of each ran, by `delivery.tries.seconds`.

    Raises RuntimeError if a handler has ended the transaction by a ROLLBACK: `admit`, and what handlers wrote before,
    came to nothing, and its delivery must not count as handled.
    """
    connection = database.connection()
    for some in _pages(admitted):
        with connection.cursor() as cursor:
            cursor.execute(_finish(connection, some), [process_name()])
            held = cursor.rowcount
        if held != len(some):
            raise RuntimeError("the handler ended the transaction that it runs in, by a ROLLBACK of its own")
    for each in admitted:
        if each.again:
            _keep(each)


def _pages(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (rows[start : start + _ROWS_AT_ONCE] for start in range(0, len(rows), _ROWS_AT_ONCE))


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
def _insert(columns: tuple[str, ...], state: str) -> tuple[str, str]:
    """Return the beginning of an INSERT with these columns, and the values of a row: a parameter for each column."""
    constant = {
        "state": f"'{state}'",
        **_CONSTANT,
        **{name: text for name, (_, text) in _USUAL.items() if name not in columns},
    }
    names = ", ".join([*columns, *constant])
    values = ", ".join([*["%s"] * len(columns), *constant.values()])
    return f"INSERT INTO {_TABLE} ({names}) VALUES ", f"({values})"  # noqa: S608 (names of our own)


def _finish(connection: BaseDatabaseWrapper, admitted: Sequence[Admitted]) -> str:
    """Return the text that finishes these rows. It has numbers and states only, beside a parameter for the process."""
    rows = [
        (str(each.row_id), str(each.delivery.attempt), f"{each.delivery.tries.seconds * 1000:.3f}", f"'{each.state}'")
        for each in admitted
    ]
    if len(rows) == 1:
        # PostgreSQL takes a tenth longer where such a row comes by a FROM.
        [(row_id, attempt, milliseconds, state)], source = rows, ""
    else:
        row_id, attempt, milliseconds, state = (f"done.column{number}" for number in range(1, 5))
        source = "FROM (VALUES {}) AS done ".format(", ".join(f"({', '.join(row)})" for row in rows))
    # The row of a single delivery is *handled* already.
    is_moved = any(each.state != InboxMessage.State.HANDLED for each in admitted)
    moved = "state = CASE state WHEN 'retrying' THEN 'handled' ELSE state END, " if is_moved else ""
    return (
        # The first success stays.
        f"UPDATE {_TABLE} SET {moved}"  # noqa: S608  (names and numbers of our own)
        f"handled_at = COALESCE(handled_at, {NOW[connection.vendor]}), "
        f"process = COALESCE(process, %s), milliseconds = COALESCE(milliseconds, {milliseconds}) {source}"
        f"WHERE {_TABLE}.id = {row_id} AND {_TABLE}.attempt = {attempt} AND {_TABLE}.state IN ({state}, 'effects_due')"
    )

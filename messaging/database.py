"""How the threads of a long-lived process use the database: in transactions, on a connection that works."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

from django.db import (
    DEFAULT_DB_ALIAS,
    InterfaceError,
    OperationalError,
    connections,
    models,
    router,
    transaction,
)
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.expressions import Combinable
from django.db.models.functions import Now

from messaging.models import OutboxMessage

#: First half of our advisory locks, so that they do not meet an application's own.
_ADVISORY = 0x5741_5252
#: disk_full and io_error; read_only_sql_transaction (https://www.postgresql.org/docs/current/errcodes-appendix.html).
_DISK_FAILS = {"53100", "58030", sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
_READ_ONLY = {"25006", sqlite3.SQLITE_READONLY}


def alias() -> str:
    """Return the alias of the database that holds the outbox and the inbox."""
    return router.db_for_write(OutboxMessage) or DEFAULT_DB_ALIAS


def connection() -> BaseDatabaseWrapper:
    """Return this thread's connection to the database of the outbox and the inbox."""
    return connections[alias()]


@contextmanager
def atomic() -> Iterator[None]:
    """Run a transaction, on a new connection where the old one broke.

    Only after an error is the connection looked at: a ping for each message would double its round trips.
    """
    if connection().errors_occurred:
        connection().close_if_unusable_or_obsolete()
    with transaction.atomic(using=alias()):
        yield


@contextmanager
def one_of_many() -> Iterator[None]:
    """Run one of many transactions in a row, and rest after it where that lets others get their turn.

    SQLite has one writer at a time, and its lock goes to whoever asks at the right moment: leave the shop as long as
    was taken from it.
    """
    started = time.monotonic()
    with atomic():
        yield
    if is_sqlite():
        time.sleep(time.monotonic() - started)


def is_away(error: BaseException) -> bool:
    """Whether `error` means that the database cannot be reached: the connection is unusable, nothing else.

    A deadlock, a lock timeout or a full disk are errors on a connection that still works (see `takes_no_rows`).
    """
    if not isinstance(error, OperationalError | InterfaceError):
        return False
    here = connection()
    return here.connection is None or not here.is_usable()


def takes_no_rows(error: BaseException) -> bool:
    """Whether `error` means that a database can write nothing, whoever asks: its disk is full, or fails.

    Which database that is, the error does not tell.
    """
    return _code(error) in _DISK_FAILS


def is_read_only(error: BaseException) -> bool:
    """Whether `error` means that a database, or this transaction, may only read."""
    return _code(error) in _READ_ONLY


def _code(error: BaseException) -> str | int | None:
    # SQLite's codes have details beyond the first byte (https://www.sqlite.org/rescode.html).
    code: int | None = getattr(error.__cause__, "sqlite_errorcode", None)
    return getattr(error.__cause__, "sqlstate", None) if code is None else code & 0xFF


def is_sqlite() -> bool:
    """Whether the database has one writer at a time."""
    return connection().vendor == "sqlite"


def take_turns(what: str, key: str) -> None:
    """Let transactions that say the same here go on one after the other: this one waits until the others are over.

    PostgreSQL's advisory locks do it (https://www.postgresql.org/docs/current/explicit-locking.html). SQLite's
    transactions do so by themselves, as there is one writer.
    """
    if is_sqlite():
        return
    with connection().cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", [_ADVISORY, f"{what}:{key}"])


def now() -> datetime:
    """Return the time by the database's clock."""
    sql = "SELECT STRFTIME('%%Y-%%m-%%d %%H:%%M:%%f+00:00', 'NOW')" if is_sqlite() else "SELECT STATEMENT_TIMESTAMP()"
    with connection().cursor() as cursor:
        cursor.execute(sql, [])
        (found,) = cursor.fetchone()
    return datetime.fromisoformat(found) if isinstance(found, str) else found


def in_future(seconds: float) -> Combinable:
    """Return an expression for a time `seconds` from now, by the database's clock."""
    return Now() + models.Value(timedelta(seconds=seconds), output_field=models.DurationField())

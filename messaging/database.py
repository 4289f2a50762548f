"""How the threads of a long-lived process use the database: in transactions, on a connection that works."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any
from weakref import WeakKeyDictionary

from django.db import (
    DEFAULT_DB_ALIAS,
    DatabaseError,
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

from messaging.logs import get_logger
from messaging.models import OutboxMessage
from messaging.models.fields import as_written
from messaging.validation import functions

log = get_logger(__name__)

#: First half of our advisory locks, so that they do not meet an application's own.
_ADVISORY = 0x5741_5252
#: disk_full and io_error; read_only_sql_transaction (https://www.postgresql.org/docs/current/errcodes-appendix.html).
_DISK_FAILS = {"53100", "58030", sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
_READ_ONLY = {"25006", sqlite3.SQLITE_READONLY}
#: The server ended the connection: idle_in_transaction_session_timeout, transaction_timeout. Class 25 has no error of
#: its own in Django: psycopg makes InternalErrors of them.
_ENDED = {"25P03", "25P04"}


def alias() -> str:
    """Return the alias of the database that holds the outbox and the inbox."""
    return router.db_for_write(OutboxMessage) or DEFAULT_DB_ALIAS


def connection() -> BaseDatabaseWrapper:
    """Return this thread's connection to the database of the outbox and the inbox."""
    return connections[alias()]


@contextmanager
def atomic(*, for_handler: bool = False) -> Iterator[None]:
    """Run a transaction, on a new connection where the old one broke.

    Only after an error is a connection looked at: a ping for each message would double its round trips. Those to other
    databases, which a handler may use, are looked at too: else none of its messages would succeed in this thread again.

    Transactions of our own are READ COMMITTED, whatever the project's are: our locks and leases are made for it, and a
    stricter level would only fail them. With `for_handler` the level is the project's.

    What the project's code registers in it with `on_commit` (a signal's receiver may) cannot fail it: see
    `guard_callbacks`. Inside a transaction of the project's, its callbacks are left alone.
    """
    here = connection()
    for each in connections.all(initialized_only=True):
        if each.errors_occurred:
            each.close_if_unusable_or_obsolete()
    before = len(here.run_on_commit)
    ours = not has_transaction(here)
    outermost = not here.in_atomic_block
    try:
        with transaction.atomic(using=alias()):
            if outermost and not for_handler:
                _read_committed(here)
            yield
            if here.closed_in_transaction:
                # Django would leave the block as if it had committed.
                raise InterfaceError("the connection was closed inside the transaction, which the database rolled back")
            if ours:
                guard_callbacks(_log_failure, since=before)
    except DatabaseError as error:
        if not for_handler and is_read_only(error):
            connect_anew()
        raise


def connect_anew() -> None:
    """Close this thread's connection, so that the next statement opens a new one; not inside a transaction.

    A connection may be read-only where others are not: a handler left its session so, or its server is no longer the
    primary.
    """
    here = connection()
    if not here.in_atomic_block:
        here.close()


def give_back_pooled() -> None:
    """Give this thread's connections back to their pools, where OPTIONS has one: other threads may wait for them.

    A pool has four connections unless the project says otherwise, and a consumer has more threads than that. Those
    without a pool are kept.
    """
    for each in connections.all(initialized_only=True):
        if each.settings_dict.get("OPTIONS", {}).get("pool") and not each.in_atomic_block:
            each.close()


#: Whether transactions of a driver's connection are stricter than READ COMMITTED, as far as it was asked.
_stricter: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def _read_committed(here: BaseDatabaseWrapper) -> None:
    """Make this transaction READ COMMITTED where it is stricter. To be called before its first statement.

    The level comes from OPTIONS, the server, the database or the role: each connection is asked once.
    """
    if here.vendor != "postgresql":
        return
    here.ensure_connection()
    # Past Django's cursor, which would run the project's wrappers of statements for it.
    with here.wrap_database_errors, here.connection.cursor() as cursor:
        if here.connection not in _stricter:
            cursor.execute("SHOW transaction_isolation")
            _stricter[here.connection] = cursor.fetchone()[0] in {"repeatable read", "serializable"}
        if _stricter[here.connection]:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")


def has_transaction(connection: BaseDatabaseWrapper) -> bool:
    """Whether the connection is in a transaction that can commit."""
    blocks: list[Any] = connection.atomic_blocks
    # A TestCase wraps each test in blocks of its own, which never commit: look through them, as `durable` does.
    return not all(block._from_testcase for block in blocks)


#: Told of a callback of `on_commit` that failed: its name, and what it raised.
CallbackFailed = Callable[[str, BaseException], None]


class RaisesNothing:
    """Parent of what registers a method of its own with `on_commit`, and raises nothing in it."""


class _Guarded(RaisesNothing):
    """A callback of `on_commit` that raises nothing, not even what would end its thread."""

    def __init__(self, callback: Callable[[], Any], failed: CallbackFailed) -> None:
        self._callback = callback
        self._failed = failed

    def call(self) -> None:
        """Call it."""
        try:
            self._callback()
        except BaseException as error:
            self._failed(functions.name(self._callback), error)


def guard_callbacks(failed: CallbackFailed, *, since: int = 0) -> None:
    """Guard what this transaction has to call after its commit, from place `since` on: where a callback raises, only
    `failed` is told. The transaction has committed, and the callbacks behind it still run."""
    hooks: list[Any] = connection().run_on_commit
    hooks[since:] = [
        (savepoints, callback if _raises_nothing(callback) else _Guarded(callback, failed).call, robust)
        for savepoints, callback, robust in hooks[since:]
    ]


def _raises_nothing(callback: object) -> bool:
    return isinstance(getattr(callback, "__self__", None), RaisesNothing)


def _log_failure(callback: str, error: BaseException) -> None:
    log.error("callback.failed", callback=callback, reason=functions.text_of(error), exc_info=error)


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


def is_lost(error: BaseException, opened: object = None) -> bool:
    """Whether `error` comes from a connection that has ended: closed by this process, or by the server.

    `opened` is the driver's connection at the beginning of the transaction: Django connects anew when it leaves one
    whose connection has ended. A deadlock, a lock timeout or a full disk are errors on a connection that still works
    (see `takes_no_rows`).
    """
    if not isinstance(error, DatabaseError | InterfaceError):
        return False
    here = connection()
    replaced = opened is not None and here.connection is not opened
    return replaced or here.connection is None or not here.is_usable()


def answers() -> bool:
    """Whether the database answers on a new connection, which this thread has from then on."""
    here = connection()
    here.close()
    try:
        with here.cursor() as cursor:
            cursor.execute("SELECT 1")
    except (DatabaseError, InterfaceError):
        return False
    return True


def is_away(error: BaseException) -> bool:
    """Whether `error` means that the database cannot be reached: the connection has ended, and a new one fails too."""
    return is_lost(error) and not answers()


def is_serialization_failure(error: BaseException) -> bool:
    """Whether `error` means that a transaction met another one, under REPEATABLE READ or SERIALIZABLE: run again, it
    will succeed (https://www.postgresql.org/docs/current/mvcc-serialization-failure-handling.html)."""
    return _code(error) == "40001"


def passes(error: BaseException | None) -> bool:
    """Whether `error` is the database's and may be over in a moment: it is away or busy, ended the connection, or may
    only be read for now.

    What the code does on a connection that has ended fails in its own way: the errors before it count too.
    """
    while isinstance(error, DatabaseError | InterfaceError):
        if isinstance(error, OperationalError | InterfaceError) or _code(error) in _ENDED | _READ_ONLY:
            return True
        error = error.__context__ if isinstance(error.__context__, DatabaseError | InterfaceError) else None
    return False


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
    sql = "SELECT STRFTIME('%%Y-%%m-%%d %%H:%%M:%%f', 'NOW')" if is_sqlite() else "SELECT STATEMENT_TIMESTAMP()"
    here = connection()
    with here.cursor() as cursor:
        cursor.execute(sql, [])
        (found,) = cursor.fetchone()
    return as_written(datetime.fromisoformat(found) if isinstance(found, str) else found, here)


def in_future(seconds: float) -> Combinable:
    """Return an expression for a time `seconds` from now, by the database's clock."""
    return Now() + models.Value(timedelta(seconds=seconds), output_field=models.DurationField())

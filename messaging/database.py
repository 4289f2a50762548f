"""The database of outbox and inbox: transactions, errors, locks and its clock."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import Any
from weakref import WeakKeyDictionary

from django.db import DatabaseError, InterfaceError, OperationalError, connections, models, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.expressions import Combinable
from django.db.models.functions import Now

from messaging.logs import get_logger
from messaging.models import OutboxMessage
from messaging.models.clock import NOW
from messaging.models.columns import as_written
from messaging.validation import callbacks, functions

log = get_logger(__name__)

#: First half of our advisory locks: an application's own differ.
_ADVISORY = 0x5741_5252
#: disk_full and io_error; read_only_sql_transaction (https://www.postgresql.org/docs/current/errcodes-appendix.html).
_DISK_FAILS = {"53100", "58030", sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
_READ_ONLY = {"25006", sqlite3.SQLITE_READONLY}
#: The server ended the connection: idle_in_transaction_session_timeout, transaction_timeout. Class 25 has no error of
#: its own in Django: psycopg makes InternalErrors of them.
_ENDED = {"25P03", "25P04"}


def alias() -> str:
    """Return the alias of the database that holds the outbox and the inbox."""
    return router.db_for_write(OutboxMessage)


def connection() -> BaseDatabaseWrapper:
    """Return this thread's connection to the database of the outbox and the inbox."""
    return connections[alias()]


@contextmanager
def atomic(*, for_handler: bool = False) -> Iterator[None]:
    """Run a transaction, on a new connection if the old one is lost.

    A connection is checked only after an error: a ping for each message would double its round trips. Connections to
    other databases are checked too, because a handler may use them.

    Our own transactions are READ COMMITTED, whatever the project's are: our locks and leases are made for that level,
    and a stricter one would only make them fail. With `for_handler` the level is the project's.

    Callbacks that the project's code registers with `on_commit` (in a signal's receiver, say) cannot fail it: see
    `callbacks.guard`. Inside a transaction of the project its callbacks are left alone.
    """
    here = connection()
    _replace_lost()
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
                callbacks.guard(here.run_on_commit, _log_failure, since=before)
        if outermost and here.in_atomic_block:
            raise RuntimeError("a transaction.atomic() was entered inside and never left, so nothing was committed")
    except DatabaseError as error:
        if not for_handler and is_read_only(error):
            reconnect()
        raise
    finally:
        if outermost and here.in_atomic_block:
            _abandon(here)


@contextmanager
def one_statement() -> Iterator[None]:
    """Run one statement, as `atomic` does. It commits by itself where it can: BEGIN and COMMIT would be two more."""
    here = connection()
    _replace_lost()
    if here.in_atomic_block or not here.get_autocommit() or _is_stricter(here):
        with atomic():
            yield
        return
    try:
        yield
    except DatabaseError as error:
        if is_read_only(error):
            reconnect()
        raise


def _replace_lost() -> None:
    """Close connections on which errors occurred and which are lost. A new one is made when it is needed."""
    for each in connections.all(initialized_only=True):
        if each.errors_occurred:
            each.close_if_unusable_or_obsolete()


def _abandon(here: BaseDatabaseWrapper) -> None:
    """Roll back a transaction that was left open: Django would take all that follows for a part of it, and commit
    nothing any more."""
    here.in_atomic_block = False
    here.savepoint_ids.clear()
    here.atomic_blocks.clear()
    with suppress(DatabaseError, InterfaceError):
        here.rollback()
        here.set_autocommit(True)  # for a database in memory, which is not closed
    here.close()


def reconnect() -> None:
    """Close this thread's connection, so that the next statement opens a new one; not inside a transaction.

    One connection may be read-only while others are not: a handler made it so, or its server is no longer the primary.
    """
    here = connection()
    if not here.in_atomic_block:
        here.close()


def release_between_messages() -> None:
    """Release what this thread's connections hold after the work on a message, as Django does between two requests.

    A connection of a pool (OPTIONS) goes back to it, because other threads may wait for it: a pool has four by default,
    and a consumer has more threads. Others stay open. With `DEBUG` Django keeps the last 9000 statements of each
    connection, and ours have whole bodies in them: they are forgotten. A transaction that was left open is rolled back.
    """
    for each in connections.all(initialized_only=True):
        if has_transaction(each):  # of another database, or a procedure's
            log.error("database.transaction_left_open", database=each.alias)
            _abandon(each)
        each.queries_log.clear()
        if each.settings_dict.get("OPTIONS", {}).get("pool") and not each.in_atomic_block:
            each.close()


#: Whether transactions of a driver's connection are stricter than READ COMMITTED, if that is known.
_stricter: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def _read_committed(here: BaseDatabaseWrapper) -> None:
    """Make this transaction READ COMMITTED if it is stricter. Call it before the first statement."""
    if _is_stricter(here):
        with here.wrap_database_errors, here.connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")


def _is_stricter(here: BaseDatabaseWrapper) -> bool:
    """Whether this connection's transactions are stricter than READ COMMITTED.

    The level comes from OPTIONS, the server, the database or the role: each connection is asked once.
    """
    if here.vendor != "postgresql":
        return False
    here.ensure_connection()
    if here.connection not in _stricter:
        # The driver's cursor: Django's would run the project's wrappers of statements.
        with here.wrap_database_errors, here.connection.cursor() as cursor:
            cursor.execute("SHOW transaction_isolation")
            _stricter[here.connection] = cursor.fetchone()[0] in {"repeatable read", "serializable"}
    return _stricter[here.connection]


def has_transaction(connection: BaseDatabaseWrapper) -> bool:
    """Whether the connection is in a transaction that can commit."""
    blocks: list[Any] = connection.atomic_blocks
    # The blocks of a TestCase never commit: look through them, as `durable` does.
    return not all(block._from_testcase for block in blocks)


def _log_failure(callback: str, error: BaseException) -> None:
    log.error("callback.failed", callback=callback, reason=functions.text_of(error), exc_info=error)


@contextmanager
def one_of_many() -> Iterator[None]:
    """Run one of many transactions in a row. On SQLite pause after it as long as it took: its lock has no queue, and
    other writers need time to get it."""
    started = time.monotonic()
    with atomic():
        yield
    if is_sqlite():
        time.sleep(time.monotonic() - started)


def is_lost(error: BaseException, opened: object = None) -> bool:
    """Whether `error` comes from a lost connection: closed by this process, or by the server.

    `opened` is the driver's connection at the beginning of the transaction: when a transaction ends on a lost
    connection, Django opens a new one. A deadlock, a lock timeout or a full disk (`is_disk_failure`) are errors on a
    connection that still works.
    """
    if not isinstance(error, DatabaseError | InterfaceError):
        return False
    here = connection()
    replaced = opened is not None and here.connection is not opened
    return replaced or here.connection is None or not here.is_usable()


def is_reachable() -> bool:
    """Whether the database answers on a new connection, which this thread then keeps."""
    here = connection()
    here.close()
    try:
        with here.cursor() as cursor:
            cursor.execute("SELECT 1")
    except (DatabaseError, InterfaceError):
        return False
    return True


def is_unreachable(error: BaseException) -> bool:
    """Whether the connection is lost, and a new one fails too."""
    return is_lost(error) and not is_reachable()


def is_serialization_failure(error: BaseException) -> bool:
    """Whether a transaction conflicted with another (under REPEATABLE READ or SERIALIZABLE) and must run again
    (https://www.postgresql.org/docs/current/mvcc-serialization-failure-handling.html)."""
    return _code(error) == "40001"


def is_transient(error: BaseException | None) -> bool:
    """Whether `error` is a database's and may soon be over: it is unreachable, busy or read-only, or it ended the
    connection.

    Code that goes on using a lost connection fails with other errors: the errors before them count too.
    """
    while isinstance(error, DatabaseError | InterfaceError):
        if isinstance(error, OperationalError | InterfaceError) or _code(error) in _ENDED | _READ_ONLY:
            return True
        error = error.__context__ if isinstance(error.__context__, DatabaseError | InterfaceError) else None
    return False


def is_disk_failure(error: BaseException) -> bool:
    """Whether a database can write nothing, because its disk is full or fails."""
    return _code(error) in _DISK_FAILS


def is_read_only(error: BaseException) -> bool:
    """Whether a database, or this transaction, is read-only."""
    return _code(error) in _READ_ONLY


def _code(error: BaseException) -> str | int | None:
    cause = error.__cause__
    # SQLite's codes have details beyond the first byte (https://www.sqlite.org/rescode.html).
    code: int | None = getattr(cause, "sqlite_errorcode", None)
    if code is not None:
        return code & 0xFF
    state: str | None = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)  # psycopg, psycopg2
    return state


def is_sqlite() -> bool:
    """Whether the database has one writer at a time."""
    return connection().vendor == "sqlite"


def lock_key(what: str, key: str) -> None:
    """Wait until no other transaction holds the lock of this `what` and `key`, and hold it to the transaction's end.

    It is one of PostgreSQL's advisory locks (https://www.postgresql.org/docs/current/explicit-locking.html). SQLite
    needs none: it has one writer at a time.
    """
    if is_sqlite():
        return
    with connection().cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", [_ADVISORY, f"{what}:{key}"])


def now() -> datetime:
    """Return the time by the database's clock."""
    here = connection()
    with here.cursor() as cursor:
        cursor.execute(f"SELECT {NOW[here.vendor]}", [])
        (found,) = cursor.fetchone()
    return as_written(datetime.fromisoformat(found) if isinstance(found, str) else found, here)


def in_future(seconds: float) -> Combinable:
    """Return an expression for a time `seconds` from now, by the database's clock."""
    return Now() + models.Value(timedelta(seconds=seconds), output_field=models.DurationField())

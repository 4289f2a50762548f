"""Waiting for the database: after contention, while it is away, and for SQLite's one writer."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

from django.db import DatabaseError, InterfaceError, InternalError, OperationalError

from messaging import database
from messaging.logs import Throttle, get_logger
from messaging.message import Tries
from messaging.models import InboxMessage
from messaging.worker.inbox import describe

log = get_logger(__name__)

Result = TypeVar("Result")

#: Seconds between two looks at whether the database is back.
DATABASE_PAUSE = 1.0
#: Tries after a deadlock or a lock timeout, which are no message's fault. Then it counts as a failed attempt.
CONTENTION_TRIES = 3
#: Tries under REPEATABLE READ and SERIALIZABLE, where conflicts are usual. Each has a growing pause, up to so many
#: seconds.
SERIALIZATION_TRIES = 20
LONGEST_CONTENTION = 0.5
#: Lost connections during its handler after which a message has failed.
LOSS_LIMIT = 3


class DatabaseAway(Exception):
    """The database is unreachable, or takes no rows. Nothing was decided or acknowledged, and no attempt counts."""


class ConnectionLost(Exception):
    """The connection to the database ended each time that a message was handled, while the database answered others."""


def in_transaction(tries: Tries, run: Callable[[], Result]) -> Result:
    """Run `run` in a transaction; again after contention, or a lost connection.

    Raises DatabaseAway, ConnectionLost, and whatever else `run` raises.
    """
    tried = 0
    why: Exception | None = None
    while tries.losses < LOSS_LIMIT:
        tried += 1
        tries.called = committing = False
        opened = None
        try:
            with database.atomic(for_handler=True):
                opened = database.connection().connection
                result = run()
                committing = True
            return result
        except DatabaseAway:
            raise
        except Exception as error:
            why = error
            if database.is_lost(error, opened):
                tries.losses += tries.called
                if (tried >= CONTENTION_TRIES and tries.losses < LOSS_LIMIT) or not database.is_reachable():
                    raise DatabaseAway(str(error).strip()) from error
            elif committing and database.is_disk_failure(error):
                raise DatabaseAway(str(error).strip()) from error
            elif database.is_serialization_failure(error) and tried < SERIALIZATION_TRIES:
                # Transactions that met would meet again if all began at once.
                time.sleep(random.uniform(0, min(0.01 * 2**tried, LONGEST_CONTENTION)))  # noqa: S311
            elif tried >= CONTENTION_TRIES or not isinstance(error, OperationalError):
                raise
            log.info("message.contention", reason=describe(error))
    raise ConnectionLost(
        f"its connection to the database ended {tries.losses} times while it was handled; does the handler close it, "
        f"or take longer than the database allows? {describe(why) if why else ''}".rstrip()
    ) from why


@contextmanager
def own_statements(*, handled: bool) -> Iterator[None]:
    """Around statements of ours: raise DatabaseAway if the database takes no rows.

    It is raised at once: if the database recovers before the failure is recorded, the message loses an attempt for
    nothing. After the handler ran (`handled`) a read-only error counts as the handler's failure, which may have made
    the transaction read-only.
    """
    try:
        yield
    except (InternalError, OperationalError) as error:
        if database.is_disk_failure(error) or (database.is_read_only(error) and not handled):
            raise DatabaseAway(str(error).strip()) from error
        raise


class DatabaseWait:
    """How one consumer waits for the database. `writer`, if given, is held during each attempt, for SQLite."""

    def __init__(self, consumer: str, stopping: threading.Event, writer: threading.Lock | None = None) -> None:
        self.stopping = stopping
        self._consumer = consumer
        self._writer = writer

    def run(self, attempt: Callable[[], Result]) -> Result | None:
        """Run `attempt`, again and again while the database is away; None if the consumer stops meanwhile.

        The delivery stays unacknowledged: requeued, it would count towards the queue's delivery limit. No attempt of
        the message is counted.
        """
        reasons = Throttle()
        while True:
            try:
                with self._share():
                    result = attempt()
            except (DatabaseAway, DatabaseError, InterfaceError) as error:
                # A full disk can still be read, and is found full again each second.
                self._warn(reasons, error)
            else:
                if reasons.reset():
                    log.info("consumer.database_back", consumer=self._consumer)
                return result
            if self.stopping.is_set() or not self._wait(reasons):
                return None

    def _wait(self, reasons: Throttle) -> bool:
        while not self.stopping.wait(DATABASE_PAUSE):
            try:
                with database.atomic():
                    InboxMessage.objects.exists()
            except (DatabaseError, InterfaceError) as error:
                # A table that is missing, or locked for a migration, is waited for like the server itself.
                self._warn(reasons, error)
                continue
            return True
        return False

    def _warn(self, reasons: Throttle, error: BaseException) -> None:
        reason = str(error).strip() or type(error).__name__
        if reasons.allows(reason):
            log.warning("consumer.database_away", consumer=self._consumer, reason=reason)

    def _share(self) -> AbstractContextManager[None]:
        return nullcontext() if self._writer is None else _fair_share(self._writer, self.stopping)


@contextmanager
def _fair_share(writer: threading.Lock, stopping: threading.Event) -> Iterator[None]:
    """Hold SQLite's one write lock for this process, and then pause for as long as it was held.

    The shop's own transactions wait for the same lock. SQLite gives it to the one that happens to ask at the right
    moment, so a consumer that asks without a pause would starve them.
    """
    with writer:
        since = time.monotonic()
        try:
            yield
        finally:
            stopping.wait(time.monotonic() - since)

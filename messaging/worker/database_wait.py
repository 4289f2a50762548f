"""Turns at the database: a consumer waits while it is away, and shares SQLite's one writer fairly with the shop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

from django.db import DatabaseError, InterfaceError

from messaging import database
from messaging.logs import Throttle, get_logger
from messaging.models import InboxMessage
from messaging.worker.handling import DatabaseAway

log = get_logger(__name__)

Result = TypeVar("Result")

#: Seconds between two looks at whether the database is back.
DATABASE_PAUSE = 1.0


class Turns:
    """One consumer's turns. `lock`, where given, is held during each: SQLite has one writer."""

    def __init__(self, consumer: str, stopping: threading.Event, lock: threading.Lock | None) -> None:
        self._consumer = consumer
        self._stopping = stopping
        self._lock = lock

    def take(self, attempt: Callable[[], Result]) -> Result | None:
        """Run `attempt`, again and again while the database is away; None where the consumer stops meanwhile.

        The delivery stays unacknowledged all the while: to requeue it would eat the queue's delivery limit, and
        no attempt of the message's own is counted.
        """
        reasons = Throttle()
        while True:
            try:
                with self._mine():
                    result = attempt()
            except (DatabaseAway, DatabaseError, InterfaceError) as error:
                # A full disk can still be read, and is found full again each second.
                self._tell(reasons, error)
            else:
                if reasons.reset():
                    log.info("consumer.database_back", consumer=self._consumer)
                return result
            if self._stopping.is_set() or not self._wait(reasons):
                return None

    def _wait(self, reasons: Throttle) -> bool:
        while not self._stopping.wait(DATABASE_PAUSE):
            try:
                with database.atomic():
                    InboxMessage.objects.exists()
            except (DatabaseError, InterfaceError) as error:
                # A table that is missing, or locked for a migration, is waited for like the server itself.
                self._tell(reasons, error)
                continue
            return True
        return False

    def _tell(self, reasons: Throttle, error: BaseException) -> None:
        reason = str(error).strip() or type(error).__name__
        if reasons.allows(reason):
            log.warning("consumer.database_away", consumer=self._consumer, reason=reason)

    def _mine(self) -> AbstractContextManager[None]:
        return nullcontext() if self._lock is None else _FairTurn(self._lock, self._stopping)


class _FairTurn:
    """Holds the process's turn at SQLite's one write lock, and then rests for as long as it was held.

    The shop's own transactions wait on the same lock; SQLite hands it to whoever happens to ask at the right
    moment, so a consumer that asks without pause starves them.
    """

    def __init__(self, lock: threading.Lock, stopping: threading.Event) -> None:
        self._lock = lock
        self._stopping = stopping

    def __enter__(self) -> None:
        self._lock.acquire()
        self._since = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._stopping.wait(time.monotonic() - self._since)
        self._lock.release()

"""The relay of a long-lived process: a daemon thread, started lazily, after any fork.

Web workers and consumers publish what they commit. Short commands, Celery children and tests run no relay: any relay
claims their rows within a second.
"""

from __future__ import annotations

import atexit
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import request_started
from django.db import connections

from messaging import conf, processes
from messaging.logs import get_logger
from messaging.models import OutboxMessage
from messaging.relay import leases

if TYPE_CHECKING:
    from messaging.relay.relay import Relay

log = get_logger(__name__)

#: Seconds after which a thread that could not start is started again.
PAUSE = 2.0


class RelayThread:
    """The relay thread of this process, if it has one."""

    def __init__(self, *, long_lived: bool = False) -> None:
        self.lock = threading.Lock()
        self.long_lived = long_lived
        self.token = uuid.uuid4()
        self.relay: Relay | None = None
        self.thread: threading.Thread | None = None
        #: Whether a thread should run: it was asked for, and not stopped since.
        self.should_run = False
        #: When a thread that could not start may be started again (monotonic).
        self.start_due = 0.0

    def runs(self) -> bool:
        """Whether the thread runs."""
        return self.thread is not None and self.thread.is_alive()

    def running(self) -> Relay:
        """Return the relay; start its thread if it does not run."""
        from messaging.relay.relay import Relay  # most commands publish nothing

        with self.lock:
            if self.relay is None or not self.runs():
                relay = Relay()
                thread = threading.Thread(target=_run, args=[relay], name="relay", daemon=True)
                thread.start()
                # A relay whose thread did not start would take rows and publish none.
                self.relay, self.thread = relay, thread
            return self.relay

    def ask(self, question: Callable[[Relay], int | None]) -> int | None:
        """Ask the relay, whose thread is started if need be; None if it cannot be. Raises nothing."""
        try:
            return question(self.running())
        except Exception as error:
            self.start_due = time.monotonic() + PAUSE
            log.error(
                "relay.not_started",
                reason=f"{type(error).__name__}: {error}",
                consequence="this process publishes nothing; other relays claim what it commits",
                again_in_seconds=PAUSE,
            )
            return None


_mine = RelayThread()


def enable(*, at_once: bool = False) -> None:
    """Mark this process as long-lived: it publishes the events that it commits, unless `RELAY_THREAD` is off.

    With `at_once` the thread starts now, and also publishes rows of other processes; without, it starts with the first
    event. A later call starts a thread again that could not start, or ended by a fault.
    """
    _mine.long_lived = True
    _mine.should_run = _mine.should_run or at_once
    if _mine.should_run and not _mine.runs() and lease_token():
        _mine.ask(lambda relay: None)


def lease_token() -> uuid.UUID | None:
    """Return the token that rows of this process are leased with when they are written.

    None if no relay thread may run, or none could be started a moment ago.
    """
    may_run = _mine.long_lived and conf.get().relay_thread and time.monotonic() >= _mine.start_due
    return _mine.token if may_run else None


def room() -> tuple[int, int]:
    """Return how many rows, and bytes of their bodies, this process's relay can be handed now."""
    return _mine.relay.room() if _mine.relay is not None else leases.HandedOver().room()


def hand_over(rows: Sequence[OutboxMessage], leased_at: float) -> None:
    """Give committed rows to this process's relay, without waiting for the broker. Raises nothing.

    The leases of rows that the relay does not take end here, so that a relay claims them at once: its thread cannot
    start, has just ended, or has no room.
    """
    _mine.should_run = True
    taken = _mine.ask(lambda relay: relay.hand_over(rows, leased_at)) or 0
    leases.give_back(rows[taken:])
    if 0 < taken < len(rows):
        wake()


def wake() -> None:
    """Have this process's relay claim at once: committed rows wait in the table. Raises nothing."""
    _mine.should_run = True
    _mine.ask(lambda relay: relay.wake())


def stop() -> None:
    """End the thread: it publishes its rows or gives them back within `DRAIN_TIMEOUT`."""
    with _mine.lock:
        relay, thread = _mine.relay, _mine.thread
        _mine.relay = _mine.thread = None
        _mine.should_run = False
    if relay is not None and thread is not None:
        relay.stop(conf.DRAIN_TIMEOUT)
        # The broker may be frozen and the database away.
        thread.join(conf.DRAIN_TIMEOUT + 2)


def _run(relay: Relay) -> None:
    try:
        relay.run()
    finally:
        connections.close_all()


def _begin_anew_after_fork() -> None:
    # The parent's thread does not exist here, and its lock may be held for ever.
    global _mine
    _mine = RelayThread(long_lived=_mine.long_lived)


def _on_request(sender: Any, **kwargs: Any) -> None:
    # The handler of a real server, not of a test client.
    if isinstance(sender, type) and issubclass(sender, WSGIHandler | ASGIHandler) and not _is_in_test():
        enable()


def _is_in_test() -> bool:
    """Whether this process runs tests, with a LiveServerTestCase perhaps: its server is a real one. A relay would
    publish the events of tests to the broker, and its connection would keep the test database from being deleted."""
    # Django has no public name for "setup_test_environment() was called".
    state = getattr(sys.modules.get("django.test.utils"), "_TestState", None)
    return hasattr(state, "saved_data")


def install() -> None:
    """Connect to the process's life: its requests, its forks, its end."""
    request_started.connect(_on_request, dispatch_uid="messaging.relay.thread")
    processes.in_each_child(_begin_anew_after_fork)
    atexit.register(stop)

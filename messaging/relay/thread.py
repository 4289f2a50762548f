"""The relay's home in a long-lived process: a daemon thread, started lazily, after any fork.

A web worker or a consumer publishes what it commits itself, a millisecond or two after the commit. Short commands,
Celery children and tests run no thread: their rows are born free, and any relay claims them within a second.
"""

from __future__ import annotations

import atexit
import threading
import time
import uuid
from collections.abc import Sequence
from typing import Any

from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import request_started
from django.db import connections

from messaging import conf, processes
from messaging.logs import get_logger
from messaging.models import OutboxMessage
from messaging.relay import leases, relay
from messaging.relay.relay import Relay

log = get_logger(__name__)

#: Seconds after which a thread that could not start is started again.
PAUSE = 2.0


class _Home:
    """The relay thread of this process, if it has one."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.long_lived = False
        self.token = uuid.uuid4()
        self.relay: Relay | None = None
        self.thread: threading.Thread | None = None
        #: A thread should run: one was asked for, and not stopped since.
        self.wanted = False
        #: When a thread that could not start may be started again (monotonic).
        self.start_due = 0.0


_home = _Home()


def enable(*, at_once: bool = False) -> None:
    """Say that this process is long-lived, so that it publishes what it commits.

    With `at_once` the thread starts now, and also publishes what others left; otherwise with the first event.
    Nothing happens where `RELAY_THREAD` is off.
    """
    _home.long_lived = True
    _home.wanted = _home.wanted or at_once
    revive()


def revive() -> None:
    """Start the thread, if one should run and does not: it could not start, or ended unasked. Where it still cannot,
    the log says so, and the next call PAUSE seconds later tries again. Raises nothing for that."""
    thread = _home.thread
    if not _home.wanted or (thread is not None and thread.is_alive()) or time.monotonic() < _home.start_due:
        return
    if conf.get().relay_thread:
        try:
            _running()
        except Exception as error:
            _not_started(error)


def lease_token() -> uuid.UUID | None:
    """Return the token that rows born in this process are leased with; None where no relay thread may run, or none
    could be started a moment ago."""
    may_run = _home.long_lived and conf.get().relay_thread and time.monotonic() >= _home.start_due
    return _home.token if may_run else None


def room() -> tuple[int, int]:
    """Return how many rows, and bytes of their bodies, this process's relay can be handed now."""
    running = _home.relay
    return running.room() if running is not None else (relay.HAND_OVER_LIMIT, relay.HAND_OVER_BYTES)


def hand_over(rows: Sequence[OutboxMessage], leased_at: float) -> None:
    """Give committed rows to this process's relay, without waiting for the broker.

    Raises nothing: whoever wrote the rows has committed them, and has succeeded. Where no relay takes them, because
    its thread cannot start or has just ended, their leases are ended here, so that another relay claims them at once.
    """
    _home.wanted = True
    try:
        taken = _running().hand_over(rows, leased_at)
    except Exception as error:
        _give_back(rows)
        _not_started(error)
    else:
        if not taken:
            _give_back(rows)


def wake() -> None:
    """Have this process's relay claim at once: committed rows wait in the table. Raises nothing."""
    _home.wanted = True
    try:
        _running().wake()
    except Exception as error:
        _not_started(error)


def stop() -> None:
    """End the thread: it publishes, or gives back, what it holds, within `DRAIN_TIMEOUT`."""
    with _home.lock:
        relay, thread = _home.relay, _home.thread
        _home.relay = _home.thread = None
        _home.wanted = False
    if relay is not None and thread is not None:
        budget = conf.get().drain_timeout
        relay.stop(budget)
        # The broker may be frozen and the database away: never longer than a supervisor's grace.
        thread.join(budget + 2)


def _running() -> Relay:
    with _home.lock:
        if _home.relay is None or _home.thread is None or not _home.thread.is_alive():
            relay = Relay()
            thread = threading.Thread(target=_run, args=[relay], name="relay", daemon=True)
            thread.start()
            # Only now: a relay whose thread did not start would be handed rows and publish none.
            _home.relay, _home.thread = relay, thread
        return _home.relay


def _not_started(error: Exception) -> None:
    _home.start_due = time.monotonic() + PAUSE
    log.error(
        "relay.not_started",
        reason=f"{type(error).__name__}: {error}",
        consequence="this process publishes nothing; other relays claim what it commits",
        again_in_seconds=PAUSE,
    )


def _give_back(rows: Sequence[OutboxMessage]) -> None:
    try:
        leases.give_back(rows)
    except Exception as error:
        # Nothing is lost: the leases end by themselves.
        log.warning("relay.leases_not_given_back", reason=f"{type(error).__name__}: {error}".strip(), rows=len(rows))


def _run(relay: Relay) -> None:
    try:
        relay.run()
    finally:
        connections.close_all()


def _forget_after_fork() -> None:
    # The parent's thread does not exist here, and its lock may be held by nobody.
    global _home
    long_lived = _home.long_lived
    _home = _Home()
    _home.long_lived = long_lived


def _on_request(sender: Any, **kwargs: Any) -> None:
    # A real server's handler, not a test client's: this is a web process, which lives long.
    if isinstance(sender, type) and issubclass(sender, WSGIHandler | ASGIHandler):
        enable()


def install() -> None:
    """Connect to the process's life: its requests, its forks, its end."""
    request_started.connect(_on_request, dispatch_uid="messaging.relay.thread")
    processes.in_each_child(_forget_after_fork)
    atexit.register(stop)

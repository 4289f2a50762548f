"""The relay's home in a long-lived process: a daemon thread, started lazily, after any fork.

A web worker or a consumer publishes what it commits itself, a millisecond or two after the commit. Short commands,
Celery children and tests run no thread: their rows are born free, and any relay claims them within a second.
"""

from __future__ import annotations

import atexit
import threading
import uuid
from collections.abc import Sequence
from typing import Any

from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import request_started
from django.db import connections

from messaging import conf, forks
from messaging.models import OutboxMessage
from messaging.relay import Relay


class _Home:
    """The relay thread of this process, if it has one."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.long_lived = False
        self.token = uuid.uuid4()
        self.relay: Relay | None = None
        self.thread: threading.Thread | None = None


_home = _Home()


def enable(*, at_once: bool = False) -> None:
    """Say that this process is long-lived, so that it publishes what it commits.

    With `at_once` the thread starts now, and also publishes what others left; otherwise with the first event.
    Nothing happens where `RELAY_THREAD` is off.
    """
    _home.long_lived = True
    if at_once and conf.get().relay_thread:
        _running()


def lease_token() -> uuid.UUID | None:
    """Return the token that rows born in this process are leased with; None where no relay thread may run."""
    return _home.token if _home.long_lived and conf.get().relay_thread else None


def hand_over(rows: Sequence[OutboxMessage], leased_at: float) -> None:
    """Give committed rows to this process's relay. Never waits for the broker or the database."""
    _running().hand_over(rows, leased_at)


def stop() -> None:
    """End the thread: it publishes, or gives back, what it holds, within `DRAIN_TIMEOUT`."""
    with _home.lock:
        relay, thread = _home.relay, _home.thread
        _home.relay = _home.thread = None
    if relay is not None and thread is not None:
        budget = conf.get().drain_timeout
        relay.stop(budget)
        # The broker may be frozen and the database away: never longer than a supervisor's grace.
        thread.join(budget + 2)


def _running() -> Relay:
    with _home.lock:
        if _home.relay is None or _home.thread is None or not _home.thread.is_alive():
            _home.relay = Relay()
            _home.thread = threading.Thread(target=_run, args=[_home.relay], name="relay", daemon=True)
            _home.thread.start()
        return _home.relay


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
    request_started.connect(_on_request, dispatch_uid="messaging.relay_thread")
    forks.in_each_child(_forget_after_fork)
    atexit.register(stop)

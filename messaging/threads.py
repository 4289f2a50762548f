"""Threads of a long-lived process: one that the system does not let start is started again, instead of ending all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from messaging.exceptions import ThreadNotStarted
from messaging.loggers import get_logger

log = get_logger(__name__)

#: Seconds before a thread that could not start is started again.
PAUSE = 2.0
#: Seconds between two looks at whether to give up.
LOOK_EVERY = 0.1


def start(what: str, begin: Callable[[], Any], given_up: Callable[[], bool]) -> bool:
    """Call `begin`, which starts a thread, until it succeeds, and return True; False once `given_up` says so.

    Between two tries there are PAUSE seconds, and the log says each time that `what` could not start. Only the want of
    a thread is waited out (RuntimeError of Python, ThreadNotStarted of a connection); other errors are raised.
    """
    while not given_up():
        try:
            begin()
        except (RuntimeError, ThreadNotStarted) as error:
            log.error("thread.not_started", thread=what, reason=str(error), again_in_seconds=PAUSE)
            _rest(given_up)
        else:
            return True
    return False


def join(thread: threading.Thread, timeout: float) -> None:
    """Wait up to `timeout` seconds for the end of `thread`; not at all for one that never started."""
    if thread.ident is not None:
        thread.join(max(0.0, timeout))


def _rest(given_up: Callable[[], bool]) -> None:
    until = time.monotonic() + PAUSE
    while time.monotonic() < until and not given_up():
        time.sleep(LOOK_EVERY)

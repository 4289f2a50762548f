"""What a long-lived process lives with: threads that the system may not start, forks, and signals to stop."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

from messaging.exceptions import ThreadNotStarted
from messaging.logs import get_logger

log = get_logger(__name__)

#: Seconds before a thread that could not be started is started again.
PAUSE = 2.0
#: Seconds between two checks whether to give up.
CHECK_EVERY = 0.1
#: Exit code of a process that received a second signal and left work unfinished.
ABANDONED = 1


def start_thread(what: str, start: Callable[[], Any], given_up: Callable[[], bool]) -> bool:
    """Call `start`, which starts a thread, until it succeeds, and return True; False once `given_up` returns True.

    It is called again after PAUSE seconds while the system has no thread to give (RuntimeError of Python,
    ThreadNotStarted of a connection); each failure is logged with `what`. Other errors are raised.
    """
    while not given_up():
        try:
            start()
        except (RuntimeError, ThreadNotStarted) as error:
            log.error("thread.not_started", thread=what, reason=str(error), again_in_seconds=PAUSE)
            until = time.monotonic() + PAUSE
            while time.monotonic() < until and not given_up():
                time.sleep(CHECK_EVERY)
        else:
            return True
    return False


def process_name() -> str:
    """Return host:pid of this process."""
    return f"{socket.gethostname()}:{os.getpid()}"


def join(thread: threading.Thread, timeout: float) -> None:
    """Wait up to `timeout` seconds for the end of `thread`; not at all for one that never started."""
    if thread.ident is not None:
        thread.join(max(0.0, timeout))


def in_each_child(function: Callable[[], None]) -> None:
    """Call `function` in each process forked from this one: a child has the parent's memory, but not its threads."""
    if hasattr(os, "register_at_fork"):  # Windows has no forks
        os.register_at_fork(after_in_child=function)


class StopSignals:
    """Within its `with` block SIGTERM and SIGINT only set `received`; a second one ends the process at once.

    They do nothing else because a signal handler that logs, locks or talks to the broker can deadlock with the code it
    interrupts. The previous handlers are restored afterwards.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.received = False

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._on_signal) for number in self.SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            # Nothing is lost: unacknowledged messages are requeued, and leases end. Nothing is flushed: the interrupted
            # code may be writing, and then Python refuses.
            os._exit(ABANDONED)
        self.received = True

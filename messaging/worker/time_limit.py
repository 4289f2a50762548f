"""The watchdog: a handler that takes too long is told so, and one that does not listen takes its process along.

Python cannot end a thread. So a handler past its time gets an exception at whatever line it is, and the statement it
waits for is cancelled; one that waits for something else (a lock, a socket without a time-out) hears of neither.
After a grace the process then ends, for its supervisor to start another: what it held is delivered again, the start
of the stuck message is counted, and after a few of them the message is dead.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from messaging import conf, database, processes
from messaging.exceptions import HandlerTimeout
from messaging.logs import get_logger

log = get_logger(__name__)

#: Exit code of a process that a stuck handler takes along.
STUCK = 1
#: Seconds after which handlers that have ended are forgotten at the latest.
LONGEST_NAP = 5.0
#: Seconds that cancelling a statement may take.
CANCEL_TIMEOUT = 3.0


def run(function: Callable[[], None], *, seconds: float, name: str) -> None:
    """Call `function` on this thread; after `seconds` HandlerTimeout is raised in it, and its statement cancelled.

    Whatever it raises after that is raised as HandlerTimeout: a cancelled statement has errors of its own. One that
    has not ended `HANDLER_GRACE` later ends the process.
    """
    watch = _Watch(seconds, name)
    _watchdog.begin(watch)
    # No context manager: the exception can come at any line, also between the handler and the manager's own exit.
    try:
        try:
            function()
        finally:
            watch.end()
    except Exception as error:
        watch.end()
        if watch.told:
            raise HandlerTimeout(f"it took longer than {seconds:g} s") from error
        raise


class _Watch:
    """One handler at work. It is told at most once."""

    def __init__(self, seconds: float, name: str) -> None:
        self.name = name
        self.seconds = seconds
        self.due = time.monotonic() + seconds
        self.told = False
        self._ended = False
        self._thread = threading.get_ident()
        #: The database driver's own connection: it alone can cancel what the handler's thread waits for.
        self._driver: Any = database.connection().connection
        # A plain lock, whose `with` an exception from outside cannot tear: a condition's can be left locked.
        self._lock = threading.Lock()

    @property
    def ended(self) -> bool:
        return self._ended

    def end(self) -> None:
        """The handler is through. May be repeated: the exception may come in the middle of it."""
        with self._lock:
            self._ended = True
            if self.told:
                # One that was set and not yet raised must not hit the code behind the handler.
                _set_exception(self._thread, None)

    def tell(self) -> None:
        """Say that the time is over."""
        with self._lock:
            if self._ended:
                return
            self.told = True
            self.due = time.monotonic() + conf.get().handler_grace
            log.warning("handler.timeout", handler=self.name, seconds=self.seconds)
            _set_exception(self._thread, HandlerTimeout)
            # Still under the lock: a statement of the next message must not be the one that is cancelled.
            _cancel_statement(self._driver)

    def leave(self) -> None:
        """End the process, unless the handler has ended after all."""
        with self._lock:
            if self._ended:
                return
            frame = sys._current_frames().get(self._thread)
            where = "".join(traceback.format_stack(frame)) if frame else ""
            log.critical("handler.stuck", handler=self.name, seconds=self.seconds, where=where)
            # The stuck thread cannot be ended, nor whatever waits for it: no exit hook is run.
            os._exit(STUCK)


class _Watchdog:
    """Looks after all handlers of this process, on a thread that is started with the first one."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._watches: set[_Watch] = set()
        self._next_look = float("inf")
        self._thread: threading.Thread | None = None
        #: When a thread that could not start may be started again (monotonic).
        self._start_due = 0.0

    def begin(self, watch: _Watch) -> None:
        with self._changed:
            self._watches.add(watch)
            if self._thread is None and time.monotonic() >= self._start_due:
                self._start()
            if watch.due < self._next_look:
                self._changed.notify()

    def _start(self) -> None:
        """Start the thread. Where the system does not let it, handlers run on, and are told of their time once it has
        started: to fail them all would be worse."""
        thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            self._start_due = time.monotonic() + processes.PAUSE
            log.error(
                "watchdog.not_started",
                reason=str(error),
                consequence="no handler is told that its time is over",
                again_in_seconds=processes.PAUSE,
            )
        else:
            self._thread = thread

    def _run(self) -> None:
        while True:
            for watch in self._overdue():
                try:
                    if watch.told:
                        watch.leave()
                    else:
                        watch.tell()
                except Exception:
                    # A log that fails, say, must not leave the other handlers without a time limit.
                    traceback.print_exc()

    def _overdue(self) -> list[_Watch]:
        with self._changed:
            self._watches = {each for each in self._watches if not each.ended}
            self._next_look = min((each.due for each in self._watches), default=float("inf"))
            self._changed.wait(max(0.0, min(self._next_look - time.monotonic(), LONGEST_NAP)))
            now = time.monotonic()
            return [each for each in self._watches if each.due <= now]


def _set_exception(thread: int, exception: type[BaseException] | None) -> None:
    """Have `exception` raised in another thread at its next line, or take a pending one back
    (https://docs.python.org/3/c-api/init.html#c.PyThreadState_SetAsyncExc)."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), ctypes.py_object(exception) if exception else None
    )


def _cancel_statement(driver: Any) -> None:
    """Cancel what the connection is at: psycopg and sqlite3 both allow it from another thread."""
    with suppress(Exception):
        if hasattr(driver, "interrupt"):
            driver.interrupt()  # with nothing under way it does nothing
        elif driver.info.transaction_status.name == "ACTIVE":
            # Else it would hit the statement by which the handler clears up.
            driver.cancel_safe(timeout=CANCEL_TIMEOUT)


_watchdog = _Watchdog()


def _forget_after_fork() -> None:
    # The parent's thread does not exist here, and its lock may be held by nobody.
    global _watchdog
    _watchdog = _Watchdog()


processes.in_each_child(_forget_after_fork)

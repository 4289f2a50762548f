"""The time limit of handlers: one that takes too long gets an exception, and one that ignores it ends its process.

Python cannot end a thread. So a handler past its time gets an exception at whatever line it is, and the statement it
waits for is cancelled. A handler that waits for something else (a lock, a socket without a timeout) notices neither.
After a grace period the process then ends, and its supervisor starts another: what it held is delivered again, the
start of the stuck message is counted, and after a few starts the message is dead.
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

#: Exit code of a process that a stuck handler ends.
STUCK = 1
#: Seconds after which handlers that have ended are forgotten at the latest.
LONGEST_WAIT = 5.0
#: Seconds that cancelling a statement may take.
CANCEL_TIMEOUT = 3.0
#: libpq's PQTRANS_ACTIVE, a statement runs (https://www.postgresql.org/docs/current/libpq-status.html).
_ACTIVE = 1


def run(function: Callable[[], None], *, seconds: float, name: str) -> None:
    """Call `function` on this thread; after `seconds` HandlerTimeout is raised in it, and its statement cancelled.

    Whatever it raises after that is raised as HandlerTimeout: a cancelled statement has errors of its own. If it has
    not ended `HANDLER_GRACE` later, the process ends.
    """
    limit = _Limit(seconds, name)
    _limits.begin(limit)
    # No context manager: the exception can come at any line, also between the handler and the manager's own exit.
    try:
        try:
            function()
        finally:
            limit.end()
    except Exception as error:
        limit.end()
        if limit.exceeded:
            raise HandlerTimeout(f"it took longer than {seconds:g} s") from error
        raise


class _Limit:
    """The time limit of one running handler. Its exception is raised at most once."""

    def __init__(self, seconds: float, name: str) -> None:
        self.name = name
        self.seconds = seconds
        self.due = time.monotonic() + seconds
        #: Whether the exception was raised.
        self.exceeded = False
        self.ended = False
        self._thread = threading.get_ident()
        #: The database driver's connection. Only it can cancel the statement that the handler's thread waits for.
        self._driver: Any = database.connection().connection
        # A plain lock: an exception from outside can leave a condition locked, but not a plain lock in a `with`.
        self._lock = threading.Lock()

    def end(self) -> None:
        """Note that the handler has ended. May be repeated: the exception may come in the middle of it."""
        with self._lock:
            self.ended = True
            if self.exceeded:
                # If the exception is not raised yet, it must not hit the code behind the handler.
                _set_exception(self._thread, None)

    def act(self) -> None:
        """The time is over: raise the exception; the second time end the process. Not if the handler has ended."""
        with self._lock:
            if self.ended:
                return
            if self.exceeded:
                self._end_process()
            self.exceeded = True
            self.due = time.monotonic() + conf.HANDLER_GRACE
            log.warning("handler.timeout", handler=self.name, seconds=self.seconds)
            _set_exception(self._thread, HandlerTimeout)
            # Still under the lock: the statement of the next message must not be cancelled.
            _cancel_statement(self._driver)

    def _end_process(self) -> None:
        frame = sys._current_frames().get(self._thread)
        where = "".join(traceback.format_stack(frame)) if frame else ""
        log.critical("handler.stuck", handler=self.name, seconds=self.seconds, where=where)
        # Neither the stuck thread nor those that wait for it can be ended: no exit hook is run.
        os._exit(STUCK)


class _Limits:
    """The time limits of all running handlers of this process, on a thread that starts with the first one."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running: set[_Limit] = set()
        self._next_due = float("inf")
        self.thread: threading.Thread | None = None
        #: When a thread that could not start may be started again (monotonic).
        self._start_due = 0.0

    def begin(self, limit: _Limit) -> None:
        with self._changed:
            self._running.add(limit)
            if self.thread is None and time.monotonic() >= self._start_due:
                self._start()
            if limit.due < self._next_due:
                self._changed.notify()

    def _start(self) -> None:
        """Start the thread. If the system allows no more threads, handlers run on, and their limits apply once it has
        started: to fail them all would be worse."""
        thread = threading.Thread(target=self._run, name="time limits", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            self._start_due = time.monotonic() + processes.PAUSE
            log.error(
                "time_limit.not_started",
                reason=str(error),
                consequence="no handler is stopped when its time is over",
                again_in_seconds=processes.PAUSE,
            )
        else:
            self.thread = thread

    def _run(self) -> None:
        while True:
            for limit in self._overdue():
                try:
                    limit.act()
                except Exception:
                    # A failing log, for example, must not leave the other handlers without a time limit.
                    traceback.print_exc()

    def _overdue(self) -> list[_Limit]:
        with self._changed:
            self._running = {each for each in self._running if not each.ended}
            self._next_due = min((each.due for each in self._running), default=float("inf"))
            self._changed.wait(max(0.0, min(self._next_due - time.monotonic(), LONGEST_WAIT)))
            now = time.monotonic()
            return [each for each in self._running if each.due <= now]


def _set_exception(thread: int, exception: type[BaseException] | None) -> None:
    """Have `exception` raised in another thread at its next line, or take a pending one back
    (https://docs.python.org/3/c-api/init.html#c.PyThreadState_SetAsyncExc)."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), ctypes.py_object(exception) if exception else None
    )


def _cancel_statement(driver: Any) -> None:
    """Cancel the connection's statement. sqlite3, psycopg and psycopg2 all allow it from another thread."""
    with suppress(Exception):
        if hasattr(driver, "interrupt"):
            driver.interrupt()  # with no statement running it does nothing
        elif driver.info.transaction_status != _ACTIVE:
            pass  # it would hit the statement by which the handler clears up
        elif hasattr(driver, "cancel_safe"):
            driver.cancel_safe(timeout=CANCEL_TIMEOUT)
        else:
            driver.cancel()  # psycopg2


_limits = _Limits()


def _begin_anew_after_fork() -> None:
    # The parent's thread does not exist here, and its lock may be held for ever.
    global _limits
    _limits = _Limits()


processes.in_each_child(_begin_anew_after_fork)

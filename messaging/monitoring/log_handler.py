"""Logs over the broker: each line of this process goes to a topic exchange, so that one terminal can follow them all.

A log is for people who watch. It never delays the application and never raises an error in it: lines wait in a bounded
queue, and what does not fit while the broker is unreachable, frozen or blocked is counted and dropped. What must not be
lost is in the database.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from datetime import UTC, datetime
from logging.handlers import QueueListener
from queue import Empty, SimpleQueue
from typing import Any

from messaging import conf, processes
from messaging.broker.publisher import Publisher, Publishing, Status
from messaging.exceptions import BrokerUnavailable
from messaging.logs import get_logger
from messaging.message import Message
from messaging.monitoring import log_lines
from messaging.monitoring.log_lines import Line
from messaging.topology import desired
from messaging.topology.declare import Declaration
from messaging.topology.desired import Topology

#: Lines that wait in memory; more are dropped. Each has `log_lines.MAX_LINE` bytes at most.
MAX_LINES = 2000
#: Lines that are published together.
BATCH = 200
#: Seconds to wait for the confirms of a batch.
PUBLISH_TIMEOUT = 5.0
#: Seconds between two checks whether the broker can be reached again.
CHECK_EVERY = 0.2
#: Seconds that the end of the process may wait for what is left.
EXIT_BUDGET = 2.0
#: Seconds between two looks whether all of it is sent.
LOOK_EVERY = 0.02


class BrokerHandler(logging.Handler):
    """Publishes each record to the exchange `desired.log_exchange()` by the key `<logger>.<level>`, as masked JSON.

    `time`, `level`, `logger`, `text` and `process` (host:pid) are in every line, and whatever else the record has:
    `message_id`, `request_id`, `exception`. Lines are not persistent, and need no listener.

    Emitting never waits and never raises. The connection, on threads of its own, is made for the first record; a
    forked process makes its own. At the end of the process what is left is sent within EXIT_BUDGET seconds.

    It is no QueueHandler, for which `dictConfig` of Python 3.12 and newer needs a queue and handlers.
    """

    def __init__(self, level: int | str = logging.NOTSET) -> None:
        super().__init__(level)
        self.setFormatter(log_lines.formatter())
        self._begin()
        _handlers.add(self)

    def _begin(self) -> None:
        # Also after a fork: the parent's threads do not exist in the child, and its lines are its own to send.
        # A SimpleQueue can be entered again: a signal handler may log in the middle of `put`.
        self.queue: SimpleQueue[Any] = SimpleQueue()
        #: Lines that did not fit, and those that were put in the queue.
        self.refused = 0
        self.accepted = 0
        self.closing = False
        self.sender: _Sender | None = None
        #: When a thread that could not start may be started again (monotonic).
        self._start_due = 0.0

    @property
    def dropped(self) -> int:
        """How many lines were not sent since the process began."""
        return self.refused + (self.sender.lost if self.sender else 0)

    def filter(self, record: logging.LogRecord) -> Any:
        """Skip records of the handler's own threads: publishing them needs the connection they describe."""
        sender = self.sender
        if sender and (record.thread == sender.thread or record.threadName == sender.publisher.connection.thread_name):
            return False
        return super().filter(record)

    def emit(self, record: logging.LogRecord) -> None:
        """Put the record's line in the queue, or count it as dropped."""
        try:
            try:
                key = log_lines.key_of(record.name, record.levelname)
                line = Line(key, self.format(record).encode(errors="replace"))
            except Exception:
                line = log_lines.broken(record)
            if self.closing or self.queue.qsize() >= MAX_LINES or not self._is_started():
                self.refused += 1
            else:
                self.accepted += 1
                self.queue.put(line)
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Send what is left, within EXIT_BUDGET seconds, and end the connection. Called at the end of the process."""
        self.closing = True
        if self.sender:
            deadline = time.monotonic() + EXIT_BUDGET
            while self.sender.done < self.accepted and time.monotonic() < deadline:
                time.sleep(LOOK_EVERY)
            self.sender.end()
        super().close()

    def _is_started(self) -> bool:
        """Whether lines will be sent; starts the thread if there is none."""
        if self.sender is None and time.monotonic() >= self._start_due:
            try:
                # Known to `filter` before its threads can log.
                self.sender = _Sender(self)
                self.sender.start()
            except Exception:
                # The settings are wrong, which the process will say itself; or no thread can start.
                self.sender = None
                self._start_due = time.monotonic() + processes.PAUSE
        return self.sender is not None


class _Sender(QueueListener):
    """Publishes the lines of a handler, on a thread of its own."""

    def __init__(self, handler: BrokerHandler) -> None:
        super().__init__(handler.queue)
        self.publisher = Publisher("logs")
        #: The thread, once it runs.
        self.thread: int | None = None
        #: Lines that were handled, and those of them that could not be sent.
        self.done = 0
        self.lost = 0
        self._handler = handler
        #: Dropped lines that were reported by another line.
        self._reported = 0
        self._ended = threading.Event()
        self._declaration = Declaration(self.publisher.connection)
        #: The connection, by number, on which the exchange was declared.
        self._declared = 0
        self._is_started = False

    def end(self) -> None:
        """End the thread and the connection, without waiting for the thread."""
        self._ended.set()
        self.enqueue_sentinel()
        self.publisher.stop()

    def handle(self, record: Any) -> None:
        """Publish a line, with those that wait behind it, once the broker can be reached."""
        self.thread = threading.get_ident()
        lines = [record]
        try:
            if self._is_reached():
                lines += self._more()
                self._publish(lines)
            else:
                self.lost += 1
        except Exception as error:
            # It must not end the thread. Other handlers write a fault of our own.
            self.lost += len(lines)
            if not isinstance(error, BrokerUnavailable):
                get_logger(__name__).exception("logs.fault")
        self.done += len(lines)

    def _is_reached(self) -> bool:
        """Wait until the broker can be reached; return False if the process ends before."""
        if not self._is_started:
            self._is_started = processes.start_thread("logs", self.publisher.start, self._ended.is_set)
        connection = self.publisher.connection
        while not self.publisher.ready:
            if self._ended.wait(CHECK_EVERY) or (
                self._handler.closing and (connection.last_error or connection.blocked)
            ):
                return False
        return True

    def _more(self) -> list[Line]:
        """Return what else waits, up to a batch."""
        lines: list[Line] = []
        while len(lines) < BATCH - 1:
            try:
                line: Any = self.dequeue(block=False)
            except Empty:
                break
            if line is None:
                self.enqueue_sentinel()
                break
            lines.append(line)
        return lines

    def _publish(self, lines: list[Line]) -> None:
        if self._declared != self.publisher.connection.generation:
            # A new broker has no such exchange. An account that may not declare it finds it there.
            self._declaration.declare(Topology(exchanges=(desired.log_exchange(),), queues=(), bindings=()))
            self._declared = self.publisher.connection.generation
        unreported = self._handler.dropped - self._reported
        dropped = [log_lines.line(__name__, "warning", "logs.dropped", count=unreported)] if unreported else []
        sent = [
            Publishing(str(number), desired.log_exchange().name, line.key, _message(line), mandatory=False)
            for number, line in enumerate([*dropped, *lines])
        ]
        outcomes = self.publisher.publish(sent, PUBLISH_TIMEOUT)
        lost = sum(outcome.status is not Status.CONFIRMED for outcome in outcomes)
        self._reported += unreported if lost < len(sent) else 0
        self.lost += min(lost, len(lines))
        if any(outcome.status is Status.REFUSED for outcome in outcomes):
            self._declared = 0  # the exchange may have been deleted


def _message(line: Line) -> Message:
    return Message(body=line.body, app_id=conf.get().app_id, timestamp=datetime.now(UTC), persistent=False)


#: All of this process, to be told of a fork. Weak: a project that sets up its log anew replaces them.
_handlers: weakref.WeakSet[BrokerHandler] = weakref.WeakSet()


def _begin_anew_after_fork() -> None:
    for handler in _handlers:
        handler._begin()


processes.in_each_child(_begin_anew_after_fork)

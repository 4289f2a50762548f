"""Logs over the broker: each line of this process goes to a topic exchange, so that one terminal can follow them all.

A log is for people who watch. It is never worth a delay or an error of the application: lines wait in a bounded
memory, and what does not fit while the broker is away, frozen or blocked is counted and dropped. What must not be lost
is in the database.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import threading
import time
import weakref
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog

from messaging import conf, processes
from messaging.broker.publisher import Publisher, Publishing, Status
from messaging.exceptions import BrokerUnavailable
from messaging.logs import get_logger
from messaging.masking import mask_event, masked_text
from messaging.message import Message
from messaging.routing import MAX_SHORT_STRING
from messaging.topology import desired
from messaging.topology.declare import Declaration
from messaging.topology.desired import Topology

#: Lines, and bytes of them, that wait in memory; more are dropped.
MAX_LINES = 5000
MAX_BYTES = 8 << 20
#: Bytes of one line; of a longer one its text and its traceback are cut short.
MAX_LINE = 32 << 10
#: Characters that are left of each text then.
SHORTENED = 4000
#: Lines that are published together.
BATCH = 200
#: Seconds to wait for the broker's word on a batch.
PUBLISH_TIMEOUT = 5.0
#: Seconds between two looks at whether the broker is back.
LOOK = 0.2
#: Seconds that the end of the process may wait for what is left.
EXIT_BUDGET = 2.0

#: What is kept of a line that is too long.
_KEPT = (
    "time", "level", "logger", "text", "process",
    "message_id", "type", "consumer", "attempt", "request_id", "correlation_id", "procedure",
)  # fmt: skip
_NAME = "messaging.monitoring.log_handler"
#: What stands in a key for what a word of it may not hold.
_ODD = re.compile(r"[^\w-]+")


@dataclass(frozen=True, slots=True)
class _Line:
    key: str
    body: bytes


class BrokerHandler(logging.Handler):
    """Publishes each record to the exchange `desired.log_exchange()` by the key `<logger>.<level>`, as JSON.

    `time`, `level`, `logger`, `text` and `process` (host:pid) are in every line, and whatever the record has besides:
    `message_id`, `request_id`, `exception`. It is masked like every other log. Not persistent, and nobody need listen.

    Emitting never waits and never raises. The connection, on threads of its own, is made for the first record; a
    process that was forked makes its own. At the end of the process what is left is sent within EXIT_BUDGET seconds.
    """

    def __init__(self, level: int | str = logging.NOTSET) -> None:
        super().__init__(level)
        self.setFormatter(_formatter())
        #: Lines that were not sent since the process began.
        self.dropped = 0
        self._begin()
        _handlers.add(self)

    def _begin(self) -> None:
        # A condition's own lock may be taken twice by one thread: a signal handler can log in the middle of `emit`.
        self._changed = threading.Condition()
        self._waiting: deque[_Line] = deque()
        self._waiting_bytes = 0
        self._sending = False
        self._not_told = 0
        self._closed = False
        self._publisher: Publisher | None = None
        self._thread: threading.Thread | None = None
        #: When a thread that could not start may be started again (monotonic).
        self._start_due = 0.0

    # --- on any thread -------------------------------------------------------------------------------------

    def filter(self, record: logging.LogRecord) -> Any:
        """Leave out what our own threads say of their connection: it would have to go by that connection. Asked before
        the handler's lock is taken, for which they must not wait while `close` waits for them."""
        publisher = self._publisher
        if publisher is not None and record.threadName in {_NAME, publisher.connection.thread_name}:
            return False
        return super().filter(record)

    def emit(self, record: logging.LogRecord) -> None:
        """Put the record's line in the queue, or count it as dropped."""
        try:
            line = self._line_of(record)
        except Exception:
            line = _broken(record)
        with self._changed:
            is_full = len(self._waiting) >= MAX_LINES or self._waiting_bytes + len(line.body) > MAX_BYTES
            if self._closed or is_full or not self._runs():
                self._drop(1)
                return
            self._waiting.append(line)
            self._waiting_bytes += len(line.body)
            self._changed.notify_all()

    def flush(self) -> None:
        """Nothing: whoever logs does not wait. `close` does, for a while."""

    def close(self) -> None:
        """Send what is left, within EXIT_BUDGET seconds, and end the connection. Called at the end of the process."""
        with self._changed:
            self._closed = True
            publisher, thread = self._publisher, self._thread
            if thread is not None:
                self._changed.notify_all()
                self._changed.wait_for(lambda: not self._waiting and not self._sending, timeout=EXIT_BUDGET)
            self._drop(len(self._waiting))
            self._waiting.clear()
            self._thread = self._publisher = None
            self._changed.notify_all()
        if publisher is not None:
            publisher.stop()
        super().close()

    def _line_of(self, record: logging.LogRecord) -> _Line:
        return _Line(_key(record.name, record.levelname), self.format(record).encode(errors="replace"))

    def _runs(self) -> bool:
        """Whether somebody will send what waits; starts the thread where nobody does."""
        if self._thread is None:
            if time.monotonic() < self._start_due:
                return False
            try:
                publisher = self._publisher = Publisher("logs")
                thread = threading.Thread(target=self._send_all, args=[publisher], name=_NAME, daemon=True)
                thread.start()
            except Exception:
                # The settings are wrong, which the process will say itself, or it ends, and no thread starts any more.
                self._publisher = None
                self._start_due = time.monotonic() + processes.PAUSE
                return False
            self._thread = thread
        return True

    def _drop(self, count: int) -> None:
        self.dropped += count
        self._not_told += count

    # --- on our own thread ---------------------------------------------------------------------------------

    def _send_all(self, publisher: Publisher) -> None:
        declaration = Declaration(publisher.connection)
        declared = 0
        processes.start_thread("logs", publisher.start, lambda: self._publisher is not publisher)
        while self._publisher is publisher:
            try:
                if not publisher.ready:
                    self._rest(publisher)
                    continue
                if declared != publisher.connection.generation:
                    # A fresh broker has no such exchange. Who may not declare it finds it there.
                    declaration.declare(Topology(exchanges=(desired.log_exchange(),), queues=(), bindings=()))
                    declared = publisher.connection.generation
                if not self._send_some(publisher):
                    declared = 0  # it may have been deleted
            except BrokerUnavailable:
                self._rest(publisher)
            except Exception:
                # A fault of our own; it must neither end the thread nor spin. The other handlers write it.
                get_logger(__name__).exception("logs.fault")
                time.sleep(1.0)

    def _rest(self, publisher: Publisher) -> None:
        with self._changed:
            if self._closed and (publisher.connection.last_error or publisher.connection.blocked):
                # The broker is away, and the process wants to end.
                self._drop(len(self._waiting))
                self._waiting.clear()
                self._waiting_bytes = 0
                self._changed.notify_all()
            self._changed.wait(LOOK)

    def _send_some(self, publisher: Publisher) -> bool:
        """Publish the next lines; return False where the broker refused them."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._publisher is not publisher, timeout=1.0)
            if not self._waiting or not publisher.ready:
                return True
            lines = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            self._waiting_bytes -= sum(len(line.body) for line in lines)
            not_told, self._not_told = self._not_told, 0
            self._sending = True
        sent = [_dropped(not_told), *lines] if not_told else lines
        outcomes = publisher.publish([_publishing(number, line) for number, line in enumerate(sent)], PUBLISH_TIMEOUT)
        lost = sum(outcome.status is not Status.CONFIRMED for outcome in outcomes)
        with self._changed:
            self._sending = False
            self._drop(min(lost, len(lines)))
            if lost == len(sent):
                self._not_told += not_told  # nobody was told
            self._changed.notify_all()
        return not any(outcome.status is Status.REFUSED for outcome in outcomes)


def _key(logger: str, level: str) -> str:
    """Return `<logger>.<level>` as a routing key: words with nothing odd in them, and 255 bytes at most."""
    ending = f".{_word(level.lower())}"
    words = ".".join(_word(word) for word in logger.split("."))
    room = MAX_SHORT_STRING - len(ending.encode()[:64])
    return words.encode(errors="replace")[:room].decode(errors="ignore") + ending.encode()[:64].decode(errors="ignore")


def _word(text: str) -> str:
    return _ODD.sub("_", text.encode(errors="replace").decode()) or "_"


def _formatter() -> logging.Formatter:
    """Return what makes a line of a record, be it structlog's or of any other library."""
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.ExtraAdder(),
        ],
        processors=[
            _add_origin,
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            # Tracebacks become text before secrets are hidden.
            structlog.processors.format_exc_info,
            mask_event,
            _document,
        ],
    )


def _add_origin(_: Any, __: str, event: Any) -> Any:
    record: logging.LogRecord = event["_record"]
    event["timestamp"] = datetime.fromtimestamp(record.created, UTC).isoformat()
    event["level"] = record.levelname.lower()
    event["logger"] = record.name
    return event


def _document(_: Any, __: str, event: Any) -> str:
    event = dict(event)
    document = {
        "time": event.pop("timestamp"),
        "level": event.pop("level"),
        "logger": event.pop("logger"),
        "text": str(event.pop("event", "")),
        "process": f"{socket.gethostname()}:{os.getpid()}",
    }
    document |= {f"{name}_" if name in document else name: value for name, value in event.items()}
    text = _json(document)
    return text if len(text.encode(errors="replace")) <= MAX_LINE else _json(_shortened(document))


def _shortened(document: dict[str, Any]) -> dict[str, Any]:
    """Return the line without what makes it long; of a traceback the end says most."""
    kept = {name: str(document[name])[:SHORTENED] for name in _KEPT if name in document}
    if "exception" in document:
        kept["exception"] = str(document["exception"])[-SHORTENED:]
    return {**kept, "shortened": True}


def _json(document: dict[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False, default=str)


def _line(logger: str, level: str, text: str, **more: Any) -> _Line:
    now = datetime.now(UTC).isoformat()
    event = {"timestamp": now, "level": level, "logger": logger, "event": text, **more}
    return _Line(_key(logger, level), _document(None, "", event).encode(errors="replace"))


def _broken(record: logging.LogRecord) -> _Line:
    """Return what can be said of a record that cannot be formatted."""
    text = "a log record cannot be formatted"
    with suppress(Exception):
        text = f"{text}: {masked_text(repr(record.msg))[:SHORTENED]}"
    return _line(str(record.name), str(record.levelname).lower(), text)


def _dropped(count: int) -> _Line:
    return _line(_NAME, "warning", "logs.dropped", count=count)


def _publishing(number: int, line: _Line) -> Publishing:
    message = Message(body=line.body, app_id=conf.get().app_id, timestamp=datetime.now(UTC), persistent=False)
    exchange = desired.log_exchange().name
    return Publishing(key=str(number), exchange=exchange, routing_key=line.key, message=message, mandatory=False)


#: All of this process, to be told of a fork.
_handlers: weakref.WeakSet[BrokerHandler] = weakref.WeakSet()


def _begin_anew_after_fork() -> None:
    # The parent's threads do not exist here, its lock may be held by nobody, and its lines are its own to send.
    for handler in _handlers:
        handler.dropped = 0
        handler._begin()


processes.in_each_child(_begin_anew_after_fork)

"""The skeleton that consumers and RPC servers share: start threads, keep subscriptions open, stop in time."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from messaging import conf, processes
from messaging.broker.connection import Connection
from messaging.broker.queue_answers import SILENT
from messaging.broker.rights import lacks_right
from messaging.broker.subscription import Subscription
from messaging.exceptions import BrokerRefused, BrokerUnavailable, OperationRefused
from messaging.logs import Successes, Throttle, get_logger
from messaging.relay import thread as relay_thread
from messaging.topology.declare import Declaration

log = get_logger(__name__)

#: Seconds between two looks at whether to stop or to reopen.
TICK = 0.1
#: Seconds before a subscription that ended is opened again.
REOPEN_PAUSE = 1.0


@dataclass(slots=True)
class Summary:
    """What a service did."""

    counts: Counter[StrEnum] = field(default_factory=Counter)
    seconds: float = 0.0
    #: Messages still being handled when `STOP_TIMEOUT` was over.
    abandoned: int = 0


class Tally:
    """Counts the messages that are taken, being handled and finished, for all threads of a service."""

    def __init__(self, max_messages: int | None = None) -> None:
        self._lock = threading.Lock()
        #: How many may still be taken; None for any number.
        self.remaining = max_messages
        self.busy = 0
        self.counts: Counter[StrEnum] = Counter()

    def take(self) -> bool:
        """Count a message as being handled; False if no more may be taken."""
        with self._lock:
            if self.remaining == 0:
                return False
            if self.remaining is not None:
                self.remaining -= 1
            self.busy += 1
            return True

    def finish(self, messages: int = 1) -> None:
        """Count messages as no longer being handled."""
        with self._lock:
            self.busy -= messages

    def count(self, result: StrEnum) -> None:
        """Count what became of a message."""
        with self._lock:
            self.counts[result] += 1


class Service(ABC):
    """Serves subscriptions over one connection until told to stop."""

    #: Whose log events these are.
    kind: str
    #: What is handled well, to be added by the threads; told at each tick and at the end.
    successes: Successes
    #: Subscriptions that are kept open, and threads, in the order in which they start.
    subscriptions: Sequence[Subscription]
    threads: Sequence[threading.Thread]

    def __init__(self, role: str, *, max_messages: int | None) -> None:
        self._connection = Connection(role, on_lost=self._lost)
        self._declaration = Declaration(self._connection)
        self._throttle = Throttle()
        self._has_served = False
        self.tally = Tally(max_messages)

    def run(self, should_stop: Callable[[], bool]) -> Summary:
        """Serve until `should_stop()` or the last of `max_messages`.

        What was begun is finished, within `STOP_TIMEOUT`. Waits for a broker that is away; raises BrokerRefused if it
        refuses this user at the first attempt, and AccessRefused if this user may read none of the queues.
        """
        started = time.monotonic()
        try:
            self._enable_relay()
            if self._start(should_stop):
                self._supervise(should_stop)
        finally:
            abandoned = self._finish()
        return Summary(self.tally.counts, time.monotonic() - started, abandoned)

    def _enable_relay(self) -> None:
        """Let this process publish what it commits."""
        relay_thread.enable()

    @abstractmethod
    def _declare(self, closed: Sequence[Subscription]) -> None:
        """Declare what these subscriptions need. Raises BrokerUnavailable."""

    @abstractmethod
    def _stop(self) -> None:
        """Tell the threads to take no further message."""

    def _is_done(self) -> bool:
        """Do what else is due at each tick; return whether the service should end by itself."""
        return False

    def _to_open(self) -> Iterable[Subscription]:
        """Return the closed subscriptions that may be opened now."""
        return [each for each in self.subscriptions if not each.active]

    def _usable(self, closed: Iterable[Subscription]) -> Iterable[Subscription]:
        """Return those whose queues can be consumed. Raises BrokerUnavailable."""
        return closed

    def _start(self, should_stop: Callable[[], bool]) -> bool:
        """Start all threads before the connection that brings them work; return whether all run."""
        starts = [*((each.name, each.start) for each in self.threads), ("connection", self._connection.start)]
        return all(processes.start_thread(name, start, should_stop) for name, start in starts)

    def _supervise(self, should_stop: Callable[[], bool]) -> None:
        next_open = 0.0
        while not should_stop() and self.tally.remaining != 0:
            if self._connection.refused and not self._connection.generation:
                raise BrokerRefused(self._connection.last_error)
            if refusal := self._refused_everywhere():
                raise refusal
            relay_thread.enable()
            if time.monotonic() >= next_open and self._open_closed():
                next_open = time.monotonic() + REOPEN_PAUSE
            self._warn_of_silent_queues()
            self.successes.tell()
            if self._is_done():
                return
            time.sleep(TICK)

    def _refused_everywhere(self) -> OperationRefused | None:
        """Return a refusal if this account lacks the right to each queue, and had it to none since the start.

        A process that has consumed before keeps trying: its rights were taken away, and may be given back.
        """
        self._has_served = self._has_served or any(each.consuming for each in self.subscriptions)
        refusals = [each.refusal for each in self.subscriptions]
        return refusals[0] if not self._has_served and refusals and all(map(lacks_right, refusals)) else None

    def _open_closed(self) -> bool:
        """Open each subscription that is closed, after declaring what it needs; return whether one was."""
        closed = list(self._to_open())
        if not closed or not self._connection.is_open:
            return False
        try:
            self._declare(closed)
            usable = list(self._usable(closed))
        except BrokerUnavailable as error:
            if self._throttle.allows(str(error)):
                log.warning(f"{self.kind}.broker_error", reason=str(error))
            return True
        for each in usable:
            each.open()
        return True

    def _warn_of_silent_queues(self) -> None:
        """Log, each minute, the queues that have not answered the request to consume."""
        for each in self.subscriptions:
            if each.begins_late() and self._throttle.allows(f"silent: {each.queue}"):
                log.error(f"{self.kind}.queue_silent", queue=each.queue, reason=SILENT)

    def _lost(self, reason: str) -> None:
        for each in self.subscriptions:
            each.lost(reason)

    def _finish(self) -> int:
        self._stop()
        deadline = time.monotonic() + conf.get().stop_timeout
        for thread in self.threads:
            processes.join(thread, deadline - time.monotonic())
        abandoned = self.tally.busy
        self.successes.tell(at_end=True)
        self._connection.stop()
        return abandoned

"""The worker: runs consumers in this process, from the broker's deliveries to the acknowledgements."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from messaging import conf, database, processes
from messaging.broker.connection import Connection, opened
from messaging.broker.declaring import is_stream
from messaging.broker.queue_answers import CURE, SILENT, ask_queues
from messaging.consumers import Consumer
from messaging.exceptions import BrokerRefused, BrokerUnavailable
from messaging.logs import Throttle, get_logger
from messaging.relay import thread as relay_thread
from messaging.topology import desired
from messaging.topology.declare import Declaration
from messaging.worker.consumer_threads import Lane
from messaging.worker.handling import Verdict
from messaging.worker.sweep import Sweeper

log = get_logger(__name__)

#: Seconds between two looks at whether to stop, to reopen, or whether a burst is over.
TICK = 0.1
#: Seconds before a subscription that ended unasked is opened again.
REOPEN_PAUSE = 1.0
#: Seconds before a queue that cannot be consumed is looked at again.
UNUSABLE_PAUSE = 30.0
#: Looks at an empty queue, one after the other, that end a burst.
EMPTY_LOOKS = 3


@dataclass(slots=True)
class Summary:
    """What a worker did."""

    verdicts: Counter[Verdict] = field(default_factory=Counter)
    seconds: float = 0.0
    #: Deliveries still being handled when the time for stopping was up.
    abandoned: int = 0


class Worker:
    """Runs consumers until told to stop.

    Each consumer has a lane of its own (a subscription and `concurrency` handler threads), so that a slow one holds
    up none of the others. On SQLite one delivery at a time is handled in the whole process: it has one writer.
    """

    def __init__(
        self,
        consumers: Sequence[Consumer],
        *,
        concurrency: int = 1,
        prefetch: int | None = None,
        max_messages: int | None = None,
        burst: bool = False,
    ) -> None:
        self._burst = burst
        self._remaining = max_messages
        self._budget_lock = threading.Lock()
        self._connection = Connection("consumer", on_lost=self._lost)
        self._declaration = Declaration(self._connection)
        self._throttle = Throttle()
        turn = threading.Lock() if database.is_sqlite() else None
        self.lanes = [
            Lane(
                consumer,
                self._connection,
                threads=1 if turn else concurrency,
                prefetch=prefetch or consumer.prefetch or conf.get().prefetch,
                may_take=self._may_take,
                turn=turn,
            )
            for consumer in consumers
        ]
        #: Until when a queue that cannot be consumed is left alone, by the monotonic clock.
        self._unusable_until: dict[str, float] = {}
        self._sweeper = Sweeper([consumer for consumer in consumers if consumer.fenced])

    def run(self, should_stop: Callable[[], bool]) -> Summary:
        """Consume until `should_stop()`, the last of `max_messages`, or with `burst` the queues are empty.

        What has been started is finished, within `STOP_TIMEOUT`; the rest goes back to its queue.
        Raises BrokerRefused where the broker refuses this user at the first attempt, and, with `burst` alone,
        BrokerUnavailable where it cannot be reached: others wait for it.
        """
        started = time.monotonic()
        try:
            relay_thread.enable(at_once=True)
            if self._start(should_stop):
                self._supervise(should_stop)
        finally:
            abandoned = self._finish()
        verdicts = sum((lane.verdicts for lane in self.lanes), Counter[Verdict]())
        return Summary(verdicts=verdicts, seconds=time.monotonic() - started, abandoned=abandoned)

    def _start(self, should_stop: Callable[[], bool]) -> bool:
        """Start all threads, the handlers' before the connection that brings them work; return whether all run."""
        return (
            all(lane.start(should_stop) for lane in self.lanes)
            and processes.start_thread("sweeper", self._sweeper.start, should_stop)
            and processes.start_thread("connection", self._connection.start, should_stop)
        )

    def _supervise(self, should_stop: Callable[[], bool]) -> None:
        next_open = 0.0
        next_bind = time.monotonic() + conf.get().declare_interval
        empty_looks = 0
        while not should_stop() and self._remaining != 0:
            if self._connection.refused and not self._connection.generation:
                raise BrokerRefused(self._connection.last_error)
            if self._burst and self._connection.never_reached:
                raise self._connection.unavailable()
            relay_thread.revive()
            now = time.monotonic()
            if now >= next_open and self._open_lanes():
                next_open = now + REOPEN_PAUSE
            self._say_what_does_not_begin()
            if now >= next_bind:
                next_bind = now + conf.get().declare_interval
                for lane in self.lanes:
                    lane.bind_again()
            if self._burst:
                empty_looks = empty_looks + 1 if self._idle() else 0
                if empty_looks >= EMPTY_LOOKS:
                    return
            time.sleep(TICK)

    def _open_lanes(self) -> bool:
        """Open each subscription that is not; a queue that was deleted is declared again first."""
        now = time.monotonic()
        closed = [
            lane
            for lane in self.lanes
            if not lane.subscription.active and now >= self._unusable_until.get(lane.consumer.queue, 0.0)
        ]
        if not closed or not self._connection.is_open:
            return False
        try:
            self._declaration.declare(desired.topology(lane.consumer for lane in closed))
            usable = [lane for lane in closed if self._is_usable(lane)]
        except BrokerUnavailable as error:
            if self._throttle.allows(str(error)):
                log.warning("worker.broker_error", reason=str(error))
            return True
        for lane in usable:
            lane.subscription.open()
        return True

    def _is_usable(self, lane: Lane) -> bool:
        """Whether the lane's queue can be consumed. One that cannot is said, and left alone for UNUSABLE_PAUSE: over a
        quorum queue without a leader RabbitMQ closes the connection of all lanes. Raises BrokerUnavailable."""
        reason = "" if lane.consumer.broadcast else self._why_unusable(lane)
        if reason:
            self._unusable_until[lane.consumer.queue] = time.monotonic() + UNUSABLE_PAUSE
            log.error("consumer.queue_unusable", consumer=lane.consumer.name, queue=lane.consumer.queue, reason=reason)
        return not reason

    def _why_unusable(self, lane: Lane) -> str:
        queue = lane.consumer.queue
        if queue in self._declaration.silent:
            return SILENT
        if queue in self._declaration.differing and is_stream(self._connection, queue):
            return (
                "it is a stream, which shows nothing of what came while its consumer did not run: give the consumer "
                "another queue, or delete the stream"
            )
        if lane.subscription.failures:
            try:
                with opened("probe") as connection:
                    silent = ask_queues(connection, [queue], quorum=[queue])[queue].silent
            except BrokerUnavailable:
                return ""  # it cannot be told. At a limit of connections this process may have the last one
            return f"it exists but does not answer ({silent.rstrip('.')}): {CURE}" if silent else ""
        return ""

    def _say_what_does_not_begin(self) -> None:
        """Name, each minute, the queues that have not answered the wish to consume."""
        for lane in self.lanes:
            queue = lane.subscription.queue
            if lane.subscription.begins_late() and self._throttle.allows(f"silent: {queue}"):
                log.error("consumer.queue_silent", consumer=lane.consumer.name, queue=queue, reason=SILENT)

    def _lost(self, reason: str) -> None:
        for lane in self.lanes:
            lane.subscription.lost(reason)

    def _idle(self) -> bool:
        try:
            return all(lane.is_idle() for lane in self.lanes)
        except BrokerUnavailable:
            return False

    def _may_take(self) -> bool:
        """Count one delivery against `max_messages`; False where there is none left."""
        with self._budget_lock:
            if self._remaining is None:
                return True
            if self._remaining == 0:
                return False
            self._remaining -= 1
            return True

    def _finish(self) -> int:
        for lane in self.lanes:
            lane.stop()
        deadline = time.monotonic() + conf.get().stop_timeout
        for lane in self.lanes:
            lane.join(deadline)
        self._sweeper.stop(max(0.0, deadline - time.monotonic()))
        abandoned = sum(lane.busy for lane in self.lanes)
        self._connection.stop()
        return abandoned

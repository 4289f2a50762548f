"""The relay: publishes committed outbox rows and marks what the broker confirms. Only the relay publishes events."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence

from django.db import DatabaseError, InterfaceError

from messaging import conf, consumers, database
from messaging.broker.publisher import Outcome, Publisher, Status
from messaging.exceptions import BrokerUnavailable, NotFound, ThreadNotStarted
from messaging.logs import Successes, Throttle, get_logger
from messaging.relay import destinations, leases
from messaging.relay.destinations import Destination, Destinations
from messaging.relay.leases import HandedOver, Held, Mark
from messaging.relay.statements import AnyRow
from messaging.topology import desired
from messaging.topology.declare import PAUSE_AFTER_DELETION, Declaration

log = get_logger(__name__)

#: Marks are collected for this many seconds, so that a busy relay writes them in batches.
MARK_INTERVAL = 0.05
#: Seconds to rest after a failure of the database, of the broker, and of our own code.
DATABASE_PAUSE = 1.0
BROKER_PAUSE = 0.2
FAULT_PAUSE = 1.0


class Relay:
    """Publishes outbox rows until told to stop.

    Rows are handed over in memory by the process that wrote them (with a lease for this relay), or claimed from the
    table once they are due and not leased: left by a process that died, delayed, or written where no relay runs. A row
    is marked published only after the broker's confirm, and only while this relay holds its lease. A row without an
    answer stays pending and is published again.
    """

    def __init__(self) -> None:
        self._settings = conf.get()
        self._changed = threading.Condition()
        self._handed = HandedOver()
        #: Whether the publisher's thread runs.
        self._started = False
        #: Counts calls of `wake`: a claim that was already running may have missed the rows of the latest.
        self._wakes = 0
        self._marks: list[Mark] = []
        self._marks_due = 0.0
        self._claim_due = 0.0
        self._drain_until: float | None = None
        self._declared_generation = 0
        self._declare_due = 0.0
        self._publisher = Publisher("relay", on_change=self.wake)
        self._declaration = Declaration(self._publisher.connection)
        self._destinations = Destinations(lambda: time.monotonic())
        self._throttle = Throttle()
        self._successes = Successes(log, "messages.published", "to")
        self.published = 0

    # --- from any thread -----------------------------------------------------------------------------------

    def room(self) -> tuple[int, int]:
        """Return how many more rows, and bytes of their bodies, can be handed over; none while it cannot publish."""
        return self._handed.room()

    def hand_over(self, rows: Sequence[AnyRow], leased_at: float) -> int:
        """Take rows that were leased at `leased_at` (monotonic) and have just been committed. Never blocks.

        Returns how many, from the first on, were taken. The caller ends the leases of the others, and calls `wake`.
        """
        held = self._held(rows, leased_at)
        with self._changed:
            self._changed.notify_all()
            return self._handed.add(held)

    def wake(self) -> None:
        """Claim at once: there may be rows in the table, or the connection has just been opened."""
        with self._changed:
            self._wakes += 1
            self._claim_due = 0.0
            self._changed.notify_all()

    def stop(self, drain_timeout: float) -> None:
        """Ask the relay to end: it publishes its rows within `drain_timeout` seconds, or gives them back."""
        with self._changed:
            self._drain_until = time.monotonic() + drain_timeout
            self._changed.notify_all()

    @property
    def refusal(self) -> str:
        """Why the broker refused this user at the first attempt; empty if it did not."""
        connection = self._publisher.connection
        return connection.last_error if connection.refused and not connection.generation else ""

    # --- on the relay's own thread -------------------------------------------------------------------------

    def run(self) -> None:
        """Publish until `stop`."""
        try:
            while not self._finished():
                try:
                    self._step()
                    database.release_between_messages()
                except (DatabaseError, InterfaceError) as error:
                    self._warn("relay.database_error", error)
                    self._rest(DATABASE_PAUSE)
                except BrokerUnavailable as error:
                    self._warn("relay.broker_error", error)
                    self._rest(BROKER_PAUSE)
                except BaseException:
                    # A fault of our own must not end the thread that publishes every event of this process.
                    log.exception("relay.fault")
                    self._rest(FAULT_PAUSE)
        finally:
            self._end()
            self._publisher.stop()

    def _step(self) -> None:
        if not self._started:
            self._start()
        self._wait_for_work()
        if self._publisher.ready:
            self._declare_topology()
            # Claimed first: if the database fails here, rows that were handed over are still in memory.
            claimed = self._claim_if_due()
            with self._changed:
                handed = self._handed.take(conf.CLAIM_BATCH)
            # By row: if the database's clock was set forward, a row that was handed over is claimed as well.
            held = {each.row.pk: each for each in [*handed, *claimed]}
            ours, late = leases.in_time(held.values(), time.monotonic())
            if late:
                leases.give_back(late)
                self.wake()
            if ours:
                self._publish_all(ours)
        if self._marks and time.monotonic() >= self._marks_due:
            self._write_marks()
        self._successes.tell()

    def _start(self) -> None:
        """Start the connection's thread. Raises ThreadNotStarted; other relays then get the rows meanwhile."""
        try:
            self._publisher.start()
        except ThreadNotStarted:
            self._close()
            raise
        self._started = self._handed.open = True

    def _wait_for_work(self) -> None:
        now = time.monotonic()
        until = self._marks_due if self._marks else now + conf.POLL_INTERVAL
        if self._stopping:
            until = min(until, now + MARK_INTERVAL)
        elif self._publisher.ready:
            until = min(until, self._claim_due)
        self._wait(lambda: self._publisher.ready and (bool(self._handed) or self._may_claim()), until - now)

    def _may_claim(self) -> bool:
        return not self._stopping and time.monotonic() >= self._claim_due

    def _wait(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait for `condition`, for the call of `stop`, or for `seconds`."""
        with self._changed:
            stopping = self._stopping
            self._changed.wait_for(lambda: condition() or self._stopping is not stopping, timeout=max(0.0, seconds))

    @property
    def _stopping(self) -> bool:
        return self._drain_until is not None

    def _finished(self) -> bool:
        if self._drain_until is None:
            return False
        return not (self._handed or self._marks) or time.monotonic() >= self._drain_until

    def _rest(self, seconds: float) -> None:
        self._wait(lambda: False, seconds)

    def _warn(self, event: str, error: Exception) -> None:
        reason = str(error).strip()
        if self._throttle.allows(f"{event} {reason}"):
            log.warning(event, reason=reason)

    def _claim_if_due(self) -> list[Held]:
        if not self._may_claim():
            return []
        leased_at, wakes = time.monotonic(), self._wakes
        rows = leases.claim(conf.CLAIM_BATCH, self._settings.lease)
        backlog = leases.is_full(rows, conf.CLAIM_BATCH)
        with self._changed:
            if wakes == self._wakes:
                self._claim_due = 0.0 if backlog else time.monotonic() + conf.POLL_INTERVAL
        return self._held(rows, leased_at)

    def _held(self, rows: Iterable[AnyRow], leased_at: float) -> list[Held]:
        publish_before = leased_at + self._settings.lease - self._settings.publish_timeout
        return [Held(row, publish_before) for row in rows]

    # --- publishing ----------------------------------------------------------------------------------------

    def _declare_topology(self) -> None:
        connection = self._publisher.connection
        fresh = connection.generation != self._declared_generation
        if not fresh and time.monotonic() < self._declare_due:
            return
        problems = self._declaration.declare(desired.topology(consumers.registered()))
        self._declared_generation = connection.generation
        self._declare_due = time.monotonic() + (1.0 if problems else conf.DECLARE_INTERVAL)

    def _publish_all(self, held: Sequence[Held]) -> None:
        """Publish rows together as far as possible, then alone by destination until one gets no answer."""
        plan = self._destinations.plan(held)
        if plan.together:
            self._publish(plan.together)
        try:
            while plan.alone and self._may_send():
                if self._marks:  # confirmed rows must not wait, unmarked, for a destination that may not answer
                    self._write_marks()
                where, group = plan.alone.pop(0)
                rows, _ = leases.in_time(group, time.monotonic())
                if rows and not self._publish(rows, where):
                    break
        finally:
            leases.give_back([each.row for _, group in plan.alone for each in group])
        leases.give_back(plan.resting, plan.rest, destinations.NOT_TRIED)

    def _publish(self, held: Sequence[Held], alone: Destination | None = None) -> bool:
        """Publish rows, if `alone` only of that destination; return whether the broker answered for all of them."""
        began = time.monotonic()
        outcomes = self._send([each.row for each in held])
        if len(held) > 1:
            self._repeat_refused(held, outcomes)
        took = time.monotonic() - began
        for each, outcome in zip(held, outcomes, strict=True):
            self._record(each.row, outcome, took / len(held))
        excused = self._publisher.connection.blocked or self._stopping
        return self._destinations.learn(held, outcomes, alone, excused=excused)

    def _repeat_refused(self, held: Sequence[Held], outcomes: list[Outcome]) -> None:
        """Publish each refused row once more, alone. Over one bad row the broker closes the channel and so discards the
        confirms of all others; only the bad row must fail."""
        go_on = True
        for index, each in enumerate(held):
            if outcomes[index].status is Status.REFUSED:
                go_on = go_on and time.monotonic() < each.publish_before and self._may_send()
                why = f"of those sent together one was refused: {outcomes[index].reason}"
                outcomes[index] = self._send([each.row])[0] if go_on else Outcome(Status.UNKNOWN, why)

    def _send(self, rows: Sequence[AnyRow]) -> list[Outcome]:
        timeout = self._settings.publish_timeout
        if self._drain_until is not None:
            timeout = min(timeout, max(0.0, self._drain_until - time.monotonic()))
        return self._publisher.publish([destinations.publishing_of(row) for row in rows], timeout)

    def _may_send(self) -> bool:
        """Wait a moment for the connection; return whether the relay may publish further rows."""
        with self._changed:
            return not self._stopping and self._changed.wait_for(lambda: self._publisher.ready, timeout=1.0)

    def _record(self, row: AnyRow, outcome: Outcome, seconds: float) -> None:
        """Log the outcome of a row, which took `seconds`, and keep it as a mark."""
        queues = destinations.expected_queues(row)
        outcome = destinations.true_outcome(row, outcome, queues, self._declaration.problems)
        if outcome.status is Status.RETURNED or isinstance(outcome.refusal, NotFound):
            self._declare_due = min(self._declare_due, time.monotonic() + PAUSE_AFTER_DELETION)
        to = row.consumer or row.exchange
        if outcome.status is Status.CONFIRMED:
            self.published += 1
            self._successes.add(to, seconds=seconds)
        if outcome.status is not Status.CONFIRMED or log.prints_debug:
            about = log.bind(message_id=row.message_id, type=row.type, subject=row.subject, attempt=row.attempt, to=to)
            if outcome.status is Status.CONFIRMED:
                about.debug("message.published")
            else:
                about.warning(f"message.{outcome.status.value}", reason=outcome.reason)
        if not self._marks:
            self._marks_due = time.monotonic() + MARK_INTERVAL
        self._marks.append(Mark(row, outcome, tuple(queues)))

    def _write_marks(self) -> None:
        leases.write(self._marks)
        self._marks.clear()

    def _close(self) -> None:
        """Take no more rows, and give back those that were handed over; if the database fails, keep them."""
        with self._changed:
            self._handed.open = False
            rows = self._handed.rows()
        if leases.give_back(rows):
            self._handed.take(len(rows))

    def _end(self) -> None:
        try:
            self._write_marks()
        except (DatabaseError, InterfaceError) as error:
            self._warn("relay.database_error", error)
        self._successes.tell(at_end=True)
        self._close()

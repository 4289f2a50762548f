"""The relay: publishes committed outbox rows and marks what the broker confirms. Only the relay publishes events."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from django.db import DatabaseError, InterfaceError

from messaging import conf, database
from messaging.broker.channels import Channels
from messaging.broker.publisher import CONFIRMED, Outcome, Status
from messaging.exceptions import BrokerUnavailable, NotFound, ThreadNotStarted
from messaging.logs import Successes, Throttle, get_logger
from messaging.models.counts import MinuteCount, counting
from messaging.relay import destinations, leases
from messaging.relay.declaring import Declaring
from messaging.relay.flow import Flow
from messaging.relay.leases import HandedOver, Held, Mark
from messaging.relay.statements import AnyRow
from messaging.relay.streams import Flight

log = get_logger(__name__)

#: Marks are written at once, but this many seconds lie between two times: a busy relay writes them in batches.
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
        self._publisher = Channels("relay", on_change=self.wake)
        self._declaring = Declaring(self._publisher.connection, self._notify)
        # While marks wait to be written, this thread wakes up soon by itself: a confirm that comes need not wake it.
        self._flow = Flow(
            self._publisher,
            self._notify,
            awaits_outcomes=lambda: not self._marks,
            held_up=lambda: self._declaring.stale_problems,
        )
        self._throttle = Throttle()
        self._successes = Successes(
            log, "messages.published", "to", also=partial(counting.add, MinuteCount.What.PUBLISHED)
        )
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
        if self._may_publish and not self._stopping and self._flow.offer(held, self._declaring.problems):
            return len(held)
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
                    self._write_counts()
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

    def _step(self) -> None:
        if not self._started:
            self._start()
        self._wait_for_work()
        self._record_outcomes()
        if self._publisher.ready:
            self._declaring.run()
        if self._may_publish:
            # Claimed first: if the database fails here, rows that were handed over are still in memory.
            claimed = self._claim_if_due()
            with self._changed:
                handed = self._handed.take(self._flow.room())
            self._flow.add([*handed, *claimed])
            self._flow.send(self._declaring.problems)
        self._flow.expire(stopping=self._stopping)
        self._give_back()
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
        until = min(self._marks_due if self._marks else now + conf.POLL_INTERVAL, self._flow.due())
        if self._stopping:
            until = min(until, now + MARK_INTERVAL)
        elif self._may_publish and self._flow.room():
            until = min(until, self._claim_due)
        self._wait(self._has_work, until - now)

    def _has_work(self) -> bool:
        if self._flow.has_outcomes or (self._publisher.ready and self._declaring.is_waited_for):
            return True
        if not self._may_publish:
            return False
        return self._flow.can_send() or ((bool(self._handed) or self._may_claim()) and self._flow.room() > 0)

    @property
    def _may_publish(self) -> bool:
        return self._publisher.ready and self._declaring.is_done

    def _may_claim(self) -> bool:
        return not self._stopping and time.monotonic() >= self._claim_due

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

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
        return not (self._handed or self._flow or self._marks) or time.monotonic() >= self._drain_until

    def _rest(self, seconds: float) -> None:
        self._wait(lambda: False, seconds)

    def _warn(self, event: str, error: Exception) -> None:
        reason = str(error).strip()
        if self._throttle.allows(f"{event} {reason}"):
            log.warning(event, reason=reason)

    def _claim_if_due(self) -> list[Held]:
        if not (self._may_claim() and self._flow.room()):
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

    def _record_outcomes(self) -> None:
        """Log the outcomes that have come, and keep them as marks."""
        flights = self._flow.collect()
        for flight in flights:
            assert flight.outcome is not None
            self._record(flight, flight.outcome, flight.settled_at)
        if any(flight.outcome is CONFIRMED for flight in flights):
            self._publisher.connection.succeeded()

    def _record(self, flight: Flight, outcome: Outcome, at: float) -> None:
        """Log the outcome of a publish, which came at `at`, and keep it as a mark."""
        row, queues = flight.held.row, flight.queues
        problems = {**flight.problems, **self._declaring.problems}
        outcome = destinations.true_outcome(row, outcome, queues, problems)
        if outcome.status is Status.RETURNED or isinstance(outcome.refusal, NotFound):
            self._declaring.hasten()
        to = row.consumer or row.exchange
        if outcome.status is Status.CONFIRMED:
            self.published += 1
            self._successes.add(to, seconds=at - flight.sent_at)
        if outcome.status is not Status.CONFIRMED or log.prints_debug:
            about = log.bind(message_id=row.message_id, type=row.type, subject=row.subject, attempt=row.attempt, to=to)
            if outcome.status is Status.CONFIRMED:
                about.debug("message.published")
            else:
                about.warning(f"message.{outcome.status.value}", reason=outcome.reason)
        self._marks.append(Mark(row, outcome, tuple(queues), at))

    def _write_counts(self) -> None:
        if not counting.is_due:
            return
        try:
            with database.atomic():
                counting.write(database.connection())
        except (DatabaseError, InterfaceError) as error:
            self._warn("relay.database_error", error)

    def _give_back(self) -> None:
        """End the leases of rows that cannot be published now."""
        for (rest, why), rows in self._flow.take_resting().items():
            leases.give_back(rows, rest, why)
            if not rest:
                self.wake()

    def _write_marks(self) -> None:
        leases.write(self._marks)
        self._marks.clear()
        self._marks_due = time.monotonic() + MARK_INTERVAL

    def _close(self) -> None:
        """Take no more rows, and give back those that were handed over; if the database fails, keep them."""
        with self._changed:
            self._handed.open = False
            rows = self._handed.rows()
        if leases.give_back(rows):
            self._handed.take(len(rows))

    def _end(self) -> None:
        self._publisher.stop()
        self._record_outcomes()
        sent, unsent = self._flow.take_all()
        now = time.monotonic()
        for flight in sent:
            outcome = Outcome(Status.UNKNOWN, "the relay was stopped before the confirm", late=True)
            self._record(flight, outcome, now)
        leases.give_back(unsent)
        self._give_back()
        try:
            self._write_marks()
        except (DatabaseError, InterfaceError) as error:
            self._warn("relay.database_error", error)
        self._successes.tell(at_end=True)
        self._close()

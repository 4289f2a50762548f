"""The relay: committed outbox rows become confirmed publishes. Only it publishes events."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from django.db import DatabaseError, InterfaceError

from messaging import conf, consumers, database
from messaging.broker.publisher import Outcome, Publisher, Status
from messaging.exceptions import BrokerUnavailable, NotFound, ThreadNotStarted
from messaging.logs import Throttle, get_logger
from messaging.models import OutboxMessage
from messaging.relay import leases
from messaging.relay.leases import Mark
from messaging.relay.publishing import destination, expected_queues, is_for_whoever_listens, publishing_of
from messaging.relay.silence import Destination, Silences
from messaging.topology import desired
from messaging.topology.declare import PAUSE_AFTER_DELETION, Declaration

log = get_logger(__name__)

#: Rows, and bytes of their bodies, that may wait in memory; what does not fit waits in the table.
HAND_OVER_LIMIT = 10_000
HAND_OVER_BYTES = 32 * 1024 * 1024
#: Marks are collected for this many seconds, so that a busy relay writes them in batches.
MARK_INTERVAL = 0.05
#: Tries of a row beside whatever else is there. One that is still pending then goes with its like alone, in any relay.
TOGETHER = 2
#: Seconds to rest after the database failed.
DATABASE_PAUSE = 1.0
#: Seconds to rest after the broker failed to answer.
BROKER_PAUSE = 0.2
#: Seconds to rest after an error of our own code, so that it cannot spin.
FAULT_PAUSE = 1.0
#: Seconds before the connection's thread is started again, where the system allowed no more threads.
THREAD_PAUSE = 2.0


@dataclass(frozen=True, slots=True)
class _Held:
    """A row whose lease this relay holds, and until when (monotonic) it may still begin to publish it."""

    row: OutboxMessage
    publish_before: float


#: By destination, and then by exchange and routing key: what may be sent together where not all may.
_Groups = dict[Destination, dict[tuple[str, str], list[_Held]]]


class Relay:
    """Publishes outbox rows until told to stop.

    Rows reach it in two ways: handed over in memory by the process that wrote them (born leased to it), or claimed
    from the table once due and not leased: left by a process that died, delayed, or written where no relay runs.
    A row is marked published only after the broker's confirm, and only while its lease is still this relay's; a
    row whose fate is unknown stays pending and is published again.
    """

    def __init__(self) -> None:
        self._settings = conf.get()
        self._changed = threading.Condition()
        self._handed: deque[_Held] = deque()
        self._handed_bytes = 0
        #: Rows, without their bodies, that are leased to this relay and will not be published under that lease.
        self._left_over: list[OutboxMessage] = []
        #: No more rows are taken.
        self._over = False
        #: Whether the publisher's thread runs, and when it is started next.
        self._started = False
        self._start_due = 0.0
        #: Counts calls of `wake`: a claim under way has not seen what one of them is about.
        self._wakes = 0
        self._marks: list[Mark] = []
        self._marks_due = 0.0
        self._claim_due = 0.0
        self._drain_until: float | None = None
        self._declared_generation = 0
        self._declare_due = 0.0
        self._publisher = Publisher("relay", on_change=self.wake)
        self._declaration = Declaration(self._publisher.connection)
        self._silences = Silences()
        self._throttle = Throttle()
        self.published = 0

    # --- from any thread -----------------------------------------------------------------------------------

    def room(self) -> tuple[int, int]:
        """Return how many more rows, and bytes of their bodies, can be handed over; none while it cannot publish."""
        if self._over or (self._start_due and not self._started):
            return 0, 0
        return HAND_OVER_LIMIT - len(self._handed), HAND_OVER_BYTES - self._handed_bytes

    def hand_over(self, rows: Sequence[OutboxMessage], leased_at: float) -> bool:
        """Take rows that were leased at `leased_at` (monotonic) and have just been committed. Never blocks.

        The leases of rows that do not fit are ended, so that they are claimed at once. Returns False where the relay
        has ended: the leases are then the caller's to end.
        """
        held = self._held(rows, leased_at)
        with self._changed:
            if self._over:
                return False
            fitting = how_many_fit(rows, *self.room())
            self._handed.extend(held[:fitting])
            self._handed_bytes += sum(len(row.body) for row in rows[:fitting])
            self._left_over += map(_without_body, rows[fitting:])
            self._changed.notify_all()
        return True

    def wake(self) -> None:
        """Look at the table at once: something may be there to claim, or the connection has just come up."""
        with self._changed:
            self._wakes += 1
            self._claim_due = 0.0
            self._changed.notify_all()

    def stop(self, drain_timeout: float) -> None:
        """Ask for the end: what is held is published within `drain_timeout` seconds, or given back."""
        with self._changed:
            self._drain_until = time.monotonic() + drain_timeout
            self._changed.notify_all()

    @property
    def refusal(self) -> str:
        """Why the broker refused this user at the first attempt; empty where it did not."""
        connection = self._publisher.connection
        return connection.last_error if connection.refused and not connection.generation else ""

    # --- on the relay's own thread -------------------------------------------------------------------------

    def run(self) -> None:
        """Publish until `stop`."""
        try:
            while not self._finished():
                try:
                    self._turn()
                    database.give_back_pooled()
                except (DatabaseError, InterfaceError) as error:
                    self._tell("relay.database_error", error)
                    self._rest(DATABASE_PAUSE)
                except BrokerUnavailable as error:
                    self._tell("relay.broker_error", error)
                    self._rest(BROKER_PAUSE)
                except BaseException:
                    # A fault of our own must not end the thread that everybody's events depend on.
                    log.exception("relay.fault")
                    self._rest(FAULT_PAUSE)
        finally:
            self._give_back()
            self._publisher.stop()

    def _tell(self, event: str, error: Exception) -> None:
        reason = str(error).strip()
        if self._throttle.allows(f"{event} {reason}"):
            log.warning(event, reason=reason)

    def _turn(self) -> None:
        if not self._started:
            self._start_publisher()
        self._wait_for_work()
        self._free_left_over()
        if self._publisher.ready:
            self._declare_topology()
            # Claimed first: should the database fail here, what was handed over is still in memory.
            claimed = self._claim_if_due()
            # By row: where the database's clock was set forward, one that was handed over is claimed as well.
            held = {each.row.pk: each for each in [*self._take_handed(), *claimed]}
            now = time.monotonic()
            # What was held for too long is no longer ours: another relay may claim it, a person may have cancelled it.
            ours = [each for each in held.values() if each.publish_before > now]
            self._return([each.row for each in held.values() if each.publish_before <= now])
            if ours:
                self._publish_sorted(ours)
        if self._marks and time.monotonic() >= self._marks_due:
            self._write_marks()

    def _start_publisher(self) -> None:
        """Start the connection's thread. Where the system allows none, what is held goes free for other relays, and the
        thread is started again THREAD_PAUSE seconds later."""
        if time.monotonic() < self._start_due:
            return
        try:
            self._publisher.start()
        except ThreadNotStarted as error:
            log.error("relay.not_connected", reason=str(error), again_in_seconds=THREAD_PAUSE)
            with self._changed:
                self._start_due = time.monotonic() + THREAD_PAUSE
                self._left_over += [_without_body(held.row) for held in self._handed]
                self._handed.clear()
                self._handed_bytes = 0
        else:
            self._started = True

    def _free_left_over(self) -> None:
        """End the leases of rows that will not be published under them, and claim at once what went free."""
        rows = self._left_over[:]
        if rows:
            leases.give_back(rows)
            with self._changed:
                del self._left_over[: len(rows)]
            self.wake()

    def _wait_for_work(self) -> None:
        now = time.monotonic()
        until = self._marks_due if self._marks else now + self._settings.poll_interval
        if self._stopping:
            until = min(until, now + MARK_INTERVAL)
        elif self._publisher.ready:
            until = min(until, self._claim_due)
        self._wait(self._has_work, until - now)

    def _has_work(self) -> bool:
        may_claim = not self._stopping and time.monotonic() >= self._claim_due
        return bool(self._left_over) or (self._publisher.ready and (bool(self._handed) or may_claim))

    def _wait(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait for `condition`, for the word to stop, or for `seconds`."""
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

    # --- which rows ----------------------------------------------------------------------------------------

    def _take_handed(self) -> list[_Held]:
        """Return what to publish next. What was held for too long goes free instead: its lease is about to end, and
        nobody would take it before."""
        taken: list[_Held] = []
        now = time.monotonic()
        with self._changed:
            while self._handed and len(taken) < self._settings.claim_batch:
                held = self._handed.popleft()
                self._handed_bytes -= len(held.row.body)
                if held.publish_before > now:
                    taken.append(held)
                else:
                    self._left_over.append(_without_body(held.row))
        return taken

    def _claim_if_due(self) -> list[_Held]:
        if self._stopping or time.monotonic() < self._claim_due:
            return []
        leased_at, wakes = time.monotonic(), self._wakes
        rows = leases.claim(self._settings.claim_batch, self._settings.lease)
        backlog = leases.is_full(rows, self._settings.claim_batch)
        with self._changed:
            if wakes == self._wakes:
                self._claim_due = time.monotonic() + (MARK_INTERVAL if backlog else self._settings.poll_interval)
        return self._held(rows, leased_at)

    def _held(self, rows: Iterable[OutboxMessage], leased_at: float) -> list[_Held]:
        publish_before = leased_at + self._settings.lease - self._settings.publish_timeout
        return [_Held(row, publish_before) for row in rows]

    # --- publishing ----------------------------------------------------------------------------------------

    def _declare_topology(self) -> None:
        connection = self._publisher.connection
        fresh = connection.generation != self._declared_generation
        if not fresh and time.monotonic() < self._declare_due:
            return
        problems = self._declaration.declare(desired.topology(consumers.registered()))
        self._declared_generation = connection.generation
        self._declare_due = time.monotonic() + (1.0 if problems else self._settings.declare_interval)

    def _publish_sorted(self, held: Sequence[_Held]) -> None:
        """Publish what may be sent together, then what goes alone; what has to rest is given back."""
        together, apart, resting = self._sort(held)
        if together:
            self._learn(together, self._publish(together))
        self._publish_apart(apart)
        for seconds, rows in resting.items():
            self._return(rows, seconds)

    def _sort(self, held: Sequence[_Held]) -> tuple[list[_Held], _Groups, dict[float, list[OutboxMessage]]]:
        """Return what may be sent together, what goes alone, by destination, and what rests, for how many seconds.

        Alone goes what the broker gave no word on, twice, and what is for a destination that is in doubt.
        """
        self._silences.forget_old()
        together: list[_Held] = []
        apart: _Groups = {}
        resting: dict[float, list[OutboxMessage]] = {}
        for each in held:
            row = each.row
            alone = row.state == OutboxMessage.State.PENDING and row.publish_attempts >= TOGETHER
            if not (alone or self._silences):
                together.append(each)
                continue
            where = destination(row)
            if rest := self._silences.rest(where):
                resting.setdefault(math.ceil(rest), []).append(row)
            elif alone or self._silences.doubted(where):
                apart.setdefault(where, {}).setdefault((row.exchange, row.routing_key), []).append(each)
            else:
                together.append(each)
        return together, apart, resting

    def _publish_apart(self, groups: _Groups) -> None:
        """Publish group by group, until one gets no word: what would come after it is given back, for another turn."""
        waiting = [(where, group) for where in self._silences.in_order(groups) for group in groups[where].values()]
        try:
            while waiting and not self._stopping and self._wait_until_ready():
                if self._marks:  # what is confirmed shall not wait, unmarked, for a group that may get no word
                    self._write_marks()
                where, group = waiting.pop(0)
                ours = [each for each in group if each.publish_before > time.monotonic()]
                if self._silences.silent(where) and len(ours) > 1:
                    waiting.insert(0, (where, ours[1:]))
                    ours = ours[:1]
                if ours and not self._learn(ours, self._publish(ours), alone=where):
                    break
        finally:
            self._return([each.row for _, group in waiting for each in group])

    def _learn(self, held: Sequence[_Held], outcomes: Sequence[Outcome], alone: Destination | None = None) -> bool:
        """Remember who gave no word of those that were sent, perhaps `alone`; return whether all gave one."""
        unheard = [each.row for each, outcome in zip(held, outcomes, strict=True) if outcome.status is Status.UNKNOWN]
        heard = len(unheard) < len(held)
        if alone and heard:
            self._silences.gave_word(alone)
        if self._publisher.connection.blocked or self._stopping:
            pass  # nobody gets a word during an alarm, and few in the time that is left
        elif alone and not heard and any(outcome.late for outcome in outcomes):
            self._silences.gave_no_word(alone)
        else:
            for row in unheard:
                self._silences.doubt(alone or destination(row))
        return not unheard

    def _return(self, rows: Sequence[OutboxMessage], rest: float = 0.0) -> None:
        """Give rows back that were not tried. Where the database fails nothing is lost: their leases end by themselves,
        and what is published meanwhile does not wait for it."""
        if rows:
            try:
                leases.give_back(rows, rest)
            except (DatabaseError, InterfaceError) as error:
                log.warning("relay.leases_not_given_back", reason=str(error).strip(), rows=len(rows))

    def _publish(self, held: Sequence[_Held]) -> list[Outcome]:
        outcomes = self._send([each.row for each in held])
        if len(held) > 1:
            self._repeat_refused(held, outcomes)
        for each, outcome in zip(held, outcomes, strict=True):
            self._note(each.row, outcome)
        return outcomes

    def _repeat_refused(self, held: Sequence[_Held], outcomes: list[Outcome]) -> None:
        """Send each row that got no word of its own again, alone: the broker closes a channel over one bad row, and
        takes the word on all others with it. Only the guilty one shall suffer."""
        for index, outcome in enumerate(outcomes):
            if outcome.status is not Status.REFUSED:
                continue
            in_time = not self._stopping and time.monotonic() < held[index].publish_before
            if not (in_time and self._wait_until_ready()):
                break
            outcomes[index] = self._send([held[index].row])[0]
        else:
            return
        for later in range(index, len(outcomes)):
            if outcomes[later].status is Status.REFUSED:
                outcomes[later] = Outcome(Status.UNKNOWN, f"of those sent together one was refused: {outcome.reason}")

    def _send(self, rows: Sequence[OutboxMessage]) -> list[Outcome]:
        timeout = self._settings.publish_timeout
        if self._drain_until is not None:
            timeout = min(timeout, max(0.0, self._drain_until - time.monotonic()))
        return self._publisher.publish([publishing_of(row) for row in rows], timeout)

    def _wait_until_ready(self) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._publisher.ready, timeout=1.0)

    def _note(self, row: OutboxMessage, outcome: Outcome) -> None:
        queues = expected_queues(row)
        if outcome.status is Status.CONFIRMED and not row.consumer:
            # Confirmed by the queues that are bound. One that should be bound, and is not, was not asked.
            problems = self._declaration.problems
            missing = [f"{name}: {problems[queue]}" for name, queue in queues.items() if queue in problems]
            if missing:
                outcome = Outcome(Status.RETURNED, f"not every queue took it: {'; '.join(missing)}")
        if outcome.status is Status.RETURNED and not queues and is_for_whoever_listens(row):
            outcome = Outcome(Status.CONFIRMED)
        if outcome.status is Status.RETURNED or isinstance(outcome.refusal, NotFound):
            self._declare_due = min(self._declare_due, time.monotonic() + PAUSE_AFTER_DELETION)
        if outcome.status is Status.CONFIRMED:
            self.published += 1
        _log_outcome(row, outcome)
        if not self._marks:
            self._marks_due = time.monotonic() + MARK_INTERVAL
        self._marks.append(Mark(row, outcome, tuple(queues)))

    # --- marks ---------------------------------------------------------------------------------------------

    def _write_marks(self) -> None:
        leases.write(self._marks)
        self._marks.clear()

    def _give_back(self) -> None:
        with self._changed:
            self._over = True
            rows = [*(held.row for held in self._handed), *self._left_over]
            self._handed.clear()
            self._left_over.clear()
        try:
            self._write_marks()
            leases.give_back(rows)
        except (DatabaseError, InterfaceError) as error:
            # Nothing is lost: the leases end by themselves.
            log.warning("relay.leases_not_given_back", reason=str(error).strip(), rows=len(rows))


def how_many_fit(rows: Sequence[OutboxMessage], room: int, room_bytes: int) -> int:
    """Return how many rows, from the first on, fit into so much room."""
    for count, row in enumerate(rows):
        room_bytes -= len(row.body)
        if count >= room or room_bytes < 0:
            return count
    return len(rows)


def _without_body(row: OutboxMessage) -> OutboxMessage:
    """Return what is needed to end the row's lease: its body may be large."""
    return OutboxMessage(pk=row.pk, lease_token=row.lease_token)


def _log_outcome(row: OutboxMessage, outcome: Outcome) -> None:
    about = log.bind(message_id=row.message_id, type=row.type, subject=row.subject, attempt=row.attempt)
    about = about.bind(to=row.consumer or row.exchange)
    if outcome.status is Status.CONFIRMED:
        about.info("message.published")
    else:
        about.warning(f"message.{outcome.status.value}", reason=outcome.reason)

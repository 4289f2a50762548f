"""The flow: rows on their way to the broker. Each destination has a channel, a window and a circuit breaker of its own.

A destination that confirms nothing, or a row over which RabbitMQ closes the channel, so delays no other destination.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from messaging import conf
from messaging.broker.channels import Channels
from messaging.broker.errors import no_confirm_within
from messaging.broker.publisher import CONFIRMED, Outcome, Status
from messaging.relay import destinations, leases
from messaging.relay.destinations import Destination
from messaging.relay.leases import Held
from messaging.relay.statements import AnyRow
from messaging.relay.streams import PAUSE, WINDOW, Flight, Stream

#: The error of a row that rests because its destination confirms nothing.
NOT_TRIED = f"not tried: its destination confirms nothing; it is tried every {PAUSE:g} s with one message"
#: The error of a row that a slow destination has no room for.
NO_ROOM = "not tried: its destination has not confirmed what was sent before"
#: Bytes of all rows that the flow holds above which slow destinations get no more.
SLOW_BYTES = 2 * leases.CLAIM_BYTES
#: Seconds in which the broker must answer anything, if only a destination confirms nothing.
ANY_ANSWER = 2.0
#: Seconds between two looks whether it did.
LOOK_EVERY = 0.05
#: Seconds after its last trial for which a destination without rows is remembered to confirm nothing.
MEMORY = 600.0
#: Rows that `offer` takes at once. More would keep the caller, who has requests to serve.
FEW = 20


class Flow:
    """What one relay has taken from the outbox and not marked yet. For the relay's thread, but for `offer`.

    `on_settled` is called on the I/O thread when there are outcomes to `collect` now: one that is no confirm, one that
    makes room for rows that wait, or any while `awaits_outcomes`. What goes to exchanges and queues that are
    `held_up` waits.
    """

    def __init__(
        self,
        channels: Channels,
        on_settled: Callable[[], None],
        awaits_outcomes: Callable[[], bool] = lambda: True,
        held_up: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self._channels, self._held_up = channels, held_up
        self._on_settled, self._awaits_outcomes = on_settled, awaits_outcomes
        self._lock = threading.RLock()
        self._timeout = conf.get().publish_timeout
        self._streams: dict[Destination, Stream] = {}
        self._flights: dict[int, Flight] = {}
        self._bytes = 0  # of the bodies of all these
        self._outcomes: deque[Flight] = deque()
        #: Whether `on_settled` has been called since the last collection began.
        self._has_told = False
        #: Rows to give back, by the seconds that they rest and the reason.
        self._resting: dict[tuple[float, str], list[AnyRow]] = {}
        #: Since when destinations are in doubt; None while none is.
        self._in_doubt_since: float | None = None
        #: Whether the relay has ended: nothing would publish what is offered.
        self._has_ended = False

    def __len__(self) -> int:
        return len(self._flights)

    @property
    def has_outcomes(self) -> bool:
        """Whether there is something to collect now."""
        return self._has_told or (bool(self._outcomes) and self._awaits_outcomes())

    def room(self) -> int:
        """Return how many more rows may be taken. What waits for slow destinations takes no room from others."""
        with self._lock:
            now = time.monotonic()
            moving = [stream for stream in self._streams.values() if not stream.is_slow(now)]
            if sum(stream.bytes for stream in moving) >= leases.CLAIM_BYTES:
                return 0
            return max(0, conf.CLAIM_BATCH - sum(len(stream.waiting) for stream in moving))

    def due(self) -> float:
        """Return when `expire` has something to do, at the earliest (monotonic)."""
        with self._lock:
            sent = [oldest for stream in self._streams.values() if (oldest := stream.oldest_sent_at()) is not None]
            deadline = min(sent, default=math.inf) + self._timeout
            return deadline if self._in_doubt_since is None else min(deadline, time.monotonic() + LOOK_EVERY)

    def can_send(self) -> bool:
        """Whether rows wait that may be published now."""
        with self._lock:
            return bool(self._ready())

    def add(self, held: Iterable[Held]) -> None:
        """Take rows. Those that cannot be published now rest: see `take_resting`."""
        with self._lock:
            now = time.monotonic()
            for each in held:
                if (known := self._flights.get(each.row.pk)) is not None:
                    # Its lease had ended by the database's clock, and it was claimed: the newer lease counts.
                    known.held = each
                    continue
                queues, where = destinations.route(each.row)
                stream = self._streams.get(where) or self._streams.setdefault(where, Stream(where))
                if rest := stream.breaker.rest(now):
                    self._rest(each.row, rest, NOT_TRIED)
                elif (len(stream.waiting) >= WINDOW or self._bytes >= SLOW_BYTES) and stream.is_slow(now):
                    self._rest(each.row, stream.slow_rest(now, self._timeout), NO_ROOM)
                else:
                    self._hold(each, stream, queues)

    def offer(self, held: Sequence[Held], problems: Mapping[str, str]) -> bool:
        """Publish a few rows at once, from any thread; return False if the flow has no time or no room for them."""
        if len(held) > FEW or not self._lock.acquire(blocking=False):
            return False
        try:
            if self._has_ended or len(held) > self.room():
                return False
            self.add(held)
            self.send(problems, may_wait=True)
        finally:
            self._lock.release()
        return True

    def send(self, problems: Mapping[str, str], *, may_wait: bool = False) -> None:
        """Publish what waits, as far as the windows allow. Rows whose leases are about to end are freed.

        `problems` is what was missing at the last declaration, by name.
        """
        with self._lock:
            now = time.monotonic()
            for stream in self._ready():
                room = stream.window - len(stream.in_flight)
                sending: list[Flight] = []
                while stream.waiting and len(sending) < room:
                    flight = stream.waiting.popleft()
                    if flight.held.publish_before <= now:
                        self._drop(flight)
                        self._rest(flight.held.row, 0.0, "")
                        continue
                    flight.sent_at, flight.outcome, flight.problems = now, None, problems
                    stream.in_flight[flight.held.row.pk] = flight
                    sending.append(flight)
                if sending:
                    self._channels.send(stream.where, sending, may_wait=may_wait)

    def collect(self) -> list[Flight]:
        """Return the rows that were settled since the last call. Those that were refused together are published again
        instead, one by one."""
        with self._lock:
            found: list[Flight] = []
            self._has_told = False  # first: what is settled from now on is seen here, or told again
            while self._outcomes:
                flight = self._outcomes.popleft()
                stream, outcome = flight.stream, flight.outcome
                assert outcome is not None
                del stream.in_flight[flight.held.row.pk]
                if outcome.status not in {Status.UNKNOWN, Status.UNSENDABLE}:
                    self._answered(stream, flight.settled_at)
                if outcome.status is Status.REFUSED and not outcome.alone:
                    stream.waiting.insert(stream.one_by_one, flight)
                    stream.one_by_one += 1
                else:
                    self._drop(flight)
                    found.append(flight)
            return found

    def expire(self, *, stopping: bool) -> None:
        """Give up what was not confirmed in time.

        A destination that confirms nothing while the broker answers others is not tried for PAUSE seconds. If the
        broker answers nothing at all, the connection is dead. Neither is decided while the broker is blocked, or the
        relay is stopping.
        """
        with self._lock:
            now = time.monotonic()
            self._decide(now)
            reason = no_confirm_within(self._timeout, blocked=self._channels.connection.blocked)
            for stream in list(self._streams.values()):
                oldest = stream.oldest_sent_at()
                if oldest is not None and now >= oldest + self._timeout and not stream.in_doubt:
                    self._miss(stream, oldest, now, Outcome(Status.UNKNOWN, reason, late=True), stopping=stopping)
                elif stream.is_empty and now > stream.breaker.next_trial + MEMORY:
                    del self._streams[stream.where]

    def take_resting(self) -> dict[tuple[float, str], list[AnyRow]]:
        """Return the rows that are to be given back, by the seconds that they rest and the reason."""
        with self._lock:
            resting, self._resting = self._resting, {}
            return resting

    def take_all(self) -> tuple[list[Flight], list[AnyRow]]:
        """End: return the rows that were sent and have no outcome, and those that were not sent."""
        with self._lock:
            self._has_ended = True
            sent = [each for stream in self._streams.values() for each in stream.in_flight.values()]
            unsent = [each.held.row for stream in self._streams.values() for each in stream.waiting]
            self._streams.clear()
            self._flights.clear()
            return sent, unsent

    def _ready(self) -> list[Stream]:
        """Return the streams whose rows may be published now. Many at once cost less than one after the other."""
        held_up = self._held_up()
        for stream in self._streams.values():
            stream.is_held_up = bool(held_up) and stream.touches(held_up)
        return [
            stream
            for stream in self._streams.values()
            if stream.waiting
            and stream.window - len(stream.in_flight) >= max(1, min(stream.window // 2, len(stream.waiting)))
        ]

    def _hold(self, held: Held, stream: Stream, queues: Mapping[str, str]) -> None:
        row = held.row
        flight = Flight(destinations.publishing_of(row), self._settled, held=held, stream=stream, queues=queues)
        self._flights[row.pk] = flight
        stream.waiting.append(flight)
        stream.bytes += len(row.body)
        self._bytes += len(row.body)

    def _drop(self, flight: Flight) -> None:
        stream = flight.stream
        del self._flights[flight.held.row.pk]
        stream.bytes -= len(flight.held.row.body)
        self._bytes -= len(flight.held.row.body)
        stream.one_by_one = max(0, stream.one_by_one - 1)

    def _rest(self, row: AnyRow, seconds: float, why: str) -> None:
        self._resting.setdefault((seconds, why), []).append(row)

    def _settled(self, flight: Flight) -> None:
        """On the I/O thread."""
        flight.settled_at = time.monotonic()
        self._outcomes.append(flight)
        if self._has_told:
            return
        stream = flight.stream
        makes_room = stream.waiting and len(self._outcomes) >= stream.window // 2
        if makes_room or flight.outcome is not CONFIRMED or self._awaits_outcomes():
            self._has_told = True
            # Not at once: the broker's other answers have often come with this one.
            self._channels.connection.call_soon(self._on_settled)

    def _answered(self, stream: Stream, at: float) -> None:
        """Note that the broker answered for a destination. If its breaker was open, others may have recovered too."""
        stream.answered_at = at
        if stream.breaker.answered():
            for each in self._streams.values():
                each.breaker.next_trial = min(each.breaker.next_trial, at)

    def _miss(self, stream: Stream, oldest: float, now: float, outcome: Outcome, *, stopping: bool) -> None:
        """Settle what a destination has not confirmed in time, soon: on the I/O thread, which knows what has come."""
        for each in stream.in_flight.values():
            each.sent_at = now
        if self._channels.connection.blocked:
            self._channels.settle(stream.where, outcome)
            return
        heard_at = self._channels.heard_at
        self._channels.give_up(stream.where, outcome)
        if stopping or stream.answered_at > oldest:
            return
        if heard_at > oldest + self._timeout / 2:
            self._open(stream, now)
            return
        stream.in_doubt = True
        if self._in_doubt_since is None:
            self._in_doubt_since = now

    def _decide(self, now: float) -> None:
        """Decide about destinations in doubt once the broker has answered something, or long enough nothing."""
        since = self._in_doubt_since
        if since is None:
            return
        is_alive, is_ready = self._channels.heard_at >= since, self._channels.ready
        if not is_alive and is_ready and now < since + ANY_ANSWER:
            return
        self._in_doubt_since = None
        for stream in self._streams.values():
            if stream.in_doubt:
                stream.in_doubt = False
                if is_alive:
                    self._open(stream, now)
        if is_ready and not is_alive:
            self._channels.connection.reset(f"no confirm within {self._timeout:g} s, and no answer to anything else")

    def _open(self, stream: Stream, now: float) -> None:
        """Open the breaker of a destination, and let its rows rest if it is not tried at once."""
        stream.breaker.failed(now)
        while stream.waiting and stream.breaker.rest(now):
            flight = stream.waiting.popleft()
            self._drop(flight)
            self._rest(flight.held.row, PAUSE, NOT_TRIED)

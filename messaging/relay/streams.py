"""Streams: the rows for one destination, with its window and its circuit breaker."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from messaging.broker.publisher import InFlight
from messaging.relay.destinations import Destination
from messaging.relay.leases import Held

#: Messages of a destination that may be without a confirm. RabbitMQ stops reading a connection after 400 of a channel.
WINDOW = 300
#: Seconds between two trials of a destination that confirms nothing, with one message each.
PAUSE = 30.0
#: Seconds after which a destination that confirms nothing counts as slow: only so many of its rows wait in memory.
SLOW_AFTER = 1.0
#: The shortest rest of a row that a slow destination has no room for.
SLOW_REST = 2.0


class Breaker:
    """The circuit breaker of one destination: closed, open, or half-open for one message. Times are in seconds."""

    def __init__(self) -> None:
        self.is_closed = True
        self.next_trial = 0.0

    def rest(self, now: float) -> float:
        """Return the seconds for which nothing is published; 0 if a message may be."""
        return 0.0 if self.is_closed else max(0.0, self.next_trial - now)

    def failed(self, now: float) -> None:
        """Note that the destination confirmed nothing. The first time it is tried once more at once: the network or the
        broker may have stood still just then."""
        self.is_closed, self.next_trial = False, now + (0.0 if self.is_closed else PAUSE)

    def answered(self) -> bool:
        """Note that the broker answered, whatever it said; return whether that closed the breaker."""
        was_closed, self.is_closed = self.is_closed, True
        return not was_closed


@dataclass(slots=True, eq=False)
class Flight(InFlight):
    """A row that the flow holds, and its publish."""

    held: Held = field(kw_only=True)
    stream: Stream = field(kw_only=True)
    #: The consumers that must receive it, and their queues.
    queues: Mapping[str, str] = field(kw_only=True)
    #: What was missing when it was sent. A queue that was declared before the confirm has not got it either.
    problems: Mapping[str, str] = field(default_factory=dict)
    sent_at: float = 0.0
    settled_at: float = 0.0


class Stream:
    """The rows for one destination."""

    def __init__(self, where: Destination) -> None:
        self.where = where
        self.breaker = Breaker()
        self.waiting: deque[Flight] = deque()
        #: By the row's id, in the order in which they were sent.
        self.in_flight: dict[int, Flight] = {}
        self.bytes = 0
        #: So many, the one in flight and those that wait first, are published one by one: RabbitMQ refused one of them.
        self.one_by_one = 0
        #: Whether it is being found out if the broker answers anything else.
        self.in_doubt = False
        #: Whether it waits for a declaration of what was missing.
        self.is_held_up = False
        self.answered_at = 0.0

    @property
    def is_empty(self) -> bool:
        """Whether it holds no row, and nothing is to be decided about it."""
        return not (self.waiting or self.in_flight or self.in_doubt)

    @property
    def window(self) -> int:
        """How many messages may be without a confirm now."""
        if self.in_doubt or self.is_held_up:
            return 0
        return WINDOW if self.breaker.is_closed and not self.one_by_one else 1

    def touches(self, names: Collection[str]) -> bool:
        """Whether one of these exchanges or queues is among where it goes."""
        return self.where in names if isinstance(self.where, str) else not self.where.isdisjoint(names)

    def oldest_sent_at(self) -> float | None:
        """Return when the oldest message without an outcome was sent."""
        for each in self.in_flight.values():
            return each.sent_at
        return None

    def is_slow(self, now: float) -> bool:
        """Whether it is held up, or has confirmed nothing for a while although it should."""
        if self.in_doubt or self.is_held_up or not self.breaker.is_closed:
            return True
        oldest = self.oldest_sent_at()
        return oldest is not None and now - oldest > SLOW_AFTER

    def slow_rest(self, now: float, timeout: float) -> float:
        """Return the rest of rows without room: while a silent destination is tried, until that is decided."""
        oldest = None if self.breaker.is_closed else self.oldest_sent_at()
        return SLOW_REST if oldest is None else max(SLOW_REST, oldest + timeout - now)

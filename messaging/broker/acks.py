"""Acks: acknowledges what has finished, together where it can."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from pika.channel import Channel

from messaging.broker.arrival import Arrival
from messaging.broker.connection import Connection


class Acks:
    """The deliveries of one channel that are not settled, and those among them that have finished.

    Arrivals that finish in quick succession are acknowledged together: they wait for each other for a few milliseconds,
    or until `enough` have finished. If the channel is lost before, RabbitMQ delivers them again.

    `channel_of` returns the channel on which an arrival may still be settled, or None.
    """

    def __init__(self, connection: Connection, channel_of: Callable[[Arrival], Channel | None], enough: int) -> None:
        self._connection = connection
        self._channel_of = channel_of
        self._enough = enough
        #: Tags that are neither acknowledged nor requeued, in order.
        self._unsettled: dict[int, None] = {}
        self._finished: deque[Arrival] = deque()
        #: Whether the I/O thread is about to acknowledge, and whether without waiting.
        self._due = self._urgent = False

    def add(self, arrivals: Sequence[Arrival]) -> None:
        """Acknowledge arrivals soon. From any thread."""
        self._finished.extend(arrivals)
        urgent = len(self._finished) >= self._enough
        if not self._due or (urgent and not self._urgent):
            self._due, self._urgent = True, urgent
            self._connection.call_soon(self._acknowledge, may_wait=not urgent)

    # --- on the I/O thread ---------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin anew, on a new channel."""
        self._unsettled.clear()

    def arrived(self, tag: int) -> None:
        """Note a delivery."""
        self._unsettled[tag] = None

    def settled(self, tag: int) -> None:
        """Note that a delivery is settled in another way."""
        self._unsettled.pop(tag, None)

    def _acknowledge(self) -> None:
        # First: what is added from here on may have come too late for this call.
        self._due = self._urgent = False
        tags: set[int] = set()
        channel = None
        while self._finished:
            arrival = self._finished.popleft()
            if current := self._channel_of(arrival):
                channel = current
                tags.add(arrival.tag)
        if channel is not None:
            for tag, multiple in self._joined(tags):
                channel.basic_ack(tag, multiple=multiple)

    def _joined(self, tags: set[int]) -> Iterator[tuple[int, bool]]:
        """Yield the acknowledgements that these take: one for those behind which nothing older is left, and one each
        for the others."""
        oldest = list(itertools.takewhile(tags.__contains__, self._unsettled))
        if oldest:
            yield oldest[-1], len(oldest) > 1
        yield from ((tag, False) for tag in sorted(tags.difference(oldest)))
        for tag in tags:
            self._unsettled.pop(tag, None)

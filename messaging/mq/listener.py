"""Listener: the messages of a queue or an exchange, for one thread that asks for them one by one."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from messaging.broker.arrival import Arrival
from messaging.broker.connection import Connection
from messaging.broker.queue_answers import STREAM_OFFSET
from messaging.broker.subscription import Subscription
from messaging.exceptions import OperationRefused
from messaging.routing import Binding

#: Seconds between two checks whether consuming has begun.
CHECK_EVERY = 0.02


@dataclass(frozen=True, slots=True)
class Ended:
    """Nothing arrives until the listener is opened again."""

    reason: str
    #: What the broker refused; None if the connection is gone, or the queue.
    refusal: OperationRefused | None


class Listener:
    """A connection of its own, and one subscription on it, as a context manager.

    What arrives waits here for `next`, up to the prefetch. With bindings it has a private queue, a new one each time it
    is opened; with a name it listens to an existing queue.
    """

    def __init__(self, role: str) -> None:
        self.connection = Connection(role, on_lost=self._lost)
        self._subscription: Subscription | None = None
        self._private = False
        # No SimpleQueue: in Python 3.11 a signal at the end of its time-out makes `get` wait for ever.
        self._arrived: queue.Queue[Arrival | Ended] = queue.Queue()

    def __enter__(self) -> Self:
        self.connection.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The broker requeues what is not acknowledged.
        self.connection.stop()

    def subscribe(self, source: str | Sequence[Binding], *, prefetch: int, offset: str = "") -> None:
        """Set what to listen to, once: the name of a queue, or bindings.

        Of a stream, and only there, `offset` says where to begin: "first" or "next". Opened again it goes on behind
        the last message that arrived.
        """
        self._private = not isinstance(source, str)
        self._subscription = Subscription(
            self.connection,
            source,
            prefetch=prefetch,
            on_arrival=self._arrived.put,
            on_ended=self._ended,
        )
        if offset:
            self._subscription.arguments = {STREAM_OFFSET: offset}

    def open(self, given_up: Callable[[], bool]) -> bool:
        """Start to consume, for the first time or after an end; return True once the broker has agreed.

        False if it did not: `given_up` returned True, or `next` returns the reason.
        """
        subscription = self.subscription
        subscription.open()
        while subscription.active and not given_up():
            if subscription.consuming:
                return True
            time.sleep(CHECK_EVERY)
        return False

    def next(self, timeout: float) -> Arrival | Ended | None:
        """Return what arrived next, within `timeout` seconds; None if nothing did."""
        try:
            arrived = self._arrived.get(timeout=timeout)
        except queue.Empty:
            return None
        if isinstance(arrived, Arrival):
            if self._is_redelivered(arrived):
                return None
            offset = arrived.message.headers.get(STREAM_OFFSET)
            if self.subscription.arguments and isinstance(offset, int):
                self.subscription.arguments = {STREAM_OFFSET: offset + 1}
        return arrived

    @property
    def subscription(self) -> Subscription:
        """What it listens to, after `subscribe`."""
        assert self._subscription is not None, "subscribe first"
        return self._subscription

    def _is_redelivered(self, arrival: Arrival) -> bool:
        # Its channel is gone, and the broker redelivers it, but not from a private queue.
        return not (self._private or self.subscription.is_current(arrival))

    # --- on the I/O thread ---------------------------------------------------------------------------------

    def _lost(self, reason: str) -> None:
        if self._subscription is not None:
            self._subscription.lost(reason)

    def _ended(self, reason: str) -> None:
        self._arrived.put(Ended(reason, self.subscription.refusal))

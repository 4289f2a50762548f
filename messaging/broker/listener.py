"""Listener: what a queue or an exchange brings, for the one thread that asks for it."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from messaging.broker.connection import Connection
from messaging.broker.declaring import STREAM_OFFSET
from messaging.broker.private_queue import PrivateQueue
from messaging.broker.subscription import Arrival, Subscription
from messaging.exceptions import OperationRefused
from messaging.routing import Binding

#: Seconds between two looks at whether the broker has begun to send.
LOOK_EVERY = 0.02


@dataclass(frozen=True, slots=True)
class Ended:
    """Nothing comes any more until the listener is opened again."""

    reason: str
    #: What the broker refused, where it did. None: the connection is gone, or the queue.
    refusal: OperationRefused | None


class Listener:
    """A connection of its own, and one subscription on it, as a context manager.

    What arrives waits here for `next`; how much can, the prefetch says. Listening to bindings it has a queue of its
    own, made anew each time it is opened; else it listens to a queue that stands.
    """

    def __init__(self, role: str) -> None:
        self.connection = Connection(role, on_lost=self._lost)
        self._subscription: Subscription | None = None
        self._private = False
        self._auto_ack = False
        self._arrived: queue.SimpleQueue[Arrival | Ended] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        self.connection.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What is not acknowledged goes back.
        self.connection.stop()

    def subscribe(self, source: str | Sequence[Binding], *, prefetch: int, auto_ack: bool, offset: str = "") -> None:
        """Say what to listen to, once: a queue, by its name, or bindings. In a stream, and only there, `offset` says
        where to begin: "first" or "next". Opened again it goes on behind the last message that came."""
        self._private, self._auto_ack = not isinstance(source, str), auto_ack
        kind: Callable[..., Subscription] = PrivateQueue if self._private else Subscription
        self._subscription = kind(
            self.connection,
            source,
            prefetch=prefetch,
            on_arrival=self._arrived.put,
            on_ended=self._ended,
            auto_ack=auto_ack,
        )
        if offset:
            self._subscription.arguments = {STREAM_OFFSET: offset}

    def open(self, given_up: Callable[[], bool]) -> bool:
        """Start to consume, for the first time or after an end; return True once the broker says that it sends.

        False where it does not come to that: `given_up` says so, or `next` brings the reason.
        """
        subscription = self._current
        subscription.open()
        while subscription.active and not given_up():
            if subscription.consuming:
                return True
            time.sleep(LOOK_EVERY)
        return False

    @property
    def queue(self) -> str:
        """The queue that it listens to."""
        return self._current.queue

    def next(self, timeout: float) -> Arrival | Ended | None:
        """Return what came next, within `timeout` seconds; None where nothing did."""
        try:
            news = self._arrived.get(timeout=timeout)
        except queue.Empty:
            return None
        if isinstance(news, Arrival):
            if self._comes_again(news):
                return None
            self._go_on_behind(news)
        return news

    def ack(self, arrival: Arrival) -> None:
        """Acknowledge. Returns at once."""
        self._current.ack(arrival)

    def cancel(self) -> None:
        """Let nothing more come; what has arrived is still there for `next`. Returns at once."""
        self._current.cancel()

    @property
    def _current(self) -> Subscription:
        assert self._subscription is not None, "subscribe first"
        return self._subscription

    def _go_on_behind(self, arrival: Arrival) -> None:
        offset = arrival.message.headers.get(STREAM_OFFSET)
        if self._current.arguments and isinstance(offset, int):
            self._current.arguments = {STREAM_OFFSET: offset + 1}

    def _comes_again(self, arrival: Arrival) -> bool:
        # Its channel is gone, and what it brought went back. What went from a queue of our own, or by itself, did not.
        return not (self._private or self._auto_ack or self._current.is_current(arrival))

    # --- on the I/O thread ---------------------------------------------------------------------------------

    def _lost(self, reason: str) -> None:
        if self._subscription is not None:
            self._subscription.lost(reason)

    def _ended(self, reason: str) -> None:
        self._arrived.put(Ended(reason, self._current.refusal))

"""Channels: publishing by a channel for each destination, so that one that confirms nothing holds up itself alone.

RabbitMQ handles the messages of a channel one after the other, and reads 400 beyond those that it has handled. Then it
reads nothing more from the whole connection: callers leave fewer than that without a confirm in each channel.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Self

import pika
from pika.channel import Channel

from messaging.broker.connection import Connection
from messaging.broker.publisher import ConfirmChannel, InFlight, Outcome, Status
from messaging.exceptions import BrokerUnavailable, LimitReached, OperationRefused

#: Channels that are kept open, if the broker allows as many. One more takes the place of an idle one, or waits for one.
MOST = 32
#: Channels that were closed, and whose end RabbitMQ has not confirmed. At more the connection is given up.
MOST_CLOSING = 100


class _Channel(ConfirmChannel):
    """The channel of one destination. `waiting` is sent once it is ready."""

    def __init__(self, channels: Channels, where: Hashable, waiting: list[InFlight]) -> None:
        super().__init__(channels.connection, channels.is_ready, channels.is_closed)
        self._channels = channels
        self.where = where
        self.waiting = waiting

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits, here or for a confirm."""
        return not (self.unconfirmed or self.waiting)

    def _confirmed(self, frame: pika.frame.Method) -> None:
        super()._confirmed(frame)
        if self.is_idle:
            self._channels.open_more()

    def _closed(self, channel: Channel, error: OperationRefused | BrokerUnavailable) -> None:
        # All channels go with the connection, whatever it was lost over: `Channels` is told.
        if channel.connection.is_open:
            super()._closed(channel, error)


class Channels:
    """Publishes messages with confirms, on a connection of its own with a channel for each destination.

    `on_change` is called on the I/O thread whenever `ready` may have changed.
    """

    def __init__(self, role: str, *, on_change: Callable[[], None] = lambda: None) -> None:
        self.connection = Connection(role, on_open=self._opened, on_lost=self._lost, on_change=on_change)
        #: The least recently used first.
        self._channels: dict[Hashable, _Channel] = {}
        #: What waits for a channel, because there are as many as there may be.
        self._without: dict[Hashable, list[InFlight]] = {}
        self._closing: set[ConfirmChannel] = set()
        #: As many channels as the broker's answers so far let us expect to get, and on the present connection.
        self._expected = self._most = MOST
        self._heard_at = 0.0

    # --- from any thread -----------------------------------------------------------------------------------

    def start(self) -> Self:
        """Connect in the background. Returns at once."""
        self.connection.start()
        return self

    def stop(self) -> None:
        """Close the connection, within a bounded time."""
        self.connection.stop()

    @property
    def ready(self) -> bool:
        """Whether a publish would be sent now: connected, and the broker is not blocked."""
        return self.connection.usable

    @property
    def heard_at(self) -> float:
        """When the broker last opened a channel or confirmed anything (monotonic)."""
        return max([self._heard_at, *(each.heard_at for each in list(self._channels.values()))])

    def send(self, where: Hashable, publishings: Sequence[InFlight], *, may_wait: bool = False) -> None:
        """Publish by the channel of the destination `where`, soon; see `Connection.call_soon`. Each is settled on the
        I/O thread."""
        self.connection.call_soon(partial(self._send, where, publishings), may_wait=may_wait)

    def settle(self, where: Hashable, outcome: Outcome) -> None:
        """Settle all that was sent to a destination, and keep its channel: a blocked broker may yet read it."""
        self.connection.call_soon(partial(self._settle, where, outcome))

    def give_up(self, where: Hashable, outcome: Outcome) -> None:
        """Settle all that was sent to a destination, and put a new channel in the place of its own.

        What it has not confirmed may still arrive. If the broker answers at all, it opens the new one: see `heard_at`.
        """
        self.connection.call_soon(partial(self._give_up, where, outcome))

    # --- on the I/O thread ---------------------------------------------------------------------------------

    def open_more(self) -> None:
        """Send what waits for a channel, in turn: by channels that are open, and by more, as many as there may be."""
        while self._without:
            where, waiting = next(iter(self._without.items()))
            if where in self._channels:
                del self._without[where]
                self._send_by_channel(where, waiting)
            elif not self._has_room():
                break
            else:
                channel = self._channels[where] = _Channel(self, where, waiting)
                if not channel.open():
                    del self._channels[where]
                    # The address or the broker allows no more; those that are being closed still count there.
                    self._most = max(1, len(self._channels) + len(self._closing))
                    break
                del self._without[where]

    def is_ready(self, channel: _Channel) -> None:
        """Send what waited for the channel."""
        self._heard_at = channel.heard_at
        waiting, channel.waiting = channel.waiting, []
        if self._channels.get(channel.where) is channel:
            channel.send(waiting)
        else:
            channel.close()  # given up meanwhile

    def is_closed(self, channel: _Channel) -> None:
        """Forget the channel."""
        self._closing.discard(channel)
        if self._channels.get(channel.where) is channel:
            del self._channels[channel.where]
        _settle(channel.waiting, _NOT_SENT)
        channel.waiting = []
        self.open_more()

    def _send(self, where: Hashable, publishings: Sequence[InFlight]) -> None:
        if not self.connection.is_open:
            _settle(publishings, Outcome(Status.UNKNOWN, self.connection.last_error or "no connection to the broker"))
            return
        if self._without or where not in self._channels:
            # In turn: while busy destinations sent more and more, no channel would ever become idle.
            self._without.setdefault(where, []).extend(publishings)
            self.open_more()
        else:
            self._send_by_channel(where, publishings)

    def _send_by_channel(self, where: Hashable, publishings: Sequence[InFlight]) -> None:
        channel = self._channels[where] = self._channels.pop(where)
        if channel.ready:
            channel.send(publishings)
        else:
            channel.waiting.extend(publishings)

    def _has_room(self) -> bool:
        if len(self._channels) < self._most:
            return True
        idle = next((each for each in self._channels.values() if each.is_idle), None)
        if idle is not None:
            self._close(idle)
        return idle is not None

    def _close(self, channel: _Channel) -> None:
        del self._channels[channel.where]
        self._heard_at = max(self._heard_at, channel.heard_at)
        self._closing.add(channel)
        channel.close()
        if len(self._closing) > MOST_CLOSING:
            self.connection.reset(f"{MOST_CLOSING} channels do not end")

    def _settle(self, where: Hashable, outcome: Outcome) -> None:
        _settle(self._without.pop(where, []), outcome)
        if channel := self._channels.get(where):
            for each in list(channel.unconfirmed.values()):
                each.settle(outcome)
            _settle(channel.waiting, outcome)
            channel.waiting = []

    def _give_up(self, where: Hashable, outcome: Outcome) -> None:
        self._settle(where, outcome)
        if channel := self._channels.get(where):
            self._close(channel)
        self._without[where] = []
        self.open_more()

    def _opened(self) -> None:
        self._most = self._expected

    def _lost(self, reason: str) -> None:
        if isinstance(self.connection.error, LimitReached):
            self._expected = max(1, len(self._channels) // 2)  # a user may be allowed fewer
        outcome = Outcome(Status.UNKNOWN, reason)
        channels, self._channels = list(self._channels.values()), {}
        without, self._without = list(self._without.values()), {}
        self._closing.clear()
        for channel in channels:
            channel.settle_all(outcome)
            _settle(channel.waiting, outcome)
        for each in without:
            _settle(each, outcome)


_NOT_SENT = Outcome(Status.UNKNOWN, "its channel was closed before it was sent")


def _settle(publishings: Sequence[InFlight], outcome: Outcome) -> None:
    for each in publishings:
        each.settle(outcome)

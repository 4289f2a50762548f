"""Publisher: messages out, pipelined, and for each the broker's word on it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Self

import pika
from django.utils.asyncio import async_unsafe
from pika import spec
from pika.channel import Channel

from messaging.broker.calls import CALL_TIMEOUT
from messaging.broker.connection import Connection
from messaging.broker.errors import describe, refused_or_lost
from messaging.broker.properties import check_size, to_pika
from messaging.exceptions import BrokerSilent, OperationRefused
from messaging.logs import get_logger
from messaging.message import OUTBOX_ID_HEADER, Message

log = get_logger(__name__)


class Status(Enum):
    """What became of one publish."""

    #: Every queue it was routed to has it.
    CONFIRMED = "confirmed"
    #: The broker has read it. It was not asked to confirm, so nobody knows whether a queue took it.
    SENT = "sent"
    #: No queue is bound for it; the broker gave it back.
    RETURNED = "returned"
    #: A queue would not take it (full, or failing).
    NACKED = "nacked"
    #: It cannot be put into AMQP frames.
    UNSENDABLE = "unsendable"
    #: The broker closed the channel over this message or over another of its batch.
    REFUSED = "refused"
    #: No word came: connection lost or deadline passed. It may have arrived.
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one publish, and why."""

    status: Status
    reason: str = ""
    #: Why the broker closed the channel, if `status` is REFUSED.
    refusal: OperationRefused | None = None
    #: No confirm came in time, although the connection was open.
    late: bool = False


@dataclass(frozen=True, slots=True)
class Publishing:
    """A message and where to send it. `key` is unique in its batch; a returned message is told by it.

    With an empty key it is told by its looks: of messages that are equal, any may stand for the other. One that is not
    `mandatory` may reach nobody, and is confirmed all the same.
    """

    key: str
    exchange: str
    routing_key: str
    message: Message
    mandatory: bool = True


class _Batch:
    """Publishes in flight: one slot for each, and the news that all have their outcome."""

    def __init__(self, publishings: Sequence[Publishing]) -> None:
        self.publishings = publishings
        self.outcomes: list[Outcome | None] = [None] * len(publishings)
        self.open = len(publishings)
        self.done = threading.Event()

    def settle(self, index: int, outcome: Outcome) -> None:
        """Give one publish its outcome; the first word counts."""
        if self.outcomes[index] is None:
            self.outcomes[index] = outcome
            self.open -= 1
            if not self.open:
                self.done.set()

    def settle_rest(self, outcome: Outcome) -> None:
        for index in range(len(self.outcomes)):
            self.settle(index, outcome)


class Publisher:
    """Publishes with confirms, on a connection of its own.

    `on_change` is called, from the I/O thread, whenever `ready` may have changed. Without `confirms` the word on a
    message is that the broker has read it (`Status.SENT`) or returned it.
    """

    def __init__(self, role: str, *, on_change: Callable[[], None] | None = None, confirms: bool = True) -> None:
        self._on_change = on_change
        self._confirms = confirms
        self._reached = threading.Event()
        self.connection = Connection(role, on_open=self._open_channel, on_lost=self._lost, on_change=on_change)
        self._channel: Channel | None = None
        self._next_tag = 1
        #: delivery tag → its batch and place; in order of tags, as dicts keep it.
        self._unconfirmed: dict[int, tuple[_Batch, int]] = {}
        self._by_key: dict[str, tuple[_Batch, int]] = {}

    def start(self) -> Self:
        """Connect in the background. Returns at once."""
        self.connection.start()
        return self

    def stop(self) -> None:
        """Close the connection, within a bounded time."""
        self.connection.stop()

    def reach(self, given_up: Callable[[], bool] = lambda: False) -> bool:
        """Wait until it can publish for the first time. Returns and raises as `Connection.reach`."""
        if not self.connection.reach(given_up):
            return False
        if not self._reached.wait(CALL_TIMEOUT):
            raise BrokerSilent(self.connection.last_error or "the broker did not open a channel in time")
        return True

    @property
    def ready(self) -> bool:
        """Whether a publish would be sent now: connected, channel in confirm mode, broker not blocked."""
        return self._channel is not None and self.connection.usable

    @async_unsafe("This waits for RabbitMQ's confirms. In a coroutine write `await sync_to_async(function)(…)`.")
    def publish(self, publishings: Sequence[Publishing], timeout: float) -> list[Outcome]:
        """Send all, wait up to `timeout` seconds for the broker's word on all, return an outcome for each.

        Never raises for what the broker or the network does: that is in the outcomes. After a deadline the
        connection is given up as dead, unless the broker has said that it is only blocked: it then reads what was
        sent once its alarm is over, and whoever publishes again on fresh connections meanwhile multiplies it.
        """
        batch = _Batch(publishings)
        if not publishings:
            return []
        self.connection.call_soon(partial(self._send, batch))
        done = batch.done.wait(timeout)
        if any(outcome and outcome.status in {Status.CONFIRMED, Status.SENT} for outcome in list(batch.outcomes)):
            self.connection.succeeded()
        if not done:
            blocked = self.connection.blocked
            reason = f"no confirm within {timeout:g} s" + (
                ": a memory or disk alarm blocks the broker" if blocked else ""
            )
            # Before the connection is given up, by which the I/O thread settles the rest as lost: they are late.
            outcomes = [outcome or Outcome(Status.UNKNOWN, reason, late=True) for outcome in list(batch.outcomes)]
            if not blocked:
                # At once, and not only when the connection has been given up: nothing more is sent by it.
                self._channel = None
                self.connection.reset(reason)
            return outcomes
        return [outcome for outcome in batch.outcomes if outcome is not None]

    # --- on the I/O thread ---------------------------------------------------------------------------------

    def _open_channel(self, connection: pika.SelectConnection) -> None:
        self.connection.open_channel(partial(self._channel_opened, connection))

    def _channel_opened(self, connection: pika.SelectConnection, channel: Channel) -> None:
        channel.add_on_close_callback(partial(self._channel_closed, connection))
        channel.add_on_return_callback(self._returned)
        if self._confirms:
            channel.confirm_delivery(self._confirmed, callback=lambda _: self._channel_ready(channel))
        else:
            self._channel_ready(channel)

    def _channel_ready(self, channel: Channel) -> None:
        self._channel = channel
        self._next_tag = 1
        self._reached.set()
        self._changed()

    def _send(self, batch: _Batch) -> None:
        channel = self._channel
        if channel is None or not channel.is_open:
            batch.settle_rest(Outcome(Status.UNKNOWN, self.connection.last_error or "no channel to the broker"))
            return
        for index, publishing in enumerate(batch.publishings):
            try:
                properties = to_pika(publishing.message)
                check_size(properties)
                channel.basic_publish(
                    publishing.exchange,
                    publishing.routing_key,
                    publishing.message.body,
                    properties,
                    mandatory=publishing.mandatory,
                )
            except (pika.exceptions.AMQPConnectionError, pika.exceptions.AMQPChannelError) as error:
                batch.settle(index, Outcome(Status.UNKNOWN, describe(error)))
            except Exception as error:
                # pika marshals the whole message before it sends a byte: nothing of it is on the wire.
                batch.settle(index, Outcome(Status.UNSENDABLE, describe(error)))
            else:
                place = (batch, index)
                self._unconfirmed[self._next_tag] = place
                if publishing.key:
                    self._by_key[publishing.key] = place
                self._next_tag += 1
        if not self._confirms and channel.is_open:
            # A channel does one thing after the other: once this is answered, all of the batch was read.
            channel.basic_qos(callback=partial(self._read, self._next_tag - 1))

    def _read(self, tag: int, _: pika.frame.Method) -> None:
        self._settle(tag, Outcome(Status.SENT), multiple=True)

    def _returned(self, _: Channel, method: spec.Basic.Return, properties: pika.BasicProperties, body: bytes) -> None:
        # Comes before the confirm of the same message, which then finds the place settled.
        key = (properties.headers or {}).get(OUTBOX_ID_HEADER, properties.message_id)
        place = self._by_key.get(str(key)) or self._place_by_looks(method, body)
        if place is None:
            log.error("amqp.returned_unknown", message_id=properties.message_id, routing_key=method.routing_key)
            return
        batch, index = place
        batch.settle(index, Outcome(Status.RETURNED, f"{method.reply_code} {method.reply_text}"))

    def _place_by_looks(self, method: spec.Basic.Return, body: bytes) -> tuple[_Batch, int] | None:
        looks = ("", method.exchange, method.routing_key, body)
        for batch, index in self._unconfirmed.values():
            each = batch.publishings[index]
            sent = (each.key, each.exchange, each.routing_key, each.message.body)
            if batch.outcomes[index] is None and looks == sent:
                return batch, index
        return None

    def _confirmed(self, frame: pika.frame.Method) -> None:
        method = frame.method
        nacked = isinstance(method, spec.Basic.Nack)
        outcome = Outcome(Status.NACKED, "the broker could not store it") if nacked else Outcome(Status.CONFIRMED)
        self._settle(method.delivery_tag, outcome, multiple=method.multiple)

    def _settle(self, up_to: int, outcome: Outcome, *, multiple: bool) -> None:
        for tag in self._tags(up_to, multiple=multiple):
            place = self._unconfirmed.pop(tag)
            batch, index = place
            key = batch.publishings[index].key
            if self._by_key.get(key) == place:  # else it was published again, and the key is the newer one's
                del self._by_key[key]
            batch.settle(index, outcome)

    def _tags(self, tag: int, *, multiple: bool) -> list[int]:
        if not multiple:
            return [tag] if tag in self._unconfirmed else []
        tags = []
        for earlier in self._unconfirmed:
            if earlier > tag:
                break
            tags.append(earlier)
        return tags

    def _channel_closed(self, connection: pika.SelectConnection, channel: Channel, error: BaseException) -> None:
        if self._channel is not None and channel is not self._channel:
            return
        self._channel = None
        reason = refused_or_lost(error)
        if isinstance(reason, OperationRefused):
            self._settle_in_flight(Outcome(Status.REFUSED, str(reason), reason))
        else:
            self._settle_in_flight(Outcome(Status.UNKNOWN, str(reason)))
        self._changed()
        if connection.is_open:
            self._open_channel(connection)

    def _lost(self, reason: str) -> None:
        self._channel = None
        self._settle_in_flight(Outcome(Status.UNKNOWN, reason))

    def _settle_in_flight(self, outcome: Outcome) -> None:
        in_flight = list(self._unconfirmed.values())
        self._unconfirmed.clear()
        self._by_key.clear()
        for batch, index in in_flight:
            batch.settle(index, outcome)

    def _changed(self) -> None:
        if self._on_change:
            self._on_change()

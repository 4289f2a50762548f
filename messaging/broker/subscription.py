"""Subscription: deliveries in, acknowledgements out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pika
from pika import spec
from pika.channel import Channel

from messaging.broker.connection import Connection
from messaging.broker.errors import refused_or_lost
from messaging.broker.properties import from_pika
from messaging.exceptions import OperationRefused
from messaging.logs import get_logger
from messaging.message import Message

log = get_logger(__name__)

#: Seconds after which a queue counts as silent that has not answered the wish to consume.
BEGIN_PATIENCE = 10.0


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message that arrived and is not acknowledged yet.

    `channel` is the number, counted over all connections of the subscription, of the channel it came by: a tag means
    something only there.
    """

    queue: str
    message: Message
    tag: int
    channel: int
    redelivered: bool
    exchange: str
    routing_key: str


class Subscription:
    """One queue's deliveries to this process, on a channel of its own.

    `on_arrival` is called on the I/O thread with each message; it must return at once. `on_ended` is called there
    with the reason when the subscription ends unasked: queue deleted, consumer cancelled by the broker, channel
    or connection lost. Whoever owns it then calls `open` again. With `auto_ack` the broker forgets each message as it
    sends it: nothing is acknowledged, and what this process loses is lost.
    """

    def __init__(
        self,
        connection: Connection,
        queue: str,
        *,
        prefetch: int,
        on_arrival: Callable[[Arrival], None],
        on_ended: Callable[[str], None],
        auto_ack: bool = False,
    ) -> None:
        self._connection = connection
        self.queue = queue
        self.prefetch = prefetch
        self._on_arrival = on_arrival
        self._on_ended = on_ended
        self._auto_ack = auto_ack
        self._channel: Channel | None = None
        self._consumer_tag = ""
        self._opened = 0
        #: What the broker said when it ended the subscription by closing its channel; None for any other end.
        self.refusal: OperationRefused | None = None
        #: What the consumer is declared with when it is opened next.
        self.arguments: dict[str, Any] = {}
        #: Consuming, or about to.
        self.active = False
        #: Consuming, by the broker's word.
        self.consuming = False
        #: When it ended: whether it had come to consuming.
        self.had_begun = False
        #: Since when the broker has been asked to send and has not agreed, by the monotonic clock; None: it has.
        self.asked_at: float | None = None
        #: Ends, one after the other, before it had come to consuming.
        self.failures = 0

    # --- from any thread -----------------------------------------------------------------------------------

    def open(self) -> None:
        """Start consuming. Returns at once."""
        self.active = True
        self.asked_at = time.monotonic()
        self.refusal = None
        self._connection.call_soon(self._open)

    def cancel(self) -> None:
        """Stop receiving; what has arrived can still be acknowledged. Returns at once."""
        self._connection.call_soon(self._cancel)

    def begins_late(self) -> bool:
        """Whether the broker was asked to send over BEGIN_PATIENCE ago, and has not agreed: the queue is silent."""
        return (
            self.asked_at is not None and time.monotonic() - self.asked_at > BEGIN_PATIENCE and self._connection.is_open
        )

    def is_current(self, arrival: Arrival) -> bool:
        """Whether `arrival` can still be acknowledged: once its channel is gone the broker delivers it again."""
        return self._channel is not None and arrival.channel == self._opened

    def ack(self, arrival: Arrival) -> None:
        """Acknowledge. Where the channel is gone nothing happens: the message comes again and finds the inbox row."""
        self._connection.call_soon(partial(self._settle, arrival, requeue=False))

    def requeue(self, arrival: Arrival) -> None:
        """Give an arrival back unhandled."""
        self._connection.call_soon(partial(self._settle, arrival, requeue=True))

    # --- on the I/O thread ---------------------------------------------------------------------------------

    def lost(self, reason: str) -> None:
        """Take note that the connection is gone. I/O thread only."""
        self._ended(reason)

    def _open(self) -> None:
        if not self._connection.open_channel(self._channel_opened):
            self._ended(self._connection.last_error or "there is no connection")

    def _channel_opened(self, channel: Channel) -> None:
        if not self.active:
            channel.close()  # cancelled meanwhile
            return
        self._channel = channel
        self._opened += 1
        channel.add_on_close_callback(self._channel_closed)
        channel.add_on_cancel_callback(partial(self._cancelled_by_broker, channel))
        channel.basic_qos(prefetch_count=self.prefetch)
        self._begin(channel)

    def _begin(self, channel: Channel) -> None:
        self._consumer_tag = channel.basic_consume(
            self.queue,
            partial(self._arrived, self._opened),
            auto_ack=self._auto_ack,
            arguments=self.arguments or None,
            callback=lambda _: self._consuming(),
        )

    def _consuming(self) -> None:
        self.consuming = self.active
        self.asked_at = None
        self.failures = 0

    def _arrived(
        self,
        opened: int,
        _: Channel,
        method: spec.Basic.Deliver,
        properties: pika.BasicProperties,
        body: bytes,
    ) -> None:
        self._on_arrival(self._arrival(opened, method, properties, body))

    def _arrival(
        self, opened: int, method: spec.Basic.Deliver, properties: pika.BasicProperties, body: bytes
    ) -> Arrival:
        return Arrival(
            queue=self.queue,
            message=from_pika(properties, body),
            tag=method.delivery_tag,
            channel=opened,
            redelivered=method.redelivered,
            exchange=method.exchange,
            routing_key=method.routing_key,
        )

    def _settle(self, arrival: Arrival, *, requeue: bool) -> None:
        channel = self._channel
        if channel is None or not channel.is_open or arrival.channel != self._opened:
            log.info("delivery.ack_lost", queue=self.queue, message_id=arrival.message.id)
        elif self._auto_ack:
            return
        elif requeue:
            channel.basic_nack(arrival.tag, requeue=True)
        else:
            channel.basic_ack(arrival.tag)

    def _cancel(self) -> None:
        was_active, self.active, self.consuming = self.active, False, False
        if was_active and self._channel is not None and self._channel.is_open:
            self._channel.basic_cancel(self._consumer_tag)

    def _cancelled_by_broker(self, channel: Channel, _: pika.frame.Method) -> None:
        # The queue is gone, or its leader; from RabbitMQ 4.3 on a message may also have been held for too long. The
        # channel still stands, but nothing will ever come by it.
        if channel.is_open:
            channel.close()
        self._ended("the broker cancelled the consumer: queue deleted or moved, or consumer_timeout passed")

    def _channel_closed(self, channel: Channel, error: BaseException) -> None:
        if channel is self._channel:
            reason = refused_or_lost(error)
            self.refusal = reason if isinstance(reason, OperationRefused) else None
            self._ended(str(reason))

    def _ended(self, reason: str) -> None:
        self._channel = None
        self.had_begun = self.consuming
        self.asked_at = None
        self.failures += not self.had_begun
        was_active, self.active, self.consuming = self.active, False, False
        if was_active:
            self._on_ended(reason)

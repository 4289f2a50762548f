"""Subscription: deliveries in, acknowledgements out; from a queue that exists, or from one of this process alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pika
from pika import spec
from pika.channel import Channel

from messaging.broker.acks import Acks
from messaging.broker.arrival import Arrival, arrival_of
from messaging.broker.connection import Connection
from messaging.exceptions import BrokerUnavailable, OperationRefused
from messaging.logs import get_logger
from messaging.routing import Binding

log = get_logger(__name__)

#: Seconds after which a queue that has not answered basic.consume counts as silent.
BEGIN_PATIENCE = 10.0
#: How a private queue is declared. Its type is given: a virtual host may have another default, which cannot be
#: exclusive.
PRIVATE_QUEUE: dict[str, Any] = {
    "queue": "",
    "exclusive": True,
    "auto_delete": True,
    "arguments": {"x-queue-type": "classic"},
}


class Subscription:
    """One queue's deliveries to this process, on a channel of its own.

    `source` is the name of a queue, or bindings. Bindings get a private queue: exclusive, named by the broker, deleted
    with its channel or connection. Opened again it is a new queue: what was published in between is missed. The queue
    name in the bindings is ignored.

    Up to `threads` arrivals are at work at once.

    `on_arrival` is called on the I/O thread with each message; it must return at once. `on_ended` is called there with
    the reason when the subscription ends unasked: queue deleted, consumer cancelled by the broker, channel or
    connection lost. The owner then calls `open` again.
    """

    def __init__(
        self,
        connection: Connection,
        source: str | Sequence[Binding],
        *,
        prefetch: int,
        threads: int = 1,
        on_arrival: Callable[[Arrival], None],
        on_ended: Callable[[str], None],
    ) -> None:
        self._connection = connection
        self._private = not isinstance(source, str)
        self._bindings: Sequence[Binding] = () if isinstance(source, str) else source
        #: The queue's name; of a private queue once it is declared.
        self.queue = source if isinstance(source, str) else ""
        self.prefetch = prefetch
        #: Of basic.consume: where to begin in a stream, for instance.
        self.arguments: dict[str, Any] = {}
        self._on_arrival = on_arrival
        self._on_ended = on_ended
        self._channel: Channel | None = None
        self._consumer_tag = ""
        self._opened = 0
        #: Acknowledgements never wait until RabbitMQ may send no more, or a thread has nothing to do.
        self._acks = Acks(connection, self._channel_of, enough=max(1, min(prefetch // 4, prefetch - threads)))
        #: Why the broker closed the channel, if the subscription ended so; None for any other end.
        self.refusal: OperationRefused | None = None
        #: Consuming, or about to.
        self.active = False
        #: Consuming: the broker has answered basic.consume.
        self.consuming = False
        #: Whether it was consuming when it ended.
        self.had_begun = False
        #: When it was opened, by the monotonic clock, while the broker has not answered; else None.
        self.asked_at: float | None = None
        #: Ends in a row before it was consuming.
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
        """Whether the broker has not answered basic.consume for over BEGIN_PATIENCE: the queue is silent."""
        return (
            self.asked_at is not None and time.monotonic() - self.asked_at > BEGIN_PATIENCE and self._connection.is_open
        )

    def is_current(self, arrival: Arrival) -> bool:
        """Whether `arrival` can still be acknowledged: once its channel is gone the broker redelivers it."""
        return self._channel is not None and arrival.channel == self._opened

    def ack(self, *arrivals: Arrival) -> None:
        """Acknowledge soon; see `Acks`. Does nothing if the channel is gone: the message is redelivered and finds the
        inbox row."""
        self._acks.add(arrivals)

    def requeue(self, arrival: Arrival) -> None:
        """Give an arrival back unhandled."""
        self._connection.call_soon(partial(self._requeue, arrival))

    def bind_again(self) -> None:
        """Bind a private queue again: its bindings are lost if an exchange was deleted and declared anew, and no other
        process may bind it. Returns at once."""
        if self._private:
            self._connection.call_soon(self._bind_again)

    # --- on the I/O thread ---------------------------------------------------------------------------------

    def lost(self, reason: str) -> None:
        """Note that the connection is gone. I/O thread only."""
        self._ended(reason)

    def _open(self) -> None:
        if not self._connection.open_channel(self._channel_opened, self._channel_closed):
            self._ended(self._connection.last_error or "there is no connection")

    def _channel_opened(self, channel: Channel) -> None:
        if not self.active:
            channel.close()  # cancelled meanwhile
            return
        self._channel = channel
        self._opened += 1
        self._acks.begin()
        channel.add_on_cancel_callback(partial(self._cancelled_by_broker, channel))
        channel.basic_qos(prefetch_count=self.prefetch)
        self._begin(channel)

    def _begin(self, channel: Channel) -> None:
        if self._private:
            self.queue = ""
            channel.queue_declare(**PRIVATE_QUEUE, callback=partial(self._private_declared, channel))
        else:
            self._consume(channel)

    def _private_declared(self, channel: Channel, answer: pika.frame.Method) -> None:
        if not self.active:
            channel.close()  # cancelled meanwhile
            return
        self.queue = answer.method.queue
        # A channel works in order: consuming begins once all are bound.
        self._bind(channel)
        self._consume(channel)

    def _bind_again(self) -> None:
        if self.consuming and self._channel is not None and self._channel.is_open:
            self._bind(self._channel)

    def _bind(self, channel: Channel) -> None:
        for binding in self._bindings:
            channel.queue_bind(self.queue, binding.exchange, binding.key, arguments=dict(binding.arguments))

    def _consume(self, channel: Channel) -> None:
        self._consumer_tag = channel.basic_consume(
            self.queue,
            partial(self._arrived, self._opened),
            callback=lambda _: self._consuming(),
            arguments=self.arguments or None,
        )

    def _consuming(self) -> None:
        self.consuming = self.active
        self.asked_at = None
        self.failures = 0

    def _arrived(
        self, opened: int, _: Channel, method: spec.Basic.Deliver, properties: pika.BasicProperties, body: bytes
    ) -> None:
        # One that an earlier channel delivers late has a tag of that channel. Here it would count as older than others,
        # and acknowledge those with it.
        if opened == self._opened:
            self._acks.arrived(method.delivery_tag)
        self._on_arrival(arrival_of(self.queue, opened, method, properties, body))

    def _requeue(self, arrival: Arrival) -> None:
        if channel := self._channel_of(arrival):
            self._acks.settled(arrival.tag)
            channel.basic_nack(arrival.tag, requeue=True)

    def _channel_of(self, arrival: Arrival) -> Channel | None:
        """Return the channel on which the broker still waits for an answer about this arrival, or None."""
        if self._channel is not None and self._channel.is_open and arrival.channel == self._opened:
            return self._channel
        log.info("delivery.ack_lost", queue=self.queue, message_id=arrival.message.id)
        return None

    def _cancel(self) -> None:
        was_active, self.active, self.consuming = self.active, False, False
        if was_active and self._channel is not None and self._channel.is_open:
            self._channel.basic_cancel(self._consumer_tag)

    def _cancelled_by_broker(self, channel: Channel, _: pika.frame.Method) -> None:
        # The queue is gone, or its leader; from RabbitMQ 4.3 on a message may also have been held for too long. The
        # channel is still open, but nothing will arrive on it.
        if channel.is_open:
            channel.close()
        self._ended("the broker cancelled the consumer: queue deleted or moved, or consumer_timeout passed")

    def _channel_closed(self, channel: Channel, error: OperationRefused | BrokerUnavailable) -> None:
        if channel is self._channel:
            self.refusal = error if isinstance(error, OperationRefused) else None
            self._ended(str(error))

    def _ended(self, reason: str) -> None:
        self._channel = None
        self.had_begun = self.consuming
        self.asked_at = None
        self.failures += not self.had_begun
        was_active, self.active, self.consuming = self.active, False, False
        if was_active:
            self._on_ended(reason)

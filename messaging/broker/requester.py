"""Requester: RPC requests out and replies in, on one channel with an exclusive reply queue."""

from __future__ import annotations

import uuid
from abc import abstractmethod
from functools import partial

import pika
from pika import spec
from pika.channel import Channel

from messaging.broker.arrival import arrival_of
from messaging.broker.connection import Connection
from messaging.broker.errors import describe
from messaging.broker.properties import to_pika
from messaging.broker.subscription import PRIVATE_QUEUE, Subscription
from messaging.exceptions import BrokerUnavailable, OperationRefused
from messaging.logs import get_logger
from messaging.message import Message

log = get_logger(__name__)


class Requester(Subscription):
    """A connection of its own, and a reply queue that lives as long as its channel.

    A subclass is told, on the I/O thread, what happens.
    """

    def __init__(self, reply_queue_prefix: str) -> None:
        self.connection = Connection("rpc client", on_change=self._connection_changed)
        super().__init__(
            self.connection,
            (),
            prefetch=0,
            on_arrival=lambda arrival: self._replied(arrival.message),
            on_ended=self._report_end,
        )
        self._reply_queue_prefix = reply_queue_prefix

    @abstractmethod
    def _may_be_ready(self) -> None:
        """Note that `ready` may have become true."""

    @abstractmethod
    def _replied(self, reply: Message) -> None:
        """Take a message from the reply queue; any client may have sent it."""

    @abstractmethod
    def _unserved(self, correlation_id: str) -> None:
        """Note that no queue took the request with this correlation id."""

    @abstractmethod
    def _broken(self, error: BrokerUnavailable | OperationRefused) -> None:
        """Note that replies to sent requests can no longer arrive, or that an attempt to connect failed."""

    @property
    def ready(self) -> bool:
        """Whether a request would be sent now: connected, reply queue consumed, broker not blocked."""
        # A closing channel is not open, and would drop what counts as sent.
        return self.consuming and self._channel is not None and self._channel.is_open and self.connection.usable

    # --- on the I/O thread ---------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make `ready` true as soon as the broker allows; else `_broken` is called."""
        if not self.connection.is_open:
            self.connection.hurry()
        elif not self.active:
            self.open()

    def send(self, queue: str, request: Message) -> None:
        """Publish `request`; the broker returns it if `queue` does not exist.

        Raises ValueError if it does not fit into AMQP frames; the connection stays open.
        """
        assert self._channel is not None
        properties = to_pika(request)
        properties.reply_to = self.queue
        try:
            self._channel.basic_publish("", queue, request.body, properties, mandatory=True)
        except pika.exceptions.AMQPConnectionError:
            raise
        except Exception as error:
            # pika marshals the whole message before it sends a byte.
            raise ValueError(describe(error)) from error

    def renew(self) -> None:
        """Give up the reply queue, and what may still arrive in it, and make another."""
        if self._channel is not None and self._channel.is_open:
            retired, self._channel = self._channel, None
            self.active = self.consuming = False
            retired.close()
            self.prepare()

    def _connection_changed(self) -> None:
        if self.connection.is_open:
            self.prepare()
            self._may_be_ready()
        else:
            self.active = False  # the connection reports its own end
            self.lost(self.connection.last_error)
            self._broken(self.connection.unavailable())

    def _begin(self, channel: Channel) -> None:
        channel.add_on_return_callback(self._returned)
        # A new name each time: the broker may hold the old queue for a connection that it does not know is dead.
        reply_queue = {**PRIVATE_QUEUE, "queue": f"{self._reply_queue_prefix}{uuid.uuid4()}"}
        channel.queue_declare(**reply_queue, callback=partial(self._private_declared, channel))

    def _consume(self, channel: Channel) -> None:
        consumed = partial(self._arrived, self._opened)
        channel.basic_consume(self.queue, consumed, auto_ack=True, exclusive=True, callback=lambda _: self._consuming())

    def _consuming(self) -> None:
        super()._consuming()
        self._may_be_ready()

    def _arrived(
        self, opened: int, channel: Channel, method: spec.Basic.Deliver, properties: pika.BasicProperties, body: bytes
    ) -> None:
        if channel is self._channel:  # else the reply queue was given up
            # Nothing is kept of it: replies are acknowledged as they arrive.
            self._on_arrival(arrival_of(self.queue, opened, method, properties, body))

    def _returned(self, _: Channel, __: spec.Basic.Return, properties: pika.BasicProperties, ___: bytes) -> None:
        self._unserved(str(properties.correlation_id))

    def _channel_closed(self, channel: Channel, error: OperationRefused | BrokerUnavailable) -> None:
        if channel.connection.is_open:
            super()._channel_closed(channel, error)

    def _report_end(self, reason: str) -> None:
        log.warning("rpc.reply_channel_closed", reason=reason)
        self._broken(self.refusal or BrokerUnavailable(reason))

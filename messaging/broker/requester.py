"""Requester: RPC requests out and replies in, on one channel with an exclusive reply queue."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pika
from pika import spec
from pika.channel import Channel

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

    The callbacks run on the I/O thread: `on_change` whenever `ready` may have become true, `on_reply` with each message
    that arrives, whoever sent it, `on_returned` with the correlation id of a request that no queue took, `on_broken`
    with the reason when replies to sent requests can no longer arrive, or an attempt to connect failed.
    """

    def __init__(
        self,
        reply_queue_prefix: str,
        *,
        on_change: Callable[[], None],
        on_reply: Callable[[Message], None],
        on_returned: Callable[[str], None],
        on_broken: Callable[[Exception], None],
    ) -> None:
        self.connection = Connection("rpc client", on_change=self._connection_changed)
        super().__init__(
            self.connection,
            (),
            prefetch=0,
            on_arrival=lambda arrival: on_reply(arrival.message),
            on_ended=self._report_end,
        )
        self._reply_queue_prefix = reply_queue_prefix
        self._on_change = on_change
        self._on_returned = on_returned
        self._on_broken = on_broken

    def start(self) -> None:
        """Connect in the background. Returns at once."""
        self.connection.start()

    def stop(self) -> None:
        """Close the connection, within a bounded time."""
        self.connection.stop()

    @property
    def ready(self) -> bool:
        """Whether a request would be sent now: connected, reply queue consumed, broker not blocked."""
        # A closing channel is not open, and would drop what counts as sent.
        return self.consuming and self._channel is not None and self._channel.is_open and self.connection.usable

    # --- on the I/O thread ---------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make `ready` true as soon as the broker allows; else `on_broken` is called."""
        if not self.connection.is_open:
            self.connection.hurry()
        elif not self.active:
            self.open()

    def send(self, queue: str, request: Message) -> None:
        """Publish `request`; the broker returns it if `queue` does not exist.

        Raises ValueError if it does not fit into AMQP frames; the connection stays open.
        """
        assert self._channel is not None
        properties = to_pika(replace(request, reply_to=self.queue))
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
            self._on_change()
        else:
            self.active = False  # the connection reports its own end
            self.lost(self.connection.last_error)
            self._on_broken(self.connection.unavailable())

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
        self._on_change()

    def _arrived(
        self, opened: int, channel: Channel, method: spec.Basic.Deliver, properties: pika.BasicProperties, body: bytes
    ) -> None:
        if channel is self._channel:  # else the reply queue was given up
            super()._arrived(opened, channel, method, properties, body)

    def _returned(self, _: Channel, __: spec.Basic.Return, properties: pika.BasicProperties, ___: bytes) -> None:
        self._on_returned(str(properties.correlation_id))

    def _channel_closed(self, channel: Channel, error: OperationRefused | BrokerUnavailable) -> None:
        if channel.connection.is_open:
            super()._channel_closed(channel, error)

    def _report_end(self, reason: str) -> None:
        log.warning("rpc.reply_channel_closed", reason=reason)
        self._on_broken(self.refusal or BrokerUnavailable(reason))

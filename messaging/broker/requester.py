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
from messaging.broker.errors import describe, refused_or_lost
from messaging.broker.properties import from_pika, to_pika
from messaging.logs import get_logger
from messaging.message import Message

log = get_logger(__name__)


class Requester:
    """A connection of its own, and a reply queue that lives as long as its channel.

    `on_change` is called on the I/O thread whenever `ready` may have become true; `on_reply` there with each message
    that arrives, wanted or not; `on_returned` with the correlation id of a request that no queue took; `on_broken`
    with the reason when replies to what was sent can no longer come, or an attempt to connect failed.
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
        self._reply_queue_prefix = reply_queue_prefix
        self._on_change = on_change
        self._on_reply = on_reply
        self._on_returned = on_returned
        self._on_broken = on_broken
        self.connection = Connection("rpc client", on_change=self._connection_changed)
        self._channel: Channel | None = None
        #: Given up: nothing that comes by it counts.
        self._retired: Channel | None = None
        self._opening = False
        self._reply_queue = ""

    def start(self) -> None:
        """Connect in the background. Returns at once."""
        self.connection.start()

    def stop(self) -> None:
        """Close the connection, within a bounded time."""
        self.connection.stop()

    @property
    def ready(self) -> bool:
        """Whether a request would be sent now: connected, reply queue consumed, broker not blocked."""
        # One that is being closed is not open any more, and does not take what would still be called sent.
        return self._channel is not None and self._channel.is_open and self.connection.usable

    # --- on the I/O thread ---------------------------------------------------------------------------------

    def prepare(self) -> None:
        """See to it that `ready` becomes true, or `on_broken` is called, as soon as the broker allows."""
        if not self.connection.is_open:
            self.connection.hurry()
        elif self._channel is None and not self._opening:
            self._opening = self.connection.open_channel(self._channel_opened)

    def send(self, queue: str, request: Message) -> None:
        """Publish `request` so that it comes back where `queue` does not exist.

        Raises ValueError where it cannot be put into AMQP frames; the connection stands.
        """
        assert self._channel is not None
        properties = to_pika(replace(request, reply_to=self._reply_queue))
        try:
            self._channel.basic_publish("", queue, request.body, properties, mandatory=True)
        except pika.exceptions.AMQPConnectionError:
            raise
        except Exception as error:
            # pika marshals the whole message before it sends a byte.
            raise ValueError(describe(error)) from error

    def renew(self) -> None:
        """Give the reply queue up, with all that may still come by it, and make another."""
        if self._channel is not None and self._channel.is_open:
            self._retired, self._channel = self._channel, None
            self._retired.close()
            self.prepare()

    def _connection_changed(self) -> None:
        if self.connection.is_open:
            self.prepare()
            self._on_change()
        else:
            self._channel = None
            self._opening = False
            self._on_broken(self.connection.unavailable())

    def _channel_opened(self, channel: Channel) -> None:
        channel.add_on_close_callback(self._channel_closed)
        channel.add_on_cancel_callback(partial(self._cancelled, channel))
        channel.add_on_return_callback(self._returned)
        # A new name each time: the broker may hold the old queue for a connection that it does not know is dead.
        name = f"{self._reply_queue_prefix}{uuid.uuid4()}"
        channel.queue_declare(name, exclusive=True, auto_delete=True, callback=partial(self._consume, channel))

    def _consume(self, channel: Channel, answer: pika.frame.Method) -> None:
        self._reply_queue = answer.method.queue
        channel.basic_consume(
            self._reply_queue, self._arrived, auto_ack=True, exclusive=True, callback=lambda _: self._consuming(channel)
        )

    def _consuming(self, channel: Channel) -> None:
        self._channel = channel
        self._opening = False
        self._on_change()

    def _arrived(self, channel: Channel, _: spec.Basic.Deliver, properties: pika.BasicProperties, body: bytes) -> None:
        if channel is not self._retired:
            self._on_reply(from_pika(properties, body))

    def _returned(self, _: Channel, __: spec.Basic.Return, properties: pika.BasicProperties, ___: bytes) -> None:
        self._on_returned(str(properties.correlation_id))

    def _cancelled(self, channel: Channel, _: pika.frame.Method) -> None:
        # Somebody deleted the reply queue: the channel still stands, but no reply can come by it.
        if channel.is_open:
            channel.close()

    def _channel_closed(self, channel: Channel, error: BaseException) -> None:
        if channel is self._retired or not channel.connection.is_open:
            return  # asked for; or the connection went with it, and says so itself
        self._channel = None
        self._opening = False
        reason = refused_or_lost(error)
        log.warning("rpc.reply_channel_closed", reason=str(reason))
        self._on_broken(reason)

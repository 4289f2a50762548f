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
from messaging.broker.properties import from_pika, to_pika
from messaging.exceptions import BrokerUnavailable, OperationRefused
from messaging.logs import get_logger
from messaging.message import Message

log = get_logger(__name__)


class Requester:
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
        self._reply_queue_prefix = reply_queue_prefix
        self._on_change = on_change
        self._on_reply = on_reply
        self._on_returned = on_returned
        self._on_broken = on_broken
        self.connection = Connection("rpc client", on_change=self._connection_changed)
        self._channel: Channel | None = None
        #: Given up: what arrives on it is ignored.
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
        # A closing channel is not open, and would drop what counts as sent.
        return self._channel is not None and self._channel.is_open and self.connection.usable

    # --- on the I/O thread ---------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make `ready` true as soon as the broker allows; else `on_broken` is called."""
        if not self.connection.is_open:
            self.connection.hurry()
        elif self._channel is None and not self._opening:
            self._opening = self.connection.open_channel(self._channel_opened, self._channel_closed)

    def send(self, queue: str, request: Message) -> None:
        """Publish `request`; the broker returns it if `queue` does not exist.

        Raises ValueError if it does not fit into AMQP frames; the connection stays open.
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
        """Give up the reply queue, and what may still arrive in it, and make another."""
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
        # The reply queue was deleted: the channel is still open, but no reply can arrive on it.
        if channel.is_open:
            channel.close()

    def _channel_closed(self, channel: Channel, error: OperationRefused | BrokerUnavailable) -> None:
        if channel is self._retired or not channel.connection.is_open:
            return  # asked for; or the connection went with it, and reports that itself
        self._channel = None
        self._opening = False
        log.warning("rpc.reply_channel_closed", reason=str(error))
        self._on_broken(error)

"""Request queue: RPC requests in, replies out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pika
import structlog
from pika import spec
from pika.channel import Channel

from messaging.broker.connection import Connection
from messaging.broker.properties import to_pika
from messaging.broker.refusals import describe
from messaging.broker.subscription import Arrival, Subscription
from messaging.message import Message

log = structlog.get_logger(__name__)

#: Direct reply-to: such a queue does not exist, and every reply to one comes back as unroutable, delivered or not
#: (https://www.rabbitmq.com/docs/direct-reply-to).
DIRECT_REPLY_PREFIX = "amq.rabbitmq.reply-to."


@dataclass(frozen=True, slots=True)
class Request:
    """A request that arrived and is not acknowledged yet."""

    arrival: Arrival
    #: As it came: any client's may be anything, and it wants the same back.
    correlation_id: Any
    #: When it arrived here, by the monotonic clock.
    arrived_at: float


class RequestQueue(Subscription):
    """The requests of one procedure, on a channel of its own, which also carries the replies.

    The queue is declared here, by whoever serves it: classic, durable, and deleted with its last server, so that a
    request which nobody serves comes back to its caller at once.
    """

    def __init__(
        self,
        connection: Connection,
        queue: str,
        *,
        prefetch: int,
        on_request: Callable[[Request], None],
    ) -> None:
        super().__init__(connection, queue, prefetch=prefetch, on_arrival=lambda _: None, on_ended=self._say_why)
        self._on_request = on_request
        self._problem = ""
        #: Consuming, by the broker's word.
        self.consuming = False

    # --- from any thread -----------------------------------------------------------------------------------

    def finish(self, request: Request, message: Message | None = None, *, queue: str = "") -> None:
        """Acknowledge `request`; before that publish `message`, if there is one, to `queue`.

        Both go the same way in this order: a request is never acknowledged and its reply lost between them. Where
        the channel is gone neither happens, and the request comes again.
        """
        self._connection.call_soon(partial(self._finish, request, message, queue))

    # --- on the I/O thread ---------------------------------------------------------------------------------

    def _begin(self, channel: Channel) -> None:
        channel.add_on_return_callback(self._returned)
        channel.queue_declare(
            self.queue,
            durable=True,
            auto_delete=True,
            arguments={"x-queue-type": "classic"},
            callback=lambda _: self._consume(channel),
        )

    def _consume(self, channel: Channel) -> None:
        if not self.active:
            channel.close()
            return
        self._consumer_tag = channel.basic_consume(
            self.queue, partial(self._arrived, self._opened), auto_ack=False, callback=lambda _: self._consuming()
        )

    def _consuming(self) -> None:
        self.consuming = True
        self._problem = ""
        log.info("rpc.serving", queue=self.queue)

    def _arrived(
        self,
        opened: int,
        _: Channel,
        method: spec.Basic.Deliver,
        properties: pika.BasicProperties,
        body: bytes,
    ) -> None:
        arrival = self._arrival(opened, method, properties, body)
        self._on_request(Request(arrival, properties.correlation_id, time.monotonic()))

    def _finish(self, request: Request, message: Message | None, queue: str) -> None:
        if self._channel is None or not self._channel.is_open or not self.is_current(request.arrival):
            log.info("rpc.reply_lost", queue=self.queue, correlation_id=request.arrival.message.correlation_id)
            return
        if message is not None:
            properties = to_pika(message)
            properties.correlation_id = request.correlation_id
            try:
                self._channel.basic_publish("", queue, message.body, properties, mandatory=True)
            except pika.exceptions.AMQPConnectionError:
                return
            except Exception as error:
                # pika marshals the whole message before it sends a byte. Nobody can be answered: no use in a repeat.
                log.error("rpc.reply_unsendable", queue=queue, reason=describe(error))
        self._channel.basic_ack(request.arrival.tag)

    def _returned(self, _: Channel, method: spec.Basic.Return, properties: pika.BasicProperties, __: bytes) -> None:
        if not method.routing_key.startswith(DIRECT_REPLY_PREFIX):
            log.info("rpc.undelivered", queue=method.routing_key, correlation_id=str(properties.correlation_id))

    def _channel_closed(self, channel: Channel, error: BaseException) -> None:
        if channel.connection.is_open:  # else the connection itself says so, once for all its queues
            super()._channel_closed(channel, error)

    def lost(self, reason: str) -> None:
        """Take note that the connection is gone. I/O thread only."""
        self._problem = reason
        super().lost(reason)

    def _ended(self, reason: str) -> None:
        self.consuming = False
        super()._ended(reason)

    def _say_why(self, reason: str) -> None:
        # It is opened again every second: only what is new is said.
        if reason != self._problem:
            self._problem = reason
            log.warning("rpc.queue_lost", queue=self.queue, reason=reason)

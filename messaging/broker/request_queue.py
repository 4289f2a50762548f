"""Request queue: RPC requests in, replies out.

RabbitMQ redelivers the request of a lost server to the next one, for ever, and a classic queue counts nothing: a
request that kills its server would kill them all. So a redelivered request is published to the end of its queue, with a
header that counts its returns; the server decides how many are enough.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pika
from pika import spec
from pika.channel import Channel

from messaging.broker.arrival import Arrival, arrival_of
from messaging.broker.connection import Connection
from messaging.broker.errors import describe, difference
from messaging.broker.properties import fitted, short_text
from messaging.broker.subscription import Subscription
from messaging.exceptions import BrokerUnavailable, NotFound, OperationRefused, PreconditionFailed, QueueSilent
from messaging.logs import Throttle, get_logger
from messaging.message import Message

log = get_logger(__name__)

#: Direct reply-to: no such queue exists, and the broker returns every reply to one as unroutable, delivered or not
#: (https://www.rabbitmq.com/docs/direct-reply-to).
DIRECT_REPLY_PREFIX = "amq.rabbitmq.reply-to."
#: How often a server was lost while it held the request.
RETURNS_HEADER = "x-returns"
#: Arguments of a request queue. RabbitMQ deletes it with its last server, and after these milliseconds without one: its
#: servers may not come back after a restart of the broker.
ARGUMENTS = {"x-queue-type": "classic", "x-expires": 10_000}
#: Arguments of a plain request queue that is missing: the RabbitMQ tutorials declare rpc_queue so
#: (https://github.com/rabbitmq/rabbitmq-tutorials, python/rpc_server.py).
PLAIN_ARGUMENTS = {"x-queue-type": "quorum"}
#: Headers by which a broker routes copies to further queues (https://www.rabbitmq.com/docs/sender-selected).
ROUTING_HEADERS = {"CC", "BCC"}


@dataclass(frozen=True, slots=True)
class Request:
    """A request that arrived and is not acknowledged yet."""

    arrival: Arrival
    #: As it arrived: a client may send any value, and expects the same back.
    correlation_id: Any
    #: When it arrived here, by the monotonic clock.
    arrived_at: float
    #: As it arrived: the name of a queue may be any bytes.
    reply_to: Any = None

    @property
    def returns(self) -> int:
        """How often a server was lost while it held the request; 0 if a client wrote something else."""
        value = self.arrival.message.headers.get(RETURNS_HEADER, 0)
        return max(0, value) if isinstance(value, int) else 0


class RequestQueue(Subscription):
    """The requests of one procedure, on a channel of its own, which also carries the replies.

    Call `declare` before `open`. The queue is classic, durable, and deleted with its last server, so that the broker
    returns a request without a server at once. An existing queue with other properties is used unchanged, with a
    warning. An existing `plain` queue is used whatever it is, so that servers of every tutorial can serve it beside us;
    a missing one is declared as the tutorials do, durable and quorum, and stays when its servers leave.
    """

    def __init__(
        self,
        connection: Connection,
        queue: str,
        *,
        prefetch: int,
        on_request: Callable[[Request], None],
        plain: bool = False,
    ) -> None:
        super().__init__(connection, queue, prefetch=prefetch, on_arrival=lambda _: None, on_ended=self._log_end)
        self._on_request = on_request
        self._plain = plain
        #: Why it is not served, since it last was.
        self._throttle = Throttle()
        #: In what the queue differs from its declaration, once that was logged.
        self._difference = ""

    # --- from any thread -----------------------------------------------------------------------------------

    def declare(self) -> bool:
        """Declare the queue, unless it exists; return whether it can be consumed. Raises BrokerUnavailable."""
        try:
            if not (self._plain and self._exists()):
                arguments = PLAIN_ARGUMENTS if self._plain else ARGUMENTS
                self._connection.call(
                    "queue_declare", queue=self.queue, durable=True, auto_delete=not self._plain, arguments=arguments
                )
            self._difference = ""
        except QueueSilent:
            pass  # once it has not answered the request to consume either, that is logged
        except PreconditionFailed as refusal:
            self._warn(refusal)
        except OperationRefused as refusal:
            self.refusal = refusal
            self._log_end(str(refusal))
            return False
        return True

    def finish(self, request: Request, messages: Mapping[str, Message] | None = None) -> None:
        """Acknowledge `request`; before that publish `messages`, each to the queue it is listed under.

        All go by one channel in this order, so no request is acknowledged without its reply. Does nothing if the
        channel is gone: the request is redelivered.
        """
        self._connection.call_soon(partial(self._finish, request, messages or {}))

    def give_back(self, request: Request) -> None:
        """Publish `request` to the end of its queue, unhandled, for another server."""
        self._connection.call_soon(partial(self._put_back, request, request.returns))

    # --- on the I/O thread ---------------------------------------------------------------------------------

    def _begin(self, channel: Channel) -> None:
        channel.add_on_return_callback(self._returned)
        super()._begin(channel)

    def _consuming(self) -> None:
        super()._consuming()
        self._throttle.reset()
        log.info("rpc.serving", queue=self.queue)

    def _arrived(
        self, opened: int, _: Channel, method: spec.Basic.Deliver, properties: pika.BasicProperties, body: bytes
    ) -> None:
        arrival = arrival_of(self.queue, opened, method, properties, body)
        request = Request(arrival, properties.correlation_id, time.monotonic(), properties.reply_to)
        if arrival.redelivered:
            log.warning(
                "rpc.redelivered",
                queue=self.queue,
                correlation_id=arrival.message.correlation_id,
                before=request.returns,
            )
            self._put_back(request, request.returns + 1)
        else:
            self._on_request(request)

    def _put_back(self, request: Request, returns: int) -> None:
        message = request.arrival.message
        headers = {name: value for name, value in message.headers.items() if name not in ROUTING_HEADERS}
        self._finish(request, {self.queue: replace(message, headers={**headers, RETURNS_HEADER: returns})})

    def _finish(self, request: Request, messages: Mapping[str, Message]) -> None:
        channel = self._channel
        if channel is None or not channel.is_open or not self.is_current(request.arrival):
            log.info("rpc.reply_lost", queue=self.queue, correlation_id=request.arrival.message.correlation_id)
            return
        # Over a direct reply to a channel of another cluster, or to a forged one, RabbitMQ 3.10 closes the whole
        # connection (541). With the request acknowledged first that happens once.
        direct = [queue for queue in messages if queue.startswith(DIRECT_REPLY_PREFIX)]
        try:
            for queue in messages:
                if queue not in direct:
                    self._send(channel, request, queue, messages[queue])
            channel.basic_ack(request.arrival.tag)
            for queue in direct:
                self._send(channel, request, queue, messages[queue])
        except pika.exceptions.AMQPConnectionError:
            return  # the connection reports that itself

    def _send(self, channel: Channel, request: Request, queue: str, message: Message) -> None:
        try:
            properties = fitted(message)
            properties.correlation_id = request.correlation_id
            if properties.reply_to:  # the request itself, returned to its queue or dead-lettered
                properties.reply_to = request.reply_to
            is_reply = queue == request.arrival.message.reply_to
            to = request.reply_to if is_reply else queue
            channel.basic_publish("", to, message.body, properties, mandatory=True)
        except pika.exceptions.AMQPConnectionError:
            raise
        except Exception as error:
            # pika marshals the whole message before it sends a byte. Repeating it would fail likewise.
            log.error("rpc.reply_unsendable", queue=queue, reason=describe(error))

    def _returned(self, _: Channel, method: spec.Basic.Return, properties: pika.BasicProperties, __: bytes) -> None:
        queue = short_text(method.routing_key)  # a client may have named any bytes
        if not queue.startswith(DIRECT_REPLY_PREFIX):
            log.info("rpc.undelivered", queue=queue, correlation_id=str(properties.correlation_id))

    def _channel_closed(self, channel: Channel, error: OperationRefused | BrokerUnavailable) -> None:
        if channel.connection.is_open:  # else the connection reports that itself, once for all its queues
            super()._channel_closed(channel, error)

    def lost(self, reason: str) -> None:
        """Note that the connection is gone, which reports that itself. I/O thread only."""
        self._throttle.allows(reason)
        super().lost(reason)

    def _exists(self) -> bool:
        try:
            self._connection.call("queue_declare", queue=self.queue, passive=True)
        except NotFound:
            return False
        return True

    def _warn(self, refusal: PreconditionFailed) -> None:
        reason = str(difference(refusal) or refusal)
        if reason != self._difference:
            self._difference = reason
            log.warning("rpc.queue_differs", queue=self.queue, reason=f"{reason}; it is used unchanged")

    def _log_end(self, reason: str) -> None:
        # The server opens it again every second.
        if self._throttle.allows(reason):
            log.warning("rpc.queue_lost", queue=self.queue, reason=reason)

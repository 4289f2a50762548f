"""Glance: look at the first messages of a queue, and leave them there."""

from __future__ import annotations

from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from functools import partial

import pika
from pika import spec
from pika.channel import Channel

from messaging.broker.calls import CALL_TIMEOUT
from messaging.broker.connection import Connection
from messaging.broker.errors import refused_or_lost
from messaging.broker.properties import from_pika
from messaging.broker.subscription import Arrival
from messaging.exceptions import BrokerSilent, BrokerUnavailable


class Glance:
    """A channel that takes messages one by one, and never acknowledges.

    Closed, it gives all of them back, to the places that they had; until then nobody else gets them. A quorum queue
    counts that as a delivery (https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling).
    """

    def __init__(self, connection: Connection, queue: str) -> None:
        self._connection = connection
        self._queue = queue
        self._channel: Channel | None = None
        self._answer: Future[Arrival | None] = Future()

    def next(self) -> Arrival | None:
        """Return the next message, None where there is none. Raises OperationRefused, BrokerUnavailable."""
        answer: Future[Arrival | None] = Future()
        self._answer = answer
        self._connection.call_soon(partial(self._get, answer))
        try:
            return answer.result(CALL_TIMEOUT)
        except FutureTimeout:
            raise BrokerSilent(f"The broker did not answer basic_get within {CALL_TIMEOUT:g} s.") from None

    # --- on the I/O thread ---------------------------------------------------------------------------------

    def _get(self, answer: Future[Arrival | None]) -> None:
        if self._channel is not None and self._channel.is_open:
            self._channel.basic_get(self._queue, partial(self._got, answer))
        elif not self._connection.open_channel(partial(self._opened, answer)):
            answer.set_exception(BrokerUnavailable(self._connection.last_error or "the connection is lost"))

    def _opened(self, answer: Future[Arrival | None], channel: Channel) -> None:
        self._channel = channel
        channel.add_on_close_callback(self._closed)
        channel.add_callback(self._empty, [spec.Basic.GetEmpty], one_shot=False)
        self._get(answer)

    def _got(
        self,
        answer: Future[Arrival | None],
        _: Channel,
        method: spec.Basic.GetOk,
        properties: pika.BasicProperties,
        body: bytes,
    ) -> None:
        arrival = Arrival(
            queue=self._queue,
            message=from_pika(properties, body),
            tag=method.delivery_tag,
            channel=1,
            redelivered=method.redelivered,
            exchange=method.exchange,
            routing_key=method.routing_key,
        )
        answer.set_result(arrival)

    def _empty(self, _: pika.frame.Method) -> None:
        self._answer.set_result(None)

    def _closed(self, _: Channel, error: BaseException) -> None:
        if not self._answer.done():
            self._answer.set_exception(refused_or_lost(error))

"""Calls: one AMQP method and its answer, one at a time, on a channel of their own."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TYPE_CHECKING, Any

from django.utils.asyncio import async_unsafe
from pika.channel import Channel

from messaging.broker.errors import describe, refused_or_lost
from messaging.exceptions import BrokerSilent, BrokerUnavailable, OperationRefused, QueueSilent

if TYPE_CHECKING:
    from messaging.broker.connection import Connection

#: Seconds that a broker may take to answer one method.
CALL_TIMEOUT = 5.0
#: Seconds in which it must answer something else if only a queue is silent.
OTHER_ANSWER = 2.0
#: Channels left waiting for silent queues before the connection is given up, and they with it.
MOST_LEFT = 100


class Calls:
    """What any thread asks the broker through one connection: declare, bind, look at.

    The broker closes a channel over what it refuses; the next call then opens another, and nobody else loses theirs.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._one_at_a_time = threading.Lock()
        self._channel: Channel | None = None
        self._answer: Future[Any] = Future()
        #: Channels of this connection that wait for a silent queue.
        self._left = 0

    @async_unsafe("This waits for RabbitMQ's answer. In a coroutine write `await sync_to_async(function)(…)`.")
    def call(self, method: str, arguments: dict[str, Any]) -> Any:
        """Call `method` of a channel, from any thread, and return the answer's method frame.

        Raises OperationRefused, BrokerUnavailable if there is no connection, and BrokerSilent if no answer comes in
        time: the connection then counts as dead. QueueSilent if only the queue in question does not answer.
        """
        with self._one_at_a_time:
            answer: Future[Any] = Future()
            self._connection.call_soon(lambda: self._perform(method, arguments, answer))
            try:
                return answer.result(CALL_TIMEOUT)
            except FutureTimeout:
                if "queue" in arguments and self._answers_others():
                    raise QueueSilent(
                        f"Queue {arguments['queue']} exists but does not answer ({method}, {CALL_TIMEOUT:g} s)."
                    ) from None
                self._connection.reset(f"no answer to {method} within {CALL_TIMEOUT:g} s")
                raise BrokerSilent(f"The broker did not answer {method} within {CALL_TIMEOUT:g} s.") from None

    def _answers_others(self) -> bool:
        """Whether the broker answers what is not about a queue, on another channel: then the queue is silent, and the
        connection is not dead."""
        self._left += 1
        if self._left > MOST_LEFT:
            return False
        answer: Future[Any] = Future()
        question = {"exchange": "amq.direct", "passive": True}
        self._connection.call_soon(lambda: self._perform_elsewhere("exchange_declare", question, answer))
        try:
            answer.result(OTHER_ANSWER)
        except OperationRefused:
            return True  # a refusal is an answer
        except (FutureTimeout, BrokerUnavailable):
            return False
        return True

    # --- on the I/O thread ---------------------------------------------------------------------------------

    def _perform_elsewhere(self, method: str, arguments: dict[str, Any], answer: Future[Any]) -> None:
        self._channel = None  # it waits for its queue, for ever perhaps
        self._perform(method, arguments, answer)

    def lost(self, error: BrokerUnavailable) -> None:
        """Take note that the connection is gone."""
        self._channel = None
        self._left = 0
        self._fail(error)

    def _perform(self, method: str, arguments: dict[str, Any], answer: Future[Any]) -> None:
        self._answer = answer
        if self._channel is not None and self._channel.is_open:
            self._send(self._channel, method, arguments, answer)
        elif not self._connection.open_channel(lambda channel: self._opened(channel, method, arguments, answer)):
            self._fail(BrokerUnavailable(self._connection.last_error or "There is no connection to the broker."))

    def _opened(self, channel: Channel, method: str, arguments: dict[str, Any], answer: Future[Any]) -> None:
        self._channel = channel
        channel.add_on_close_callback(self._closed)
        self._send(channel, method, arguments, answer)

    def _closed(self, channel: Channel, error: BaseException) -> None:
        if channel is self._channel:
            self._channel = None
            self._fail(refused_or_lost(error))

    def _send(self, channel: Channel, method: str, arguments: dict[str, Any], answer: Future[Any]) -> None:
        try:
            getattr(channel, method)(callback=lambda frame: self._answered(answer, frame), **arguments)
        except Exception as error:
            # pika checks names and arguments before it sends: an over-long name, a type AMQP does not have.
            self._fail(BrokerUnavailable(f"{method} could not be sent: {describe(error)}"))

    def _answered(self, answer: Future[Any], frame: Any) -> None:
        if not answer.done():
            answer.set_result(frame)

    def _fail(self, error: Exception) -> None:
        if not self._answer.done():
            self._answer.set_exception(error)

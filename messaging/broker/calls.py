"""Calls: questions to the broker from any thread, answered by futures. The one place where channels open for them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from django.utils.asyncio import async_unsafe
from pika.channel import Channel

from messaging.broker.errors import describe
from messaging.exceptions import BrokerSilent, BrokerUnavailable, OperationRefused, QueueSilent

if TYPE_CHECKING:
    from messaging.broker.connection import Connection

#: Seconds that a broker may take to answer one method.
CALL_TIMEOUT = 5.0
#: Seconds in which the broker must answer another question if only a queue is silent.
OTHER_ANSWER = 2.0
#: Channels that may wait for silent queues before the connection is given up.
MAX_WAITING_CHANNELS = 100


@dataclass(frozen=True, slots=True)
class Answer:
    """The broker's answer to a method; each method fills what it knows."""

    queue: str = ""
    messages: int = 0
    consumers: int = 0


#: Asks a question on a channel, and sees to it that the future gets the answer. Runs on the I/O thread.
Question = Callable[[Channel, "Future[Any]"], None]


class CallChannel:
    """One channel for one question at a time. The broker closes a channel over what it refuses; the next question then
    opens another."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._channel: Channel | None = None
        self._answer: Future[Any] = Future()

    def ask(self, question: Question) -> Future[Any]:
        """Ask from any thread. The future fails with OperationRefused, or BrokerUnavailable."""
        answer: Future[Any] = Future()
        self._connection.call_soon(partial(self._ask, question, answer))
        return answer

    # --- on the I/O thread ---------------------------------------------------------------------------------

    def fail(self, error: Exception) -> None:
        """End a question that has no answer yet; the channel is lost."""
        self._channel = None
        if not self._answer.done():
            self._answer.set_exception(error)

    def _ask(self, question: Question, answer: Future[Any]) -> None:
        self._answer = answer
        if self._channel is not None and self._channel.is_open:
            self._send(question, answer, self._channel)
        elif not self._connection.open_channel(partial(self._send, question, answer), self._closed):
            self.fail(BrokerUnavailable(self._connection.last_error or "there is no connection to the broker"))

    def _send(self, question: Question, answer: Future[Any], channel: Channel) -> None:
        self._channel = channel
        try:
            question(channel, answer)
        except Exception as error:
            # pika checks names and arguments before it sends: an over-long name, a type AMQP does not have.
            if not answer.done():
                answer.set_exception(BrokerUnavailable(f"the question could not be sent: {describe(error)}"))

    def _closed(self, channel: Channel, error: OperationRefused | BrokerUnavailable) -> None:
        if channel is self._channel:
            self.fail(error)


def method(name: str, arguments: dict[str, Any], channel: Channel, answer: Future[Any]) -> None:
    """Call a method of pika's channel, as a `Question`."""

    def answered(frame: Any) -> None:
        if not answer.done():
            count, consumers = (getattr(frame.method, each, 0) for each in ("message_count", "consumer_count"))
            answer.set_result(Answer(getattr(frame.method, "queue", ""), count, consumers))

    getattr(channel, name)(callback=answered, **arguments)


class Calls:
    """The AMQP methods that any thread calls by one connection, one at a time."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._one_at_a_time = threading.Lock()
        self._channel = CallChannel(connection)
        #: Channels of the present connection that wait for a silent queue.
        self._waiting = 0

    @async_unsafe("This waits for RabbitMQ's answer. In a coroutine write `await sync_to_async(function)(…)`.")
    def call(self, name: str, arguments: dict[str, Any]) -> Answer:
        """Call the method `name` of a channel and return the answer.

        Raises OperationRefused, BrokerUnavailable if there is no connection, and BrokerSilent if no answer comes in
        time: the connection then counts as dead, unless an alarm blocks it. QueueSilent if only the queue in question
        does not answer.
        """
        with self._one_at_a_time:
            try:
                answer: Answer = self._channel.ask(partial(method, name, arguments)).result(CALL_TIMEOUT)
            except FutureTimeout:
                if self._connection.blocked:
                    # RabbitMQ reads on after the alarm. Sent again on a new connection, messages would be doubled.
                    raise BrokerSilent(
                        f"The broker did not answer {name} within {CALL_TIMEOUT:g} s: a memory or disk alarm blocks it."
                    ) from None
                if "queue" in arguments and self._answers_others():
                    raise QueueSilent(
                        f"Queue {arguments['queue']} exists but does not answer ({name}, {CALL_TIMEOUT:g} s)."
                    ) from None
                self._connection.reset(f"no answer to {name} within {CALL_TIMEOUT:g} s")
                raise BrokerSilent(f"The broker did not answer {name} within {CALL_TIMEOUT:g} s.") from None
            return answer

    def _answers_others(self) -> bool:
        """Whether the broker answers a question about something else: then the queue is silent, the connection not
        dead. Its channel is left to wait, and another one takes its place."""
        self._waiting += 1
        if self._waiting > MAX_WAITING_CHANNELS:
            return False
        self._channel = CallChannel(self._connection)
        try:
            self._channel.ask(ANY_QUESTION).result(OTHER_ANSWER)
        except OperationRefused:
            return True  # a refusal is an answer
        except (FutureTimeout, BrokerUnavailable):
            return False
        return True

    def lost(self, error: BrokerUnavailable) -> None:
        """Fail the question that has no answer yet: the connection is gone. I/O thread only."""
        self._waiting = 0
        self._channel.fail(error)


#: A question that every broker answers, about no queue.
ANY_QUESTION: Question = partial(method, "exchange_declare", {"exchange": "amq.direct", "passive": True})

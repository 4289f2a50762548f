"""Queue answers: what queues tell; many are asked for their counts at once. A queue can exist and never answer.

A classic queue whose process is stuck or gone answers nothing. RabbitMQ reports a quorum queue without a leader as
empty and without consumers (`rabbit_quorum_queue:stat`): only asking it for a message tells the difference.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

from pika import spec
from pika.channel import Channel

from messaging.broker.arrival import Arrival, arrival_of
from messaging.broker.calls import CALL_TIMEOUT, Answer, CallChannel, method
from messaging.broker.connection import Connection, opened
from messaging.exceptions import (
    BrokerSilent,
    BrokerUnavailable,
    NotFound,
    OperationRefused,
    QueueSilent,
    ThreadNotStarted,
)

#: The consumer argument for where to begin in a stream (https://www.rabbitmq.com/docs/streams#consuming).
STREAM_OFFSET = "x-stream-offset"
#: Queues asked at a time: each needs a channel.
AT_A_TIME = 100
#: Quorum queues asked for a message at a time, each by its own connection: RabbitMQ closes it over a dead queue.
PROBES = 4
#: What to do about a queue that does not answer.
CURE = (
    "restart the RabbitMQ node that holds it; if it still does not answer, delete it, declare it again (`manage.py mq "
    "topology declare`), and send again what it held (`manage.py messages reconcile --repair`)"
)
#: The report on such a queue, if nothing else is known.
SILENT = f"it exists but does not answer: {CURE}"


@dataclass(frozen=True, slots=True)
class QueueAnswer:
    """What one queue answered."""

    ready: int = 0
    consumers: int = 0
    #: Why the broker did not tell, for instance NotFound.
    refusal: OperationRefused | None = None
    #: Why the queue counts as existing without answering; empty if it answers.
    silent: str = ""


def ask_queues(connection: Connection, names: Iterable[str], *, quorum: Collection[str] = ()) -> dict[str, QueueAnswer]:
    """Return each queue's answer. Those of `quorum` that are reported empty and without consumers are also asked for a
    message, which is requeued at once.

    Takes `CALL_TIMEOUT` if any queue is silent, however many are. Raises BrokerUnavailable, BrokerSilent if the broker
    itself does not answer, ThreadNotStarted.
    """
    found: dict[str, QueueAnswer] = {}
    remaining = iter(dict.fromkeys(names))
    while some := list(islice(remaining, AT_A_TIME)):
        found |= _counts(connection, some)
    if any(answer.silent for answer in found.values()):
        _check_broker_answers(connection)
    doubtful = [name for name in found if name in quorum and found[name] == QueueAnswer()]
    if doubtful:
        for name, silent in zip(doubtful, _why_each_is_silent(doubtful), strict=True):
            found[name] = replace(found[name], silent=silent)
    return found


def is_missing(refusal: OperationRefused) -> bool:
    """Whether the queue is missing. RabbitMQ answers NotFound, in other words, for a crashed queue or node, too."""
    return isinstance(refusal, NotFound) and "no queue" in refusal.text


def _counts(connection: Connection, names: Collection[str]) -> dict[str, QueueAnswer]:
    generation = connection.generation
    asked = {name: CallChannel(connection).ask(partial(_count, name)) for name in names}
    wait(asked.values(), CALL_TIMEOUT)
    if not connection.is_open or connection.generation != generation:
        raise BrokerUnavailable(connection.last_error or "the connection was lost")
    return {name: _answer(future) for name, future in asked.items()}


def _answer(future: Future[Any]) -> QueueAnswer:
    if not future.done():
        return QueueAnswer(silent=f"no answer within {CALL_TIMEOUT:g} s")
    try:
        counts: Answer = future.result()
    except OperationRefused as refusal:
        exists = isinstance(refusal, NotFound) and not is_missing(refusal)
        return QueueAnswer(refusal=refusal, silent=refusal.text if exists else "")
    return QueueAnswer(ready=counts.messages, consumers=counts.consumers)


def _count(name: str, channel: Channel, answer: Future[Any]) -> None:
    answer.add_done_callback(lambda _: channel.is_open and channel.close())
    method("queue_declare", {"queue": name, "passive": True}, channel, answer)


def _check_broker_answers(connection: Connection) -> None:
    """Raise BrokerSilent if the broker is silent, and not its queues."""
    try:
        connection.call("exchange_declare", exchange="amq.direct", passive=True)
    except OperationRefused:
        return  # a refusal is an answer


def _why_each_is_silent(names: Collection[str]) -> list[str]:
    """Return `_why_silent` of each. Raises ThreadNotStarted."""
    with ThreadPoolExecutor(PROBES) as probes:
        try:
            return list(probes.map(_why_silent, names))
        except RuntimeError as error:
            raise ThreadNotStarted(f"this process could not start a thread to ask its queues ({error})") from error


def _why_silent(name: str) -> str:
    """Return why a quorum queue counts as silent; empty if it answers, or if that cannot be told."""
    try:
        with opened("probe") as connection:
            try:
                Peek(connection, name).next()
            except QueueSilent:
                return f"no answer within {CALL_TIMEOUT:g} s"
            except BrokerSilent as error:
                return str(error)
            except BrokerUnavailable as error:
                # Over a queue without a leader RabbitMQ closes the connection (541).
                return str(error) if "INTERNAL_ERROR" in str(error) else ""
    except (BrokerUnavailable, OperationRefused):
        return ""
    return ""


class Peek:
    """Takes the first messages of a queue one by one, and acknowledges none.

    Once the connection is closed all are requeued at their old places; until then no consumer gets them. A quorum queue
    counts that as a delivery (https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling).
    """

    def __init__(self, connection: Connection, queue: str) -> None:
        self._connection = connection
        self._queue = queue
        self._channel = CallChannel(connection)

    def next(self) -> Arrival | None:
        """Return the next message, None if there is none. Raises OperationRefused, BrokerUnavailable, BrokerSilent;
        QueueSilent if only the queue does not answer."""
        try:
            arrival: Arrival | None = self._channel.ask(self._get).result(CALL_TIMEOUT)
        except FutureTimeout:
            _check_broker_answers(self._connection)
            raise QueueSilent(
                f"Queue {self._queue} exists but does not answer (basic_get, {CALL_TIMEOUT:g} s)."
            ) from None
        return arrival

    def _get(self, channel: Channel, answer: Future[Any]) -> None:
        channel.add_callback(partial(self._empty, answer), [spec.Basic.GetEmpty])
        channel.basic_get(self._queue, lambda _, *message: answer.set_result(arrival_of(self._queue, 1, *message)))

    def _empty(self, answer: Future[Any], _: Any) -> None:
        if not answer.done():
            answer.set_result(None)


def is_stream(connection: Connection, name: str) -> bool:
    """Whether an existing queue is a stream, as far as this account may know. Raises BrokerUnavailable.

    AMQP cannot ask that. But only streams accept consumers with an offset, and a consumer behind the last message
    receives nothing.
    """
    tag = "is-it-a-stream"
    try:
        connection.call("basic_qos", prefetch_count=1)  # required for streams
        connection.call(
            "basic_consume",
            queue=name,
            on_message_callback=lambda *_: None,
            consumer_tag=tag,
            arguments={STREAM_OFFSET: "next"},
        )
    except OperationRefused:
        return False
    connection.call("basic_cancel", consumer_tag=tag)
    return True

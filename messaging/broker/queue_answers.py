"""Whether queues answer: many are asked at once, and waited for together. A queue can exist and never answer.

A classic queue whose process is stuck or gone answers nothing. Of a quorum queue without a leader RabbitMQ says that it
is empty and has no consumers (so `rabbit_quorum_queue:stat`): only asking it for a message tells the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

from pika.channel import Channel

from messaging.broker.calls import CALL_TIMEOUT
from messaging.broker.connection import Connection, opened
from messaging.broker.errors import describe, refused_or_lost
from messaging.broker.glance import Glance
from messaging.exceptions import BrokerSilent, BrokerUnavailable, NotFound, OperationRefused, ThreadNotStarted

#: Queues asked at a time: each takes a channel.
AT_A_TIME = 100
#: Connections by which quorum queues are asked for a message, at a time: RabbitMQ closes that of who asks a dead one.
PROBES = 4
#: What a person does about a queue that does not answer.
CURE = (
    "restart the RabbitMQ node that holds it; if it still does not answer, delete it and declare it again: "
    "`manage.py mq topology plan` prints the steps"
)
#: What is said of one where that is all that is known.
SILENT = f"it exists but does not answer: {CURE}"


@dataclass(frozen=True, slots=True)
class QueueAnswer:
    """What one queue answered."""

    ready: int = 0
    consumers: int = 0
    #: Why the broker told nothing, such as that there is no such queue.
    refusal: OperationRefused | None = None
    #: Why the queue counts as existing without answering; empty: it answers.
    silent: str = ""


def ask_queues(connection: Connection, names: Iterable[str], *, quorum: Collection[str] = ()) -> dict[str, QueueAnswer]:
    """Return what each queue answers. Those of `quorum` that say they are empty and have no consumers are asked for a
    message, too, which goes back at once.

    A silent queue costs `CALL_TIMEOUT`, however many are silent. Raises BrokerUnavailable, BrokerSilent where the
    broker itself does not answer, ThreadNotStarted.
    """
    found: dict[str, QueueAnswer] = {}
    remaining = iter(dict.fromkeys(names))
    while some := list(islice(remaining, AT_A_TIME)):
        found |= _counts(connection, some)
    if any(answer.silent for answer in found.values()):
        _see_that_it_answers(connection)
    doubtful = [name for name in found if name in quorum and found[name] == QueueAnswer()]
    if doubtful:
        for name, silent in zip(doubtful, _why_each_is_silent(doubtful), strict=True):
            found[name] = replace(found[name], silent=silent)
    return found


def is_missing(refusal: OperationRefused) -> bool:
    """Whether there is no such queue. One whose node is down, or that has crashed, is not found either, in other
    words."""
    return isinstance(refusal, NotFound) and "no queue" in refusal.text


def _counts(connection: Connection, names: Collection[str]) -> dict[str, QueueAnswer]:
    generation = connection.generation
    asked = {name: _ask(connection, partial(_declare_passively, name)) for name in names}
    wait(asked.values(), CALL_TIMEOUT)
    if not connection.is_open or connection.generation != generation:
        raise BrokerUnavailable(connection.last_error or "the connection was lost")
    return {name: _answer(future) for name, future in asked.items()}


def _answer(future: Future[Any]) -> QueueAnswer:
    if not future.done():
        return QueueAnswer(silent=f"no answer within {CALL_TIMEOUT:g} s")
    try:
        counts = future.result().method
    except OperationRefused as refusal:
        exists = isinstance(refusal, NotFound) and not is_missing(refusal)
        return QueueAnswer(refusal=refusal, silent=refusal.text if exists else "")
    return QueueAnswer(ready=counts.message_count, consumers=counts.consumer_count)


def _ask(connection: Connection, ask: Callable[[Channel, Future[Any]], None]) -> Future[Any]:
    """Ask on a channel of its own: one that waits holds up no other."""
    answer: Future[Any] = Future()

    def begin() -> None:
        if not connection.open_channel(opened_now):
            _fail(answer, BrokerUnavailable(connection.last_error or "there is no connection to the broker"))

    def opened_now(channel: Channel) -> None:
        channel.add_on_close_callback(lambda _, error: _fail(answer, refused_or_lost(error)))
        try:
            ask(channel, answer)
        except Exception as error:
            _fail(answer, BrokerUnavailable(f"the question could not be sent: {describe(error)}"))

    connection.call_soon(begin)
    return answer


def _declare_passively(name: str, channel: Channel, answer: Future[Any]) -> None:
    def answered(frame: Any) -> None:
        if not answer.done():
            answer.set_result(frame)
        channel.close()

    channel.queue_declare(name, passive=True, callback=answered)


def _fail(answer: Future[Any], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)


def _see_that_it_answers(connection: Connection) -> None:
    """Raise BrokerSilent where not the queues are silent, but the broker."""
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
    """Return why a quorum queue counts as silent; empty where it answers, or where that cannot be told."""
    try:
        with opened("probe") as connection:
            try:
                Glance(connection, name).next()
            except BrokerSilent as error:
                return str(error)
            except BrokerUnavailable as error:
                # Over a queue without a leader RabbitMQ closes the connection (541).
                return str(error) if "INTERNAL_ERROR" in str(error) else ""
    except (BrokerUnavailable, NotFound, OperationRefused):
        return ""
    return ""

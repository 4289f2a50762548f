"""Replacing an exchange or a queue that stands otherwise than wanted, in the smallest gap that there can be.

RabbitMQ changes neither. So it is deleted and declared anew over one connection, and a queue only in a moment in which
no message waits in it; the new one comes once the consumers of the old one have been told. What is published in
between is in the outbox: reconcile brings it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from messaging import consumers
from messaging.broker.connection import Connection, opened
from messaging.broker.declaring import is_stream
from messaging.broker.reply_codes import NOT_FOUND, PRECONDITION_FAILED
from messaging.exceptions import ChannelClosed, MessagingError
from messaging.routing import Binding
from messaging.topology import desired as topology
from messaging.topology.declarer import NOTICE, Declarer
from messaging.topology.desired import Topology

#: Seconds between two looks at a queue that is not empty.
PAUSE = 0.02


class NotReplaced(MessagingError):
    """Nothing was deleted; the text says why."""


def replace(name: str, patience: float) -> bool:
    """Delete the exchange or queue `name` and declare it as wanted, with its bindings; return whether it stood
    otherwise, so that this was needed. Wait up to `patience` seconds for a moment in which a queue is empty.

    Raises NotReplaced, ChannelClosed for what this user may not, BrokerUnavailable.
    """
    wanted = topology.wanted(consumers.registered())
    exchanges = [each for each in wanted.exchanges if each.name == name]
    queues = [each for each in wanted.queues if each.name == name]
    if not exchanges and not queues:
        raise NotReplaced(f"{name} is neither a queue nor an exchange that this project declares.")
    bindings = [each for each in wanted.bindings if name in (each.queue, each.exchange)]
    with opened("topology") as connection:
        needed = [
            *(("exchange", each.name) for each in exchanges if _differs(connection, "exchange_declare", {
                "exchange": each.name, "exchange_type": each.type, "durable": True})),
            *(("queue", each.name) for each in queues if _differs(connection, "queue_declare", {
                "queue": each.name, "durable": True, "arguments": each.arguments})),
        ]  # fmt: skip
        for kind, _ in needed:
            if kind == "queue":
                if is_stream(connection, name):
                    raise NotReplaced(
                        f"Queue {name} is a stream, which this project does not declare: it is never empty, and other "
                        "applications may read it. Give the consumer another queue, or delete the stream by hand."
                    )
                _wait_until_empty(connection, name, patience)
                connection.call("queue_delete", queue=name)
            else:
                _delete_exchange(connection, name, bindings, wanted)
        if queues and needed:
            # Nothing says when RabbitMQ has told the consumers of the deleted queue.
            time.sleep(NOTICE)
        # A queue needs its exchange to be bound, and an exchange all queues that were bound to it.
        others = tuple(each for each in wanted.queues if each.name in {binding.queue for binding in bindings})
        problems = Declarer(connection, quiet=True).declare(
            Topology(
                exchanges=tuple(exchanges) or wanted.exchanges,
                queues=tuple(queues) or others,
                bindings=tuple(bindings),
            )
        )
    if problems:
        raise NotReplaced("; ".join(f"{each}: {reason}" for each, reason in problems.items()))
    return bool(needed)


def _delete_exchange(connection: Connection, name: str, bindings: Sequence[Binding], wanted: Topology) -> None:
    """Delete an exchange to which nothing is bound but our own queues. Raises NotReplaced."""
    for each in bindings:
        _unbind(connection, each)
    try:
        connection.call("exchange_delete", exchange=name, if_unused=True)
    except ChannelClosed as error:
        # Our own bindings are made again, whatever the exchange is.
        Declarer(connection, quiet=True).declare(Topology(exchanges=(), queues=wanted.queues, bindings=tuple(bindings)))
        if error.code != PRECONDITION_FAILED:
            raise
        raise NotReplaced(
            f"Exchange {name} has bindings that this project does not declare, which would go with it. `manage.py mq "
            f"bindings {name}` lists them: let their owners take them away, then repeat this."
        ) from None


def _unbind(connection: Connection, binding: Binding) -> None:
    try:
        connection.call(
            "queue_unbind",
            queue=binding.queue,
            exchange=binding.exchange,
            routing_key=binding.key,
            arguments=dict(binding.arguments),
        )
    except ChannelClosed as error:
        if error.code != NOT_FOUND:
            raise


def _differs(connection: Connection, method: str, how: dict[str, object]) -> bool:
    try:
        connection.call(method, **how)
    except ChannelClosed as error:
        if error.code != PRECONDITION_FAILED:
            raise
        return True
    return False


def _wait_until_empty(connection: Connection, queue: str, patience: float) -> None:
    # Not by the broker's own `if-empty`: over that, for a quorum queue, it closes the whole connection (540).
    deadline = time.monotonic() + patience
    while waiting := connection.call("queue_declare", queue=queue, passive=True).method.message_count:
        if time.monotonic() > deadline:
            raise NotReplaced(
                f"Queue {queue} still has {waiting} messages, which would go with it: let its consumer run until it "
                "has caught up, then repeat this."
            )
        time.sleep(PAUSE)

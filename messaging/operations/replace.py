"""Replacing an exchange or a queue that stands otherwise than wanted, in the smallest gap that there can be.

RabbitMQ changes neither. So it is deleted and declared anew over one connection, and a queue only in a moment in which
no message waits in it; the new one comes once the consumers of the old one have been told. What is published in
between is in the outbox: reconcile brings it.
"""

from __future__ import annotations

import time

from messaging import consumers, topology
from messaging.broker.connection import Connection, opened
from messaging.broker.reply_codes import PRECONDITION_FAILED
from messaging.declarer import NOTICE, Declarer
from messaging.exceptions import ChannelClosed, MessagingError
from messaging.topology import Topology

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
                _wait_until_empty(connection, name, patience)
                connection.call("queue_delete", queue=name)
            else:
                connection.call("exchange_delete", exchange=name)
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

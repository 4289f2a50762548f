"""Which way of looking there is: the management API's where it answers, else AMQP's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from messaging.broker.connection import opened
from messaging.broker.management import ManagementUnavailable, reached
from messaging.exceptions import BrokerUnavailable
from messaging.operations.standing.by_amqp import ByAmqp
from messaging.operations.standing.by_management import ByManagement
from messaging.operations.standing.facts import Queue, Standing


@contextmanager
def looking() -> Iterator[Standing]:
    """Yield what stands, by the management API where it lets this user look, else by AMQP alone.

    Raises BrokerUnavailable where neither lets us in.
    """
    try:
        management = reached()
    except ManagementUnavailable as error:
        with opened("look") as connection:
            yield ByAmqp(connection, str(error))
    else:
        yield ByManagement(management)


def counted_now(queues: list[Queue]) -> list[Queue]:
    """Return the queues with what waits in them, and how many consume, at this moment.

    What the management API says may be five seconds old, and whoever has just sent a message wants to see it. What
    AMQP does not tell this user stays as it was.
    """
    try:
        with opened("look") as connection:
            amqp = ByAmqp(connection, "")
            return [queue if queue.exclusive else amqp.counted_now(queue) for queue in queues]
    except BrokerUnavailable:
        return queues

"""Which way of looking there is: the management API's where it answers and is our broker's, else AMQP's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from messaging.broker.connection import opened
from messaging.broker.identity import check_same_broker
from messaging.broker.management import ManagementUnavailable, reached
from messaging.topology.existing.by_amqp import ByAmqp
from messaging.topology.existing.by_management import ByManagement
from messaging.topology.existing.facts import Standing


@contextmanager
def looking() -> Iterator[Standing]:
    """Yield what stands, by the management API where it lets this user look and is that of the broker which AMQP leads
    to, else by AMQP alone.

    Raises BrokerUnavailable where AMQP does not let us in: nothing then says which broker a management API is of.
    """
    with opened("look") as connection:
        try:
            management = reached(lambda found: check_same_broker(found, connection))
        except ManagementUnavailable as error:
            seen: Standing = ByAmqp(connection, str(error))
        else:
            seen = ByManagement(management, connection)
        yield seen

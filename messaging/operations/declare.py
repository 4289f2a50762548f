"""Declaring the topology once, for a person: whatever could not be made as wanted is a problem."""

from __future__ import annotations

from messaging.broker.connection import Connection
from messaging.exceptions import BrokerUnavailable
from messaging.topology import Declarer, Topology


def declare(wanted: Topology) -> dict[str, str]:
    """Declare `wanted`; return {name: reason} for what does not stand as wanted, and what this user may not declare.

    Raises BrokerUnavailable where no address lets us in.
    """
    connection = Connection("topology").start()
    try:
        while not connection.wait_until_open(0.1):
            if connection.never_reached:
                raise BrokerUnavailable(connection.last_error)
        declarer = Declarer(connection)
        problems = declarer.declare(wanted)
        return {**declarer.differing, **dict.fromkeys(declarer.refused, "this user may not declare it"), **problems}
    finally:
        connection.stop()

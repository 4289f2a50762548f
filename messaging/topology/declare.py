"""Declaring the topology once, for a person: whatever could not be made as wanted is a problem."""

from __future__ import annotations

from messaging.broker.connection import opened
from messaging.broker.queue_answers import CURE
from messaging.topology.declarer import Declarer
from messaging.topology.desired import Topology


def declare(wanted: Topology) -> dict[str, str]:
    """Declare `wanted`; return {name: reason} for what does not stand as wanted, and what this user may not declare.

    Raises BrokerUnavailable where no address lets us in.
    """
    with opened("topology") as connection:
        declarer = Declarer(connection, quiet=True)
        problems = declarer.declare(wanted)
        silent = {name: f"{reason} {CURE[0].upper()}{CURE[1:]}." for name, reason in declarer.silent.items()}
        return {
            **silent,
            **declarer.differing,
            **dict.fromkeys(declarer.refused, "this user may not declare it"),
            **problems,
        }

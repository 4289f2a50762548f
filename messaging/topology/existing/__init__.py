"""What stands on the broker: exchanges, queues, bindings, consumers, connections; and how that is known.

The management API tells everything about the virtual host. AMQP alone answers only to a name, and not about everything:
what nobody could see is None here, or named as unseen, and never taken for well.
"""

from messaging.topology.existing.by_amqp import ByAmqp, known_queues
from messaging.topology.existing.facts import Binding, CannotBeSeen, Consumer, Exchange, OpenConnection, Queue, Standing
from messaging.topology.existing.looking import looking

__all__ = [
    "Binding",
    "ByAmqp",
    "CannotBeSeen",
    "Consumer",
    "Exchange",
    "OpenConnection",
    "Queue",
    "Standing",
    "known_queues",
    "looking",
]

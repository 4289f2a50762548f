"""Rights: whether this account may write to an exchange, or read a queue. Asking changes nothing.

AMQP cannot ask that. But RabbitMQ checks rights first, before it finds that there is nothing to unbind, or that an
argument is invalid.
"""

from __future__ import annotations

import re
import uuid
from typing import Any

from messaging.broker.connection import Connection
from messaging.exceptions import AccessRefused, OperationRefused, QueueSilent

#: An exchange of every virtual host. Without the right to read it the refusal names it.
_SOURCE = "amq.fanout"


#: The end of RabbitMQ's sentence about a missing right. An exclusive consumer of a queue is refused otherwise: it may
#: leave.
_LACKS_RIGHT = re.compile(r" refused for user '.*'\.?$", re.DOTALL)


def lacks_right(refusal: OperationRefused | None) -> bool:
    """Whether an operation was refused because this account lacks the right: waiting does not help."""
    return isinstance(refusal, AccessRefused) and bool(_LACKS_RIGHT.search(refusal.text))


def may_declare(connection: Connection, exchange: str, exchange_type: str) -> bool:
    """Whether this account may declare `exchange`, which exists so. Raises BrokerUnavailable."""
    arguments = {"exchange": exchange, "exchange_type": exchange_type, "durable": True}
    return not _refused(connection, "exchange_declare", exchange, arguments)


def may_write(connection: Connection, exchange: str) -> bool:
    """Whether this account may publish to `exchange`. Raises BrokerUnavailable."""
    unbound = {"destination": exchange, "source": _SOURCE, "routing_key": str(uuid.uuid4())}
    return not _refused(connection, "exchange_unbind", exchange, unbound)


def may_read(connection: Connection, queue: str) -> bool:
    """Whether this account may consume `queue`. Raises BrokerUnavailable."""
    invalid = {"queue": queue, "on_message_callback": lambda *_: None, "arguments": {"x-priority": "none"}}
    return not _refused(connection, "basic_consume", queue, invalid)


def _refused(connection: Connection, method: str, name: str, arguments: dict[str, Any]) -> bool:
    try:
        connection.call(method, **arguments)
    except AccessRefused as error:
        return f"'{name}'" in error.text
    except (OperationRefused, QueueSilent):
        pass  # both come after the check of rights
    return False

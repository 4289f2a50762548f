"""Declaring for a person: whether a queue or exchange exists, and using one that exists with harmless differences.

`kind` is "queue" or "exchange".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from messaging.broker.connection import Connection
from messaging.broker.errors import difference
from messaging.exceptions import NotFound, PreconditionFailed, ResourceLocked

#: Properties that do not change which messages a queue or exchange gets. RabbitMQ compares these first.
_HARMLESS_DIFFERENCES = {"durable", "auto_delete", "x-queue-type"}


def exists(connection: Connection, kind: str, name: str) -> bool:
    """Whether it exists, exclusive queues included. Raises OperationRefused, BrokerUnavailable."""
    try:
        connection.call(f"{kind}_declare", **{kind: name}, passive=True)
    except NotFound:
        return False
    except ResourceLocked:
        pass
    return True


def declare(connection: Connection, kind: str, name: str, options: Mapping[str, Any]) -> str:
    """Declare it by the options of `add_declare`, or use an existing one with another durability or queue type; return
    the difference, else "".

    Raises OperationRefused if it exists with another exchange type or other arguments, or this account may not;
    BrokerUnavailable.
    """
    how: dict[str, Any] = {kind: name, "durable": not options["transient"], "arguments": options["arguments"]}
    if kind == "exchange":
        how["exchange_type"] = options["type"]
    elif options["queue_type"]:
        how["arguments"] = {"x-queue-type": options["queue_type"], **options["arguments"]}
    try:
        connection.call(f"{kind}_declare", **how)
    except PreconditionFailed as error:
        differs = difference(error)
        if options["arguments"] or differs is None or differs.property not in _HARMLESS_DIFFERENCES:
            raise
        return f"{differs}. It is used as it is."
    return ""

"""The queues and exchanges of the lessons: what exists under their names, and removing what is theirs."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from messaging.broker.connection import Connection
from messaging.broker.errors import difference
from messaging.exceptions import NotFound, OperationRefused, PreconditionFailed, ResourceLocked
from messaging.tutorial.lessons import Made

#: Seconds that the broker may take to notice that a process has ended.
REMOVE_PATIENCE = 10.0
#: Seconds between two tries.
TRY_EVERY = 0.05
IN_USE = "it is in use"


@dataclass(frozen=True, slots=True)
class Found:
    """A queue or an exchange that exists."""

    #: How it differs from what the lessons declare; empty: it is theirs.
    differs: str = ""
    messages: int = 0
    consumers: int = 0


def counted(number: int, what: str) -> str:
    """Return "1 message", "2 messages"."""
    return f"{number} {what}{'s' * (number != 1)}"


def look(connection: Connection, made: Made) -> Found | None:
    """Return what exists under that name; None where nothing does. Raises OperationRefused, BrokerUnavailable."""
    method, name = f"{made.kind}_declare", {made.kind: made.name}
    differs = ""
    try:
        counts = connection.call(method, **name, passive=True)
        for declaration in made.declarations:
            try:
                connection.call(method, **name, **declaration)
                return Found(messages=counts.messages, consumers=counts.consumers)
            except PreconditionFailed as error:
                differs = differs or _in_words(error)
    except NotFound:
        return None
    except ResourceLocked:
        differs = "is another connection's own (exclusive)"
    return Found(differs=differs)


def remove(connection: Connection, made: Made) -> str:
    """Remove a queue or exchange that is not in use; return why not, empty if it is gone. Raises BrokerUnavailable."""
    try:
        if made.kind == "exchange":
            connection.call("exchange_delete", exchange=made.name, if_unused=True)
        # Quorum queues cannot be deleted with `if_unused`.
        elif consumers := connection.call("queue_declare", queue=made.name, passive=True).consumers:
            return f"{IN_USE} by {counted(consumers, 'consumer')}"
        else:
            connection.call("queue_delete", queue=made.name)
    except PreconditionFailed:
        return IN_USE
    except NotFound:
        return ""
    except OperationRefused as error:
        return str(error)
    return ""


def remove_all(connection: Connection, new: Iterable[Made]) -> list[str]:
    """Remove what a check made; return what could not be removed, and why.

    The broker may take a moment to notice that a killed process has ended. Raises BrokerUnavailable.
    """
    deadline = time.monotonic() + REMOVE_PATIENCE
    left = dict.fromkeys(new, IN_USE)
    while left := {made: why_not for made in left if (why_not := remove(connection, made))}:
        if time.monotonic() > deadline or not all(why_not.startswith(IN_USE) for why_not in left.values()):
            break
        time.sleep(TRY_EVERY)
    return [f"{made} could not be removed: {why_not}" for made, why_not in left.items()]


def _in_words(refusal: PreconditionFailed) -> str:
    if (found := difference(refusal)) is None:
        return f"differs: {refusal}"
    return f"exists {found.stated(found.found)}, the lessons declare it {found.stated(found.asked)}"

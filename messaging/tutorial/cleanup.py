"""What the lessons made on the broker: is it there, is it theirs, does anybody use it; and taking it away."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from messaging.broker.connection import Connection
from messaging.broker.errors import difference
from messaging.exceptions import NotFound, OperationRefused, PreconditionFailed, ResourceLocked
from messaging.tutorial.lessons import ExchangeMade, Lesson, QueueMade

#: Seconds that the broker may take to notice that a process has left.
REMOVE_PATIENCE = 10.0
#: Seconds between two tries.
LOOK_EVERY = 0.05
#: Why a queue or an exchange was not removed.
IN_USE = "somebody uses it"


@dataclass(frozen=True, slots=True)
class Found:
    """A queue or an exchange that stands."""

    #: How it stands otherwise than the lessons make it; empty: it is theirs.
    differs: str = ""
    #: Of a queue.
    messages: int = 0
    consumers: int = 0


def look(connection: Connection, made: QueueMade | ExchangeMade) -> Found | None:
    """Return what stands under that name; None for nothing.

    Raises OperationRefused where the broker will not say, BrokerUnavailable.
    """
    try:
        if isinstance(made, ExchangeMade):
            connection.call("exchange_declare", exchange=made.name, passive=True)
            connection.call("exchange_declare", exchange=made.name, exchange_type=made.type)
            return Found()
        counts = connection.call("queue_declare", queue=made.name, passive=True)
        if not _is_as_once(connection, made):
            connection.call("queue_declare", queue=made.name, durable=True, arguments=dict(made.arguments))
    except NotFound:
        return None
    except PreconditionFailed as error:
        return Found(differs=_in_words(error))
    except ResourceLocked:
        return Found(differs="is another connection's own (exclusive)")
    return Found(messages=counts.messages, consumers=counts.consumers)


def _is_as_once(connection: Connection, made: QueueMade) -> bool:
    """Whether a queue that exists is as the older tutorials declare it."""
    if made.once_durable is None:
        return False
    try:
        connection.call("queue_declare", queue=made.name, durable=made.once_durable)
    except PreconditionFailed:
        return False
    return True


def remove(connection: Connection, made: QueueMade | ExchangeMade) -> str:
    """Remove a queue or exchange, unless somebody uses it; return why not, empty where it is gone.

    Raises BrokerUnavailable.
    """
    try:
        if isinstance(made, ExchangeMade):
            connection.call("exchange_delete", exchange=made.name, if_unused=True)
        else:
            # Looked at first: quorum queues cannot be deleted with `if_unused`.
            if connection.call("queue_declare", queue=made.name, passive=True).consumers:
                return IN_USE
            connection.call("queue_delete", queue=made.name)
    except PreconditionFailed:
        return IN_USE
    except NotFound:
        return ""
    except OperationRefused as error:
        return str(error)
    return ""


def remove_all(connection: Connection, new: Iterable[QueueMade | ExchangeMade]) -> list[str]:
    """Remove what the lines of a lesson made; return what could not be, and why.

    The broker may take a moment to notice that a killed process has left. Raises BrokerUnavailable.
    """
    deadline = time.monotonic() + REMOVE_PATIENCE
    left = dict.fromkeys(new, "not tried")
    while True:
        left = {made: why_not for made in left if (why_not := remove(connection, made))}
        if not left or time.monotonic() > deadline or any(each != IN_USE for each in left.values()):
            return [f"{named(made)} could not be removed: {why_not}" for made, why_not in left.items()]
        time.sleep(LOOK_EVERY)


def made_by(lessons: Sequence[Lesson]) -> list[QueueMade | ExchangeMade]:
    """Return what the lines of these lessons make."""
    found: list[QueueMade | ExchangeMade] = []
    for lesson in lessons:
        found += [*lesson.queues, *lesson.exchanges]
    return found


def named(made: QueueMade | ExchangeMade) -> str:
    """Return "queue hello", "exchange logs"."""
    return f"{'queue' if isinstance(made, QueueMade) else 'exchange'} {made.name}"


def _in_words(refusal: OperationRefused) -> str:
    found = difference(refusal)
    if found is None:
        return f"differs: {refusal}"
    return f"exists {found.stated(found.found)}, the lessons make it {found.stated(found.asked)}"

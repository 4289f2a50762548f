"""What stands on the broker, by AMQP alone, which answers only to a name, and not about everything."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

from messaging import consumers, procedures
from messaging.broker.connection import Connection
from messaging.broker.declaring import exchange_type
from messaging.broker.management import Address
from messaging.broker.queue_answers import QueueAnswer, ask_queues
from messaging.exceptions import NotFound, OperationRefused, ResourceLocked
from messaging.routing import MAX_SHORT_STRING
from messaging.topology import desired
from messaging.topology.existing.facts import Binding, CannotBeSeen, Consumer, Exchange, OpenConnection, Queue


class ByAmqp:
    """What AMQP tells: whether a queue or exchange of a name is there, and how many wait in a queue."""

    is_complete = False
    address: Address | None = None

    def __init__(self, connection: Connection, why: str) -> None:
        self.connection = connection
        self.how = f"By AMQP alone, which sees only what is asked for by name: {why}."
        #: Names of what this user may not look at.
        self.unseen: set[str] = set()

    def server(self) -> str:
        """Return what the broker calls itself."""
        return self.connection.server

    def alarms(self) -> str | None:
        """Nobody can tell: the broker tells only those who publish."""
        return "publishers are kept waiting" if self.connection.blocked else None

    def queues(self, names: Collection[str] = ()) -> list[Queue]:
        """Return those of the project's queues, and of `names`, that are there."""
        return sorted(self._asked(_each_once(known_queues(), names)), key=lambda queue: queue.name)

    def counted_now(self, queues: list[Queue]) -> list[Queue]:
        """Return the queues with their counts of this moment, as far as this user may see them."""
        asked = {found.name: found for found in self._asked([each.name for each in queues if not each.exclusive])}
        return [_counted(queue, asked.get(queue.name)) for queue in queues]

    def exchanges(self, names: Collection[str] = ()) -> list[Exchange]:
        """Return those of the project's exchanges, and of `names`, that are there."""
        known = [each.name for each in desired.topology(consumers.registered()).exchanges]
        found = [name for name in _each_once(known, names) if self._is_there(name)]
        return [Exchange(name=name, type=exchange_type(self.connection, name) or None) for name in sorted(found)]

    def bindings(self) -> list[Binding]:
        """Raise CannotBeSeen."""
        raise CannotBeSeen("AMQP has no way to look at bindings")

    def policies(self) -> dict[str, dict[str, Any]]:
        """Raise CannotBeSeen."""
        raise CannotBeSeen("AMQP has no way to look at policies")

    def consumers(self) -> list[Consumer]:
        """Raise CannotBeSeen."""
        raise CannotBeSeen("AMQP tells only how many consumers a queue has: see `manage.py mq queues`")

    def connections(self) -> list[OpenConnection]:
        """Raise CannotBeSeen."""
        raise CannotBeSeen("AMQP has no way to look at other connections")

    def sees_all_connections(self) -> bool:
        """AMQP shows none."""
        return False

    def _asked(self, names: Collection[str]) -> list[Queue]:
        answers = ask_queues(self.connection, names, quorum=_our_quorum_queues())
        found = (self._queue(name, answer) for name, answer in answers.items())
        return [queue for queue in found if queue is not None]

    def _queue(self, name: str, answer: QueueAnswer) -> Queue | None:
        if answer.silent:
            return Queue(name=name, silent=answer.silent)
        if answer.refusal is None:
            return Queue(name=name, ready=answer.ready, consumers=answer.consumers)
        if isinstance(answer.refusal, ResourceLocked):
            return Queue(name=name, exclusive=True)
        self._note(name, answer.refusal)
        return None

    def _is_there(self, name: str) -> bool:
        try:
            self.connection.call("exchange_declare", exchange=name, passive=True)
        except OperationRefused as error:
            self._note(name, error)
            return False
        return True

    def _note(self, name: str, error: OperationRefused) -> None:
        if not isinstance(error, NotFound):
            self.unseen.add(name)


def known_queues() -> list[str]:
    """Return the names of the queues that this project declares: its consumers' and its procedures'."""
    wanted = desired.topology(consumers.registered())
    return [*(queue.name for queue in wanted.queues), *(each.queue for each in procedures.registered())]


def _our_quorum_queues() -> set[str]:
    """Those that may be asked for a message: no queue of another application's is."""
    wanted = desired.topology(consumers.registered())
    return {queue.name for queue in wanted.queues if queue.arguments["x-queue-type"] == "quorum"}


def _counted(queue: Queue, now: Queue | None) -> Queue:
    if now is None or (now.ready is None and not now.silent):
        return queue
    return replace(queue, ready=now.ready, consumers=now.consumers, silent=now.silent)


def _each_once(*names: Iterable[str]) -> list[str]:
    return [name for name in dict.fromkeys(each for some in names for each in some) if _fits(name)]


def _fits(name: str) -> bool:
    """Whether AMQP could have a queue or exchange of that name."""
    return 0 < len(name.encode(errors="replace")) <= MAX_SHORT_STRING

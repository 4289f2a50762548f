"""Destinations: the queues that a row must reach, its message, and how the relay treats a queue that confirms nothing.

RabbitMQ handles the messages of a channel one after the other. At a quorum queue without a leader the channel waits (a
minute in RabbitMQ 3.10 and 4.3) and confirms nothing that was sent later. So all destinations that miss a confirm are
*in doubt*: their rows are published alone, one destination at a time, until the broker answers. A destination that
confirms nothing even alone is *unresponsive*: its rows go back to the table, and every PAUSE seconds one unresponsive
destination is tried with a single message.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from messaging import conf, consumers
from messaging.broker.publisher import Outcome, Publishing, Status
from messaging.consumers import Consumer
from messaging.headers import room_in_frame, size_of
from messaging.message import (
    ATTEMPT_HEADER,
    ORDERING_KEY_HEADER,
    OUTBOX_ID_HEADER,
    POSITION_HEADER,
    SUBJECT_HEADER,
    VERSION_HEADER,
    Message,
)
from messaging.models import OutboxMessage
from messaging.relay.leases import Held
from messaging.relay.statements import AnyRow

#: The queues that must take a row's message; its exchange and routing key if we know of no queue.
Destination = frozenset[str] | tuple[str, str]

#: Attempts to publish a row together with others. After that any relay publishes it only with rows like it.
TOGETHER = 2
#: Seconds between two trials of unresponsive destinations.
PAUSE = 30.0
#: The error of a row that rests because its destination is unresponsive.
NOT_TRIED = f"not tried: its destination confirms nothing; one such destination is tried every {PAUSE:g} s"
#: Seconds after which a destination is forgotten. Routing keys may contain ids and never occur again.
MEMORY = 600.0
#: Ways to publish whose queues are remembered. Routing keys may contain ids.
REMEMBERED = 1000
#: The largest id of a row.
LARGEST_ID = 2**63 - 1


def publishing_of(row: AnyRow) -> Publishing:
    """Return the publishing of a row: its body as stored, and its columns as properties and headers."""
    message = Message(
        body=bytes(row.body),
        id=row.message_id,
        type=row.type,
        correlation_id=row.correlation_id,
        app_id=conf.get().app_id,
        priority=row.priority,
        timestamp=row.created_at,
        headers={**row.headers, **_own_headers(row, row.pk)},
    )
    return Publishing(key=str(row.pk), exchange=row.exchange, routing_key=row.routing_key, message=message)


def room_for_headers(row: OutboxMessage) -> int:
    """Return how many bytes the headers of `row`, stored or not, may take beside its other columns."""
    own = size_of(_own_headers(row, LARGEST_ID))
    texts = (row.correlation_id, row.message_id, row.type, conf.get().app_id, Message(body=b"").content_type)
    # A length byte precedes each short text. Flags, delivery mode, priority and time take a few bytes more.
    return room_in_frame() - own - sum(1 + len(text.encode(errors="replace")) for text in texts) - 16


def _own_headers(row: AnyRow, pk: int) -> dict[str, Any]:
    headers: dict[str, Any] = {OUTBOX_ID_HEADER: str(pk), VERSION_HEADER: row.version, ATTEMPT_HEADER: row.attempt}
    if row.subject:
        headers[SUBJECT_HEADER] = row.subject
    if row.ordering_key:
        headers[ORDERING_KEY_HEADER] = row.ordering_key
        headers[POSITION_HEADER] = row.position or pk
    return headers


def expected_queues(row: AnyRow) -> Mapping[str, str]:
    """Return the consumers that must receive the row's message, and their queues."""
    if row.consumer:
        return {row.consumer: row.routing_key}
    return _routes().queues(row)


class _Routes:
    """Remembers which queues must receive messages that are published alike, while consumers and settings stay."""

    def __init__(self, of: object) -> None:
        self.of = of
        self._consumers = consumers.registered()
        self._headers_count = any(each.headers for each in self._consumers)
        self._known: dict[tuple[str, ...], Mapping[str, str]] = {}

    def queues(self, row: AnyRow) -> Mapping[str, str]:
        """Return consumers and their queues."""
        alike = (row.type, row.exchange, row.routing_key, repr(row.headers) if self._headers_count else "")
        if (found := self._known.get(alike)) is None:
            how = (row.type, row.exchange, row.routing_key, row.headers)
            found = {each.name: each.queue for each in self._consumers if each.receives(*how)}
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[alike] = found
        return found


_latest: _Routes | None = None


def _routes() -> _Routes:
    global _latest
    now = (consumers.registry.changes, conf.get())
    if _latest is None or _latest.of != now:
        _latest = _Routes(now)
    return _latest


def true_outcome(row: AnyRow, outcome: Outcome, queues: Mapping[str, str], problems: Mapping[str, str]) -> Outcome:
    """Return what the broker's answer means for the row's consumers, whose `queues` are the expected ones. `problems`
    are those of queues, by name.

    A confirm says nothing of queues that are missing or not bound. If only broadcast consumers receive the message, it
    is no loss that none of them runs.
    """
    if outcome.status is Status.CONFIRMED and not row.consumer:
        missing = [f"{name}: {problems[queue]}" for name, queue in queues.items() if queue in problems]
        return Outcome(Status.RETURNED, f"not every queue took it: {'; '.join(missing)}") if missing else outcome
    if outcome.status is Status.RETURNED and not queues and broadcast_consumers(row):
        return Outcome(Status.CONFIRMED)
    return outcome


def broadcast_consumers(row: AnyRow) -> list[Consumer]:
    """Return the broadcast consumers that receive the row's message."""
    how = (row.type, row.exchange, row.routing_key, row.headers)
    return [each for each in consumers.broadcasting() if not row.consumer and each.receives(*how)]


def destination(row: AnyRow) -> Destination:
    """Return where the row's message goes: what may keep the broker from confirming it."""
    return frozenset(expected_queues(row).values()) or (row.exchange, row.routing_key)


@dataclass(slots=True)
class Plan:
    """How rows are published: some together, then groups of one destination each, some not before `rest` seconds."""

    together: list[Held] = field(default_factory=list)
    alone: list[tuple[Destination, list[Held]]] = field(default_factory=list)
    resting: list[AnyRow] = field(default_factory=list)
    rest: float = 0.0


@dataclass(slots=True)
class _Known:
    """What the relay knows of one destination, and when it learned that last."""

    at: float = 0.0
    has_answered: bool = False
    in_doubt: bool = False
    unresponsive: bool = False


_NOTHING = _Known()


class Destinations:
    """What one relay knows of destinations. For one thread; times are those of `clock`, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[Destination, _Known] = {}
        self._next_trial = 0.0

    def in_doubt(self, where: Destination) -> bool:
        """Whether its messages are published alone."""
        known = self._known.get(where, _NOTHING)
        return known.in_doubt or known.unresponsive

    def unresponsive(self, where: Destination) -> bool:
        """Whether it confirmed nothing when it was last tried alone."""
        return self._known.get(where, _NOTHING).unresponsive

    def rest(self, where: Destination) -> float:
        """Return the seconds for which nothing is published there; 0 if it may be tried now."""
        return max(0.0, self._next_trial - self._clock()) if self.unresponsive(where) else 0.0

    def plan(self, held: Sequence[Held]) -> Plan:
        """Sort rows: those that twice got no answer and those for a destination in doubt are published alone.

        The next trial of an unresponsive destination is a single message.
        """
        now = self._clock()
        self._known = {where: known for where, known in self._known.items() if known.at >= now - MEMORY}
        all_answer = not any(map(self.in_doubt, self._known))
        plan = Plan()
        groups: dict[tuple[Destination, str, str], list[Held]] = {}
        for each in held:
            row = each.row
            unlucky = row.state == OutboxMessage.State.PENDING and row.publish_attempts >= TOGETHER
            where = None if all_answer and not unlucky else destination(row)
            if where is None or not (unlucky or self.in_doubt(where)):
                plan.together.append(each)
            elif rest := self.rest(where):
                plan.resting.append(row)
                plan.rest = rest
            else:
                groups.setdefault((where, row.exchange, row.routing_key), []).append(each)
        for where, group in self.in_order([(where, group) for (where, *_), group in groups.items()]):
            first = 1 if self.unresponsive(where) else len(group)
            plan.alone += [(where, rows) for rows in (group[:first], group[first:]) if rows]
        return plan

    def in_order(self, groups: list[tuple[Destination, Any]]) -> list[tuple[Destination, Any]]:
        """Return groups in the order of their trials: destinations that have answered, others, unresponsive ones.

        Within each of these the order is random, so that none always comes after one that confirms nothing.
        """
        random.shuffle(groups)
        known = {where: self._known.get(where, _NOTHING) for where, _ in groups}
        return sorted(groups, key=lambda group: (known[group[0]].unresponsive, not known[group[0]].has_answered))

    def learn(
        self, held: Sequence[Held], outcomes: Sequence[Outcome], alone: Destination | None, *, excused: bool
    ) -> bool:
        """Remember which destinations got no answer, and return whether the broker answered for all rows.

        `alone` is the destination of rows that were published alone. With `excused` a missing answer says nothing of a
        destination: the broker is blocked, or the relay is stopping.
        """
        unanswered = [
            each.row for each, outcome in zip(held, outcomes, strict=True) if outcome.status is Status.UNKNOWN
        ]
        answered = len(unanswered) < len(held)
        if alone and answered:
            self.answered(alone)
        if alone and not answered and not excused and any(outcome.late for outcome in outcomes):
            self.failed_alone(alone)
        elif not excused:
            for row in unanswered:
                self.doubt(alone or destination(row))
        return not unanswered

    def doubt(self, where: Destination) -> None:
        """Note that the destination may be why others got no confirm."""
        self._learned(where).in_doubt = True

    def failed_alone(self, where: Destination) -> None:
        """Note that the destination confirmed nothing although it was tried alone."""
        self._learned(where).unresponsive = True
        self._next_trial = self._clock() + PAUSE

    def answered(self, where: Destination) -> None:
        """Note that the broker answered, whatever it said. If the destination was unresponsive, others may have
        recovered too."""
        known = self._learned(where)
        if known.unresponsive:
            self._next_trial = self._clock()
        known.has_answered, known.in_doubt, known.unresponsive = True, False, False

    def _learned(self, where: Destination) -> _Known:
        known = self._known.setdefault(where, _Known())
        known.at = self._clock()
        return known

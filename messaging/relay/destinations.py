"""Destinations: the queues that a row must reach, and its message."""

from __future__ import annotations

from collections.abc import Mapping
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
from messaging.relay.statements import AnyRow

#: The queues that must take a row's message; its exchange if we know of no queue.
Destination = frozenset[str] | str

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
    return route(row)[0]


def route(row: AnyRow) -> tuple[Mapping[str, str], Destination]:
    """Return the `expected_queues` of a row, and where its message goes: what may keep the broker from confirming
    it."""
    if row.consumer:
        return {row.consumer: row.routing_key}, frozenset([row.routing_key])
    return _routes().route(row)


class _Routes:
    """Remembers which queues must receive messages that are published alike, while consumers and settings stay."""

    def __init__(self, of: object) -> None:
        self.of = of
        self._consumers = consumers.registered()
        self._headers_count = any(each.headers for each in self._consumers)
        self._known: dict[tuple[str, ...], tuple[Mapping[str, str], Destination]] = {}

    def route(self, row: AnyRow) -> tuple[Mapping[str, str], Destination]:
        """Return consumers and their queues, and the destination."""
        alike = (row.type, row.exchange, row.routing_key, repr(row.headers) if self._headers_count else "")
        if (found := self._known.get(alike)) is None:
            how = (row.type, row.exchange, row.routing_key, row.headers)
            queues = {each.name: each.queue for each in self._consumers if each.receives(*how)}
            found = queues, frozenset(queues.values()) or row.exchange
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
    if outcome.status is Status.CONFIRMED and problems and not row.consumer:
        missing = [f"{name}: {problems[queue]}" for name, queue in queues.items() if queue in problems]
        return Outcome(Status.RETURNED, f"not every queue took it: {'; '.join(missing)}") if missing else outcome
    if outcome.status is Status.RETURNED and not queues and broadcast_consumers(row):
        return Outcome(Status.CONFIRMED)
    return outcome


def broadcast_consumers(row: AnyRow) -> list[Consumer]:
    """Return the broadcast consumers that receive the row's message."""
    how = (row.type, row.exchange, row.routing_key, row.headers)
    return [each for each in consumers.broadcasting() if not row.consumer and each.receives(*how)]

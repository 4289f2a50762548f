"""What is published for an outbox row, and who must receive it."""

from __future__ import annotations

from typing import Any

from messaging import conf, consumers
from messaging.broker.publisher import Publishing
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
from messaging.relay.silence import Destination

#: The largest id of a row.
LARGEST_ID = 2**63 - 1


def publishing_of(row: OutboxMessage) -> Publishing:
    """Return what is published for a row: its body as stored, and its columns as properties and headers."""
    headers = {**row.headers, **_own_headers(row, row.pk)}
    message = Message(
        body=bytes(row.body),
        id=row.message_id,
        type=row.type,
        correlation_id=row.correlation_id,
        app_id=conf.get().app_id,
        priority=row.priority,
        timestamp=row.created_at,
        headers=headers,
    )
    return Publishing(key=str(row.pk), exchange=row.exchange, routing_key=row.routing_key, message=message)


def room_for_headers(row: OutboxMessage) -> int:
    """Return how many bytes the headers of `row` may take beside its columns, which travel in the same frame. It need
    not be stored yet."""
    own = size_of(_own_headers(row, LARGEST_ID))
    texts = (row.correlation_id, row.message_id, row.type, conf.get().app_id, Message(body=b"").content_type)
    # Each short text has its length in front; flags, delivery mode, priority and time take a few bytes more.
    return room_in_frame() - own - sum(1 + len(text.encode(errors="replace")) for text in texts) - 16


def _own_headers(row: OutboxMessage, pk: int) -> dict[str, Any]:
    headers: dict[str, Any] = {OUTBOX_ID_HEADER: str(pk), VERSION_HEADER: row.version, ATTEMPT_HEADER: row.attempt}
    if row.subject:
        headers[SUBJECT_HEADER] = row.subject
    if row.ordering_key:
        headers[ORDERING_KEY_HEADER] = row.ordering_key
        headers[POSITION_HEADER] = row.position or pk
    return headers


def expected_queues(row: OutboxMessage) -> dict[str, str]:
    """Return the consumers that must receive the row's message, and their queues."""
    if row.consumer:
        return {row.consumer: row.routing_key}
    return {
        each.name: each.queue
        for each in consumers.registered()
        if each.receives(row.type, row.exchange, row.routing_key, row.headers)
    }


def destination(row: OutboxMessage) -> Destination:
    """Return what may keep the broker from answering for the row."""
    return frozenset(expected_queues(row).values()) or (row.exchange, row.routing_key)


def is_for_whoever_listens(row: OutboxMessage) -> bool:
    """Whether only broadcast consumers want the row's message: then it is no loss that nobody listens."""
    return not row.consumer and any(
        each.receives(row.type, row.exchange, row.routing_key, row.headers) for each in consumers.broadcasting()
    )

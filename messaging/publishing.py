"""What is published for an outbox row, and who must receive it."""

from __future__ import annotations

from messaging import conf, consumers
from messaging.broker.publisher import Publishing
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
from messaging.silence import Destination


def publishing_of(row: OutboxMessage) -> Publishing:
    """Return what is published for a row: its body as stored, and its columns as properties and headers."""
    headers = dict(row.headers)
    headers[OUTBOX_ID_HEADER] = str(row.pk)
    headers[VERSION_HEADER] = row.version
    headers[ATTEMPT_HEADER] = row.attempt
    if row.subject:
        headers[SUBJECT_HEADER] = row.subject
    if row.ordering_key:
        headers[ORDERING_KEY_HEADER] = row.ordering_key
        headers[POSITION_HEADER] = row.position or row.pk
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

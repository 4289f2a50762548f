"""What reconciling finds: a message with which something is wrong at a consumer."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from messaging.models import InboxMessage, OutboxMessage


class Trouble(StrEnum):
    """What is wrong with a message at a consumer."""

    LOST = "lost"
    #: Handled more than once: a promise is broken.
    DOUBLED = "doubled"
    #: It waits for something that does not come by itself.
    STUCK = "stuck"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One message with which something is wrong, since when, and why that is thought.

    `outbox_id` or `inbox_id` is the row that tells of it; a lost message is sent again from there.
    """

    trouble: Trouble
    message_id: str
    type: str
    subject: str
    consumer: str
    since: datetime
    why: str
    outbox_id: int | None = None
    inbox_id: int | None = None


def found(
    row: OutboxMessage | InboxMessage, trouble: Trouble, why: str, *, since: datetime, consumer: str = ""
) -> Finding:
    """Return a finding about the message of this row, at the row's consumer unless another one is named."""
    return Finding(
        trouble=trouble,
        message_id=row.message_id,
        type=row.type,
        subject=row.subject,
        consumer=consumer or row.consumer,
        since=since,
        why=why,
        outbox_id=row.pk if isinstance(row, OutboxMessage) else None,
        inbox_id=row.pk if isinstance(row, InboxMessage) else None,
    )

"""Findings: what is wrong with a message at a consumer, since when, and why that is thought."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from messaging.models import InboxMessage


class Trouble(StrEnum):
    """What is wrong with a message at a consumer."""

    LOST = "lost"
    #: Handled more than once: a promise is broken.
    DOUBLED = "doubled"
    #: It waits for something that does not come by itself.
    STUCK = "stuck"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One message that something is wrong with, since when, and why that is thought.

    `outbox_id` or `inbox_id` is the row that a lost one can be sent again from.
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


def about_inbox(row: InboxMessage, trouble: Trouble, why: str) -> Finding:
    """Return a finding about a message that a consumer has."""
    return Finding(
        trouble=trouble,
        message_id=row.message_id,
        type=row.type,
        subject=row.subject,
        consumer=row.consumer,
        since=row.changed_at,
        why=why,
        inbox_id=row.pk,
    )

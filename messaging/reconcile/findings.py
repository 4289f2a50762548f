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


@dataclass(frozen=True, slots=True)
class Finding:
    """One message with which something is wrong at a consumer, since when, and why that is thought. `row` tells of it;
    a lost message is sent again from there."""

    trouble: Trouble
    row: OutboxMessage | InboxMessage
    why: str
    since: datetime
    consumer: str

    @property
    def message_id(self) -> str:
        """The id of the message."""
        return self.row.message_id

    @property
    def subject(self) -> str:
        """What the message is about."""
        return self.row.subject

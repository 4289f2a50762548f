"""Discard: give up dead messages for good. A row stays for a while: it is the fence against copies of the message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db.models import Value
from django.db.models.functions import Concat, Now

from messaging.actions.action import MessageAction
from messaging.models import InboxMessage


class Discard(MessageAction):
    """Gives up dead messages for good."""

    name = "discard"
    label = "Discard"
    past = "discarded"
    permission = "messaging.discard_message"
    help = "give up dead messages for good"
    examples = """
examples:
  manage.py messages discard 01985c5e-9d1c-7b3a-8f00-2a1b3c4d5e6f --note "test data"
  manage.py messages discard --group 3fa9c1d2e4b5 --dry-run            how many messages that would be
"""
    meaning = (
        "A discarded message is given up for good: it cannot be replayed. It is kept for INBOX_RETENTION_DAYS, so that "
        "a copy of it is recognised."
    )
    states = {InboxMessage: (InboxMessage.State.DEAD,)}
    not_so = "not dead"
    nothing = "no such message is dead"
    in_stories = False

    def change(self, rows: Sequence[Any], words: str, **options: Any) -> None:
        InboxMessage.objects.filter(pk__in=[row.pk for row in rows]).update(
            state=InboxMessage.State.DISCARDED,
            changed_at=Now(),
            reason=Concat(Value(f"{words}; it was dead: "), "reason"),
        )


discard = Discard()

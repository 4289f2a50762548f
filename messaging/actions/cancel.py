"""Cancel: a message of the outbox that no broker has is not published; one that waits at a consumer for earlier
messages of its ordering key is not handled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django.db import DatabaseError, InterfaceError
from django.db.models import QuerySet
from django.db.models.functions import Now

from messaging import consumers, database
from messaging.actions.action import MessageAction
from messaging.actions.publish_now import LEASED
from messaging.actions.selection import Box, Selection
from messaging.logs import get_logger
from messaging.models import InboxMessage, OutboxMessage
from messaging.models.failures import REASON_LIMIT, failure_group, leave_dead
from messaging.worker import ordering

log = get_logger(__name__)

State = OutboxMessage.State


class Cancel(MessageAction):
    """Cancels messages that wait: outbox rows become *cancelled*, messages at a consumer are dead."""

    name = "cancel"
    label = "Cancel"
    past = "cancelled"
    permission = "messaging.cancel_message"
    help = "cancel messages that wait: they are not published, or not handled"
    examples = """
examples:
  manage.py messages cancel 01985c5e-9d1c-7b3a-8f00-2a1b3c4d5e6f       one message, wherever it waits
  manage.py messages cancel --consumer sms --subject W-ABC123          the retries of one order at one consumer
  manage.py messages cancel --type order.placed --dry-run              how many messages that would be
"""
    meaning = (
        "A cancelled message is not published, and one that waits for earlier messages is not handled. A cancelled "
        "retry or replay leaves its message dead at that consumer, where it can be replayed or discarded. A message "
        "that the broker has cannot be taken back."
    )
    states = {
        OutboxMessage: (State.PENDING, State.UNROUTABLE, State.FAILED),
        InboxMessage: (InboxMessage.State.WAITING,),
    }
    not_so = "not waiting"
    nothing = "no such message waits"
    needs_bodies = True
    in_stories = False

    def rows(self, box: Box, selection: Selection, **options: Any) -> QuerySet[Any]:
        found = super().rows(box, selection, **options)
        return found.exclude(LEASED) if box is OutboxMessage else found.defer("body")

    def busy(self, selection: Selection) -> tuple[int, str]:
        return super().rows(OutboxMessage, selection).filter(LEASED).count(), "being published at this moment"

    def facts(self, counts: Mapping[Box, int], busy: int) -> dict[str, Any]:
        return {"outbox": counts.get(OutboxMessage, 0), "inbox": counts.get(InboxMessage, 0), "leased": busy}

    def change(self, rows: Sequence[Any], words: str, **options: Any) -> None:
        words = words[:REASON_LIMIT]
        ids = [row.pk for row in rows]
        if isinstance(rows[0], OutboxMessage):
            # `publish_at` is when it was cancelled: the row has no next attempt.
            OutboxMessage.objects.filter(pk__in=ids).update(
                publish_at=Now(), state=State.CANCELLED, last_error=words, lease_token=None, lease_until=None
            )
            for row in rows:
                if row.consumer:
                    leave_dead(row, words, kind="cancelled")
            return
        for row in rows:
            InboxMessage.objects.filter(pk=row.pk).update(
                state=InboxMessage.State.DEAD,
                changed_at=Now(),
                reason=words,
                failure_group=failure_group(row.consumer, row.type, "cancelled"),
            )

    def after_commit(self, rows: Sequence[Any]) -> None:
        """Send what waited behind the cancelled messages.

        In transactions of its own: a handler locks the ordering key first, and the row after that. Should this fail, or
        this process die before, a worker does it later.
        """
        try:
            for consumer in consumers.registered():
                for key in {row.ordering_key for row in rows if row.ordering_key and consumer.wants(row.type)}:
                    with database.atomic():
                        ordering.release_next(consumer, key)
        except (DatabaseError, InterfaceError) as error:
            # The messages are cancelled: their action has not failed.
            log.warning("cancel.not_released", reason=str(error).strip())


cancel = Cancel()

"""Publish now: a retry that waits, an unroutable message or one that the broker refused is due at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db.models import Exists, OuterRef, Q, QuerySet
from django.db.models.functions import Now

from messaging.actions.action import MessageAction
from messaging.actions.selection import Box, Selection
from messaging.models import InboxMessage, OutboxMessage

State = OutboxMessage.State

#: A relay holds it at this moment, and is about to publish it.
LEASED = Q(lease_until__gt=Now())


class PublishNow(MessageAction):
    """Makes messages of the outbox due. What is due already, or held by a relay, is left alone."""

    name = "publish"
    label = "Publish now"
    past = "made due now"
    permission = "messaging.replay_message"
    help = "publish waiting outbox messages now"
    examples = """
examples:
  manage.py messages publish 01985c5e-9d1c-7b3a-8f00-2a1b3c4d5e6f      one message
  manage.py messages publish --type order.placed                       retries, unroutable and refused messages
"""
    meaning = "Makes a waiting retry, an unroutable message or one that the broker refused due at once."
    states = {OutboxMessage: (State.PENDING, State.UNROUTABLE, State.FAILED)}
    not_so = "due, being published, published or cancelled already"
    nothing = "no such message waits in the outbox for a later time; a message that is due is published anyway"
    # Whether a relay runs and the broker answers is not known here.
    afterwards = "A relay publishes it as soon as RabbitMQ takes it."

    def rows(self, box: Box, selection: Selection, **options: Any) -> QuerySet[Any]:
        waits = Q(state__in=[State.PENDING, State.UNROUTABLE], publish_at__gt=Now())
        # A message whose next attempt could not be sent is dead: a replay brings it, and this row would bring a
        # duplicate.
        expected = InboxMessage.objects.filter(
            consumer=OuterRef("consumer"),
            message_id=OuterRef("message_id"),
            state=InboxMessage.State.RETRYING,
            attempt=OuterRef("attempt"),
        )
        refused = Q(Q(consumer="") | Exists(expected), state=State.FAILED)
        return super().rows(box, selection, **options).filter(waits | refused, ~LEASED)

    def change(self, rows: Sequence[Any], words: str, **options: Any) -> None:
        OutboxMessage.objects.filter(pk__in=[row.pk for row in rows]).update(
            state=State.PENDING, publish_at=Now(), lease_token=None, lease_until=None
        )


publish_now = PublishNow()

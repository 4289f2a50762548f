"""Hasten: what waits in the outbox goes now. Publishing by hand, and the end of a retry's rest."""

from __future__ import annotations

from django.db.models import Exists, OuterRef, Q, QuerySet
from django.db.models.functions import Now

from messaging import database
from messaging.actions import audit
from messaging.actions.pages import pages
from messaging.actions.selection import Wanted
from messaging.logs import get_logger
from messaging.models import InboxMessage, OutboxMessage

log = get_logger(__name__)

State = OutboxMessage.State

#: A relay holds it at this moment, and is about to publish it.
LEASED = Q(lease_until__gt=Now())


def waiting(wanted: Wanted) -> QuerySet[OutboxMessage]:
    """Return the rows that would go later, or not at all: they rest, or the broker refused them. Those that are due
    go by themselves."""
    rests = Q(state__in=[State.PENDING, State.UNROUTABLE], publish_at__gt=Now())
    # A message whose next attempt could not be sent is dead: a replay brings it, and this row would bring a duplicate.
    expected = InboxMessage.objects.filter(
        consumer=OuterRef("consumer"),
        message_id=OuterRef("message_id"),
        state=InboxMessage.State.RETRYING,
        attempt=OuterRef("attempt"),
    )
    refused = Q(Q(consumer="") | Exists(expected), state=State.FAILED)
    return OutboxMessage.objects.filter(wanted.of_outbox, rests | refused, ~LEASED)


def hasten(wanted: Wanted, *, by: str, note: str = "") -> int:
    """Have a relay publish these rows now, where they wait; return how many did.

    What a relay holds, or has published, is left alone. A row that the broker refused is tried again as it is.
    """
    ids = list(waiting(wanted).order_by("pk").values_list("pk", flat=True))
    hastened = 0
    for page in pages(ids) if ids else [[]]:
        with database.one_of_many():
            rows = waiting(wanted).filter(pk__in=page).order_by("pk").select_for_update()
            found = dict(rows.values_list("pk", "message_id"))
            OutboxMessage.objects.filter(pk__in=found).update(
                state=State.PENDING, publish_at=Now(), lease_token=None, lease_until=None
            )
            audit.record(
                audit.Action.HASTEN,
                actor=by,
                about=str(wanted),
                message_ids=list(found.values()),
                changed=len(found),
                note=note,
            )
        hastened += len(found)
    log.info("messages.hastened", rows=hastened)
    return hastened

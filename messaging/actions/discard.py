"""Discard: nothing more shall come of a dead message. Its row stays for a while: it is the fence against copies."""

from __future__ import annotations

from django.db.models import QuerySet, Value
from django.db.models.functions import Concat, Now

from messaging import database
from messaging.actions import audit
from messaging.actions.pages import pages
from messaging.actions.selection import Wanted
from messaging.logs import get_logger
from messaging.models import InboxMessage
from messaging.validation.texts import storable_text

log = get_logger(__name__)


def dead(wanted: Wanted) -> QuerySet[InboxMessage]:
    """Return which of these messages can be discarded."""
    return InboxMessage.objects.filter(wanted.of_inbox, state=InboxMessage.State.DEAD)


def discard(wanted: Wanted, *, by: str, note: str = "") -> int:
    """Discard the dead ones of these messages; return how many that were. `by` is who does it, `note` why."""
    words = storable_text(f"discarded by {by}{f': {note}' if note else ''}; it was dead: ")
    ids = list(dead(wanted).order_by("pk").values_list("pk", flat=True))
    discarded = 0
    for page in pages(ids) if ids else [[]]:
        with database.one_of_many():
            rows = dead(wanted).filter(pk__in=page).order_by("pk").select_for_update()
            found = dict(rows.values_list("pk", "message_id"))
            InboxMessage.objects.filter(pk__in=found).update(
                state=InboxMessage.State.DISCARDED, changed_at=Now(), reason=Concat(Value(words), "reason")
            )
            audit.record(
                audit.Action.DISCARD,
                actor=by,
                about=str(wanted),
                message_ids=list(found.values()),
                changed=len(found),
                note=note,
            )
        discarded += len(found)
    log.info("messages.discarded", rows=discarded)
    return discarded

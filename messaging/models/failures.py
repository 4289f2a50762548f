"""How failures are recorded: reasons, groups of similar ones, and messages that are dead without another delivery."""

from __future__ import annotations

import hashlib
import re

from django.db.models.functions import Now

from messaging.models.inbox import InboxMessage
from messaging.models.outbox import OutboxMessage
from messaging.validation.texts import storable_text

#: Characters of a reason that are kept.
REASON_LIMIT = 1000


def leave_dead(row: OutboxMessage, reason: str, *, kind: str) -> bool:
    """Make a message dead at a consumer if the outbox row that was to bring it there again is not published: it would
    wait for ever. A message that has come after all stays as it is.

    `kind` groups such failures. Runs in the caller's transaction; returns whether that changed anything.
    """
    reason = storable_text(reason)[:REASON_LIMIT]
    letter = {"reason": reason, "failure_group": failure_group(row.consumer, row.type, kind)}
    there = InboxMessage.objects.filter(consumer=row.consumer, message_id=row.message_id)
    moved = there.filter(state=InboxMessage.State.RETRYING, attempt=row.attempt).update(
        state=InboxMessage.State.DEAD, changed_at=Now(), **letter
    )
    if moved or row.origin != OutboxMessage.Origin.RECONCILE or there.exists():
        return bool(moved)
    # It was lost on its way, and reconciling would find it missing again.
    missing = InboxMessage(
        **row.message_columns(), consumer=row.consumer, state=InboxMessage.State.DEAD, body=row.body, **letter
    )
    InboxMessage.objects.bulk_create([missing], ignore_conflicts=True)
    return True


def failure_group(consumer: str, type: str, reason: str) -> str:
    """Return the name that similar failures share: the same consumer and type, and reasons that differ only in numbers,
    ids and quoted values."""
    kind = _PARTICULAR.sub("…", reason)
    return hashlib.sha256("\0".join((consumer, type, kind)).encode()).hexdigest()[:12]


#: What differs between failures of one kind: quoted values, numbers, ids (some have no digit: W-PBQWPX).
_PARTICULAR = re.compile(r"'[^']*'|\"[^\"]*\"|\b(?=[\w-]*\d)[\w-]+|\b[A-Z]+(?:-[A-Z]+)+\b")

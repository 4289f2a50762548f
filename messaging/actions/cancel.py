"""Cancel: what waits shall not happen. A row that no broker has yet is not published; a message that waits for its
turn is not handled."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from django.db.models import QuerySet
from django.db.models.functions import Now

from messaging import consumers, database
from messaging.actions import audit
from messaging.actions.pages import pages
from messaging.actions.publish_now import LEASED
from messaging.actions.selection import Wanted
from messaging.consumers import Consumer
from messaging.logs import get_logger
from messaging.models import InboxMessage, OutboxMessage
from messaging.validation.texts import storable_text
from messaging.worker import inbox, ordering

log = get_logger(__name__)

State = OutboxMessage.State


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """How many rows were cancelled, or would be, in each box, and how many a relay is just publishing."""

    outbox: int
    inbox: int
    leased: int


def plan(wanted: Wanted) -> Cancelled:
    """Say what a cancel of these messages would do. Writes nothing."""
    unpublished = _unpublished(wanted)
    leased = unpublished.filter(LEASED).count()
    return Cancelled(outbox=unpublished.count() - leased, inbox=_waiting(wanted).count(), leased=leased)


def cancel(wanted: Wanted, *, by: str, note: str = "") -> Cancelled:
    """Cancel these messages, where they wait; return how many rows that were.

    An outbox row that is not published, and that no relay is just publishing, becomes *cancelled*. If it was to bring
    a message to one consumer again, that message is dead there, and can be replayed. So is one that waited for its
    turn among those of its ordering key. `by` is who does it, `note` why.
    """
    words = storable_text(f"cancelled by {by}{f': {note}' if note else ''}")[: inbox.REASON_LIMIT]
    outbox = _cancel_outbox(wanted, words, by, note)
    waiting = _cancel_waiting(wanted, words, by, note)
    if not (outbox or waiting):
        with database.atomic():
            audit.record(audit.Action.CANCEL, actor=by, about=str(wanted), note=note)
    log.info("messages.cancelled", outbox=outbox, inbox=waiting)
    return Cancelled(outbox=outbox, inbox=waiting, leased=_unpublished(wanted).filter(LEASED).count())


def _unpublished(wanted: Wanted) -> QuerySet[OutboxMessage]:
    return OutboxMessage.objects.filter(wanted.of_outbox, state__in=[State.PENDING, State.UNROUTABLE, State.FAILED])


def _waiting(wanted: Wanted) -> QuerySet[InboxMessage]:
    return InboxMessage.objects.filter(wanted.of_inbox, state=InboxMessage.State.WAITING)


def _cancel_outbox(wanted: Wanted, words: str, by: str, note: str) -> int:
    ids = list(_unpublished(wanted).exclude(LEASED).order_by("pk").values_list("pk", flat=True))
    cancelled = 0
    for page in pages(ids):
        with database.one_of_many():
            free = _unpublished(wanted).exclude(LEASED).filter(pk__in=page).order_by("pk")
            rows = list(free.select_for_update())
            OutboxMessage.objects.filter(pk__in=[row.pk for row in rows]).update(
                # When that was; the row has no next try.
                publish_at=Now(),
                state=State.CANCELLED,
                last_error=words,
                lease_token=None,
                lease_until=None,
            )
            for row in rows:
                if row.consumer:
                    inbox.leave_dead(row, words, kind="cancelled")
            _record(wanted, by, note, [row.message_id for row in rows])
        cancelled += len(rows)
        _release({(row.consumer, row.type, row.ordering_key) for row in rows})
    return cancelled


def _cancel_waiting(wanted: Wanted, words: str, by: str, note: str) -> int:
    ids = list(_waiting(wanted).order_by("pk").values_list("pk", flat=True))
    cancelled = 0
    for page in pages(ids):
        with database.one_of_many():
            rows = list(_waiting(wanted).filter(pk__in=page).order_by("pk").select_for_update().defer("body"))
            for row in rows:
                InboxMessage.objects.filter(pk=row.pk).update(
                    state=InboxMessage.State.DEAD,
                    changed_at=Now(),
                    reason=words,
                    failure_group=inbox.failure_group(row.consumer, row.type, "cancelled"),
                )
            _record(wanted, by, note, [row.message_id for row in rows])
        cancelled += len(rows)
        _release({(row.consumer, row.type, row.ordering_key) for row in rows})
    return cancelled


def _record(wanted: Wanted, by: str, note: str, message_ids: list[str]) -> None:
    audit.record(
        audit.Action.CANCEL,
        actor=by,
        about=str(wanted),
        message_ids=message_ids,
        changed=len(message_ids),
        note=note,
    )


def _release(settled: Iterable[tuple[str, str, str]]) -> None:
    """Send what waited behind the cancelled messages of (consumer or "", type, ordering key).

    In transactions of their own: who handles a message takes the lock of its key first, and its row after that.
    Should this process die before, the sweep does it.
    """
    for consumer, key in {(consumer, key) for name, type, key in settled if key for consumer in _concerned(name, type)}:
        with database.atomic():
            ordering.release_next(consumer, key)


def _concerned(name: str, type: str) -> list[Consumer]:
    return [each for each in consumers.registered() if each.name == name or (not name and each.wants(type))]

"""The story of a message, or of all messages about a subject: what happened, when, and what is still to happen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime

from django.db.models import Q

from messaging.actions import audit
from messaging.history.story import Entry, Kind, Story
from messaging.history.story_entries import Rows, entries_of
from messaging.models import ActionOnMessage, DeliveryAttempt, Effect, EffectAttempt, InboxMessage, OutboxMessage
from messaging.validation.texts import storable_text

#: Rows of each table that a story reads, the newest ones.
ROW_LIMIT = 500

_LAST = datetime.max.replace(tzinfo=UTC)


def for_message(message_id: str) -> Story:
    """Return the story of one message at all its consumers; empty where none has that id. Six queries at most."""
    named = Q(message_id=storable_text(message_id))
    return _story(named, named)


def for_subject(subject: str) -> Story:
    """Return the story of all messages about `subject`, told together; empty where there are none. Seven queries at
    most.

    Rows of these messages that lost their subject on the way belong to it.
    """
    if not subject:
        return Story(entries=())  # it would be everything that has no subject
    subject = storable_text(subject)
    newest = OutboxMessage.objects.filter(subject=subject).order_by("-id").values_list("message_id", flat=True)
    ids = list(newest[:ROW_LIMIT])
    return _story(Q(subject=subject), Q(subject=subject) | Q(message_id__in=ids))


def _story(of_outbox: Q, of_inbox: Q) -> Story:
    outbox = list(OutboxMessage.objects.filter(of_outbox).defer("body", "headers").order_by("-id")[: ROW_LIMIT + 1])
    inbox = list(
        InboxMessage.objects.filter(of_inbox)
        .defer("body", "headers", "body_truncated")
        .order_by("-id")[: ROW_LIMIT + 1]
    )
    truncated = len(outbox) > ROW_LIMIT or len(inbox) > ROW_LIMIT
    inbox_ids = [row.pk for row in inbox]
    # A payload that somebody looked at is in the audit log; it is no part of what happened to the message.
    message_ids = {row.message_id for row in outbox} | {row.message_id for row in inbox}
    acted_on = ActionOnMessage.objects.filter(message_id__in=message_ids)
    acted_on = acted_on.exclude(action__action=audit.Action.VIEW_PAYLOAD).select_related("action").order_by("-id")
    effects = list(Effect.objects.filter(inbox_message__in=inbox_ids).defer("payload"))
    tries = EffectAttempt.objects.filter(effect__in=[effect.pk for effect in effects]).order_by("-id")
    rows = Rows(
        outbox=outbox[:ROW_LIMIT],
        inbox=inbox[:ROW_LIMIT],
        attempts=list(DeliveryAttempt.objects.filter(inbox_message__in=inbox_ids).defer("traceback")),
        effects=effects,
        effect_attempts=list(tries[:ROW_LIMIT]) if effects else [],
        actions=list(acted_on[:ROW_LIMIT]),
    )
    return Story(entries=tuple(_in_order(entries_of(rows, complete=not truncated))), truncated=truncated)


def _in_order(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Put entries in the order of their times, the open ones last, and measure the gaps. Of entries of the same moment
    the cause comes first."""
    order = list(Kind)

    def place(entry: Entry) -> tuple[bool, datetime, int, int]:
        return entry.is_open, entry.at or entry.due or _LAST, entry.attempt, order.index(entry.kind)

    before = None
    for entry in sorted(entries, key=place):
        if entry.at is not None:
            entry = replace(entry, gap=entry.at - before if before else None)
            before = entry.at
        yield entry

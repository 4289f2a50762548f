"""A story on a page: entries of a timeline in words, with links to the rows they were read from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlencode

from django.http import HttpRequest
from django.template.defaultfilters import truncatechars
from django.utils.formats import date_format
from django.utils.safestring import SafeString
from django.utils.timezone import localtime

from messaging.admin import words
from messaging.admin.links import admin_url
from messaging.history.timeline import Entry, Kind, Story
from messaging.masking import masked_text
from messaging.models import OutboxMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a story as the page shows it. `date` is set where it differs from the line before."""

    icon: SafeString
    title: str
    url: str
    detail: str
    is_open: bool
    at: datetime | None
    date: str
    clock: str
    gap: str
    took: str
    type: str


def may_read_stories(request: HttpRequest) -> bool:
    """A story is told from both tables: whoever reads it may read both."""
    return request.user.has_perms(["messaging.view_outboxmessage", "messaging.view_inboxmessage"])


def story_url(subject: str) -> str:
    """Return the address of the story of all messages about `subject`."""
    return f"{admin_url('messaging_outboxmessage_story')}?{urlencode({'subject': subject})}"


def lines(story: Story, *, unmasked: bool) -> Iterator[Line]:
    """Put a story in words, phone numbers only if `unmasked`. Each line says its message's type where there are
    several messages."""
    several = len(story.message_ids) > 1
    date_before = said_before = ""
    for entry in story.entries:
        date = date_format(localtime(entry.at), "j M Y") if entry.at else ""
        words_of_it = title(entry)
        detail = entry.detail if unmasked else masked_text(entry.detail)
        yield Line(
            icon=words.icon(entry.kind),
            title=words_of_it,
            url=_row_url(entry),
            detail=truncatechars(detail, 300) if entry.detail != said_before else "",
            is_open=entry.is_open,
            at=entry.at,
            date=date if date != date_before else "",
            clock=words.clock(entry.at) if entry.at else "",
            gap=f"+ {words.span(entry.gap)}" if entry.gap is not None else "",
            took=words.span(entry.duration) if entry.duration else "",
            type=entry.type if several and entry.type not in words_of_it else "",
        )
        date_before = date or date_before
        said_before = entry.detail


def title(entry: Entry) -> str:
    """Say what an entry tells, in a few words."""
    if entry.effect:
        return f"{entry.consumer}: {entry.effect} {_of_effect(entry)}"
    if entry.outbox_id is not None:
        return _of_outbox(entry)
    if entry.inbox_id is not None:
        return f"{entry.consumer}: {_of_inbox(entry)}"
    return f"{entry.action}, by {entry.actor}"


def _of_outbox(entry: Entry) -> str:
    where = f"attempt {entry.attempt} at {entry.consumer}" if entry.consumer else ""
    match entry.kind:
        case Kind.WRITTEN:
            why = _WHY.get(entry.origin, "")
            return f"{where or entry.type} written{f', {why}' if why else ''}"
        case Kind.PUBLISHED:
            return f"{where} published, confirmed by RabbitMQ".lstrip()
        case Kind.FAILED:
            return f"{where}: refused by the broker" if where else "refused by the broker"
        case Kind.CANCELLED:
            return f"{where or entry.type}: cancelled, will not be published"
        case Kind.UNROUTABLE:
            return f"{where or entry.type}: unroutable, {_next_try(entry)}"
        case Kind.UNHANDLED:
            return f"{entry.consumer}: {_of_inbox(entry)}"
        case _:
            return f"{where or entry.type}: {_to_be_published(entry)}"


#: Why a row was written, where that is not plain.
_WHY = {
    OutboxMessage.Origin.REPLAY.value: "as a replay",
    OutboxMessage.Origin.RECONCILE.value: "because it was lost on the way",
    OutboxMessage.Origin.TURN.value: "because its turn has come",
}


def _of_inbox(entry: Entry) -> str:
    again = f" at attempt {entry.attempt}" if entry.attempt > 1 else ""
    match entry.kind:
        case Kind.RECEIVED:
            return "received from elsewhere"
        case Kind.HANDLED:
            return f"handled{again}"
        case Kind.ATTEMPT_FAILED:
            return f"attempt {entry.attempt} failed"
        case Kind.REJECTED:
            return f"rejected{again}"
        case Kind.CRASHED:
            return f"a process died in attempt {entry.attempt}"
        case Kind.DEAD:
            return "dead, will not be tried again"
        case Kind.DISCARDED:
            return "discarded, nothing more comes of it"
        case Kind.WAITING:
            return "waits for its turn"
        case _:
            return f"published, not yet handled{f' (attempt {entry.attempt})' if entry.attempt > 1 else ''}"


def _of_effect(entry: Entry) -> str:
    match entry.kind:
        case Kind.INTENDED:
            return "intended"
        case Kind.EFFECT_DONE:
            return "done" + (f" at attempt {entry.attempt}" if entry.attempt > 1 else "")
        case Kind.EFFECT_NOT_DONE:
            return f"attempt {entry.attempt} failed: not done"
        case Kind.EFFECT_DOUBTFUL:
            return f"attempt {entry.attempt} is in doubt: done or not"
        case Kind.EFFECT_DONE_LATE:
            return f"attempt {entry.attempt} was done, and its answer came too late to count"
        case Kind.EFFECT_FAILED:
            return "failed, will not be tried again"
        case Kind.EFFECT_UNKNOWN:
            return "unknown: done or not, a person has to settle it"
        case Kind.EFFECT_SENDING:
            return _under_way(entry)
        case _:
            return _to_be_done(entry)


def _to_be_published(entry: Entry) -> str:
    if _is_due(entry):
        return f"not yet confirmed by RabbitMQ, {_due_for(entry)}"
    return f"to be published {_when(entry)}"


def _next_try(entry: Entry) -> str:
    return f"next try {_due_for(entry)}" if _is_due(entry) else f"next try {_when(entry)}"


def _to_be_done(entry: Entry) -> str:
    again = "to be tried again" if entry.attempt else "to be done"
    if _is_due(entry):
        return f"{again}, {_due_for(entry)}, not begun"
    return f"{again} {_when(entry)}"


def _under_way(entry: Entry) -> str:
    if _is_due(entry):
        return "begun, and no answer in its time: done or not"
    return f"attempt {entry.attempt} begun, no answer yet"


def _is_due(entry: Entry) -> bool:
    return entry.due is None or entry.due <= datetime.now(UTC)


def _due_for(entry: Entry) -> str:
    """Say for how long it has been due; never that it happens now: nobody knows whether broker and worker run."""
    return f"due for {words.span(datetime.now(UTC) - entry.due)}" if entry.due else "due"


def _when(entry: Entry) -> str:
    assert entry.due is not None, "what is due at no time is due"
    return f"in {words.span(entry.due - datetime.now(UTC))}, not before {localtime(entry.due):%H:%M:%S}"


def _row_url(entry: Entry) -> str:
    rows = {
        "inboxmessage": entry.inbox_id,
        "outboxmessage": entry.outbox_id,
        "effect": entry.effect_id,
        "operatoraction": entry.action_id,
    }
    return next(admin_url(f"messaging_{name}_change", pk) for name, pk in rows.items() if pk is not None)

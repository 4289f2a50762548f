"""A story on a page: entries of a timeline in words, with links to the rows they were read from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

from django.http import HttpRequest
from django.template.defaultfilters import truncatechars
from django.utils.formats import date_format
from django.utils.timezone import localtime

from messaging.admin import words
from messaging.admin.links import admin_url
from messaging.history.timeline import Entry, Kind, Story
from messaging.masking import masked_text
from messaging.models import OutboxMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a story as the page shows it. `date` is set where it differs from the line before, `type` where the
    story is about several messages."""

    entry: Entry
    title: str
    url: str
    detail: str
    date: str
    type: str


def may_read_stories(request: HttpRequest) -> bool:
    """Whether the user may read both tables that a story is read from."""
    return request.user.has_perms(["messaging.view_outboxmessage", "messaging.view_inboxmessage"])


def story_url(subject: str) -> str:
    """Return the address of the story of all messages about `subject`."""
    return f"{admin_url('messaging_outboxmessage_story')}?{urlencode({'subject': subject})}"


def lines(story: Story, *, unmasked: bool) -> Iterator[Line]:
    """Put a story in words, phone numbers only if `unmasked`."""
    several = len(story.message_ids) > 1
    date_before = detail_before = ""
    for entry in story.entries:
        date = date_format(localtime(entry.at), "j M Y") if entry.at else ""
        text = title(entry)
        detail = entry.detail if unmasked else masked_text(entry.detail)
        yield Line(
            entry=entry,
            title=text,
            url=admin_url(f"messaging_{entry.row._meta.model_name}_change", entry.row.pk),
            detail=truncatechars(detail, 300) if entry.detail != detail_before else "",
            date=date if date != date_before else "",
            type=entry.type if several and entry.type not in text else "",
        )
        date_before, detail_before = date or date_before, entry.detail


_TITLES = {
    Kind.ACTED: "{action}, by {actor}",
    Kind.WRITTEN: "{what} written{why}",
    Kind.PUBLISHED: "{where} published, confirmed by RabbitMQ",
    Kind.FAILED: "{what}: refused by RabbitMQ",
    Kind.CANCELLED: "{what}: cancelled, will not be published",
    Kind.UNROUTABLE: "{what}: unroutable, next attempt {due}",
    Kind.PENDING: "{what}: {pending} {due}",
    Kind.RECEIVED: "{consumer}: received from elsewhere",
    Kind.HANDLED: "{consumer}: handled{again}",
    Kind.ATTEMPT_FAILED: "{consumer}: attempt {attempt} failed",
    Kind.REJECTED: "{consumer}: rejected{again}",
    Kind.CRASHED: "{consumer}: a process died in attempt {attempt}",
    Kind.DEAD: "{consumer}: dead, will not be tried again",
    Kind.DISCARDED: "{consumer}: discarded, given up for good",
    Kind.WAITING: "{consumer}: waits for earlier messages",
    Kind.UNHANDLED: "{consumer}: published, not yet handled{again}",
    Kind.INTENDED: "{consumer}: {effect} intended",
    Kind.EFFECT_DUE: "{consumer}: {effect} to be {done}{effect_due}",
    Kind.EFFECT_SENDING: "{consumer}: {effect} {sending}",
    Kind.EFFECT_DONE: "{consumer}: {effect} done{again}",
    Kind.EFFECT_NOT_DONE: "{consumer}: {effect} attempt {attempt} failed: not done",
    Kind.EFFECT_DOUBTFUL: "{consumer}: {effect} attempt {attempt} is in doubt",
    Kind.EFFECT_DONE_LATE: "{consumer}: {effect} attempt {attempt} was done, and its answer came too late to count",
    Kind.EFFECT_FAILED: "{consumer}: {effect} failed, will not be tried again",
    Kind.EFFECT_UNKNOWN: "{consumer}: {effect}: outcome unknown, a person has to settle it",
}
#: Why a row was written, unless that is plain.
_WHY = {
    OutboxMessage.Origin.REPLAY.value: ", as a replay",
    OutboxMessage.Origin.RECONCILE.value: ", because it was lost on the way",
    OutboxMessage.Origin.TURN.value: ", because the earlier messages are settled",
}


def title(entry: Entry) -> str:
    """Say what an entry tells, in a few words."""
    where = f"attempt {entry.attempt} at {entry.consumer}" if entry.consumer else ""
    is_due = entry.due is None or entry.due <= datetime.now(UTC)
    due = _due(entry)
    text = _TITLES[entry.kind].format(
        action=entry.action,
        actor=entry.actor,
        attempt=entry.attempt,
        consumer=entry.consumer,
        effect=entry.effect,
        where=where,
        what=where or entry.type,
        why=_WHY.get(getattr(entry.row, "origin", ""), ""),
        again=f" at attempt {entry.attempt}" if entry.attempt > 1 else "",
        due=due,
        pending="not yet confirmed by RabbitMQ," if is_due else "to be published",
        done="tried again" if entry.attempt else "done",
        effect_due=f", {due}, not begun" if is_due else f" {due}",
        sending="begun, no answer in time: in doubt" if is_due
        else f"attempt {entry.attempt} begun, no answer yet",
    )  # fmt: skip
    return text.strip()


def _due(entry: Entry) -> str:
    """Say when it is due, or for how long it has been, but not that it happens now: no relay or worker may run."""
    if entry.due is None:
        return "due"
    left = entry.due - datetime.now(UTC)
    if left <= timedelta(0):
        return f"due for {words.span(-left)}"
    return f"in {words.span(left)}, not before {localtime(entry.due):%H:%M:%S}"

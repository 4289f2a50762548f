"""States in words: an icon, what it means, what happens next. The same as in docs/states.md."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.utils.formats import date_format
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.timezone import localtime, now

from messaging.models import InboxMessage, OutboxMessage
from messaging.operations.timeline import Kind

#: Icon and tone of each state, outcome and kind of entry.
LOOKS = {
    "written": ("✎", "calm"),
    "pending": ("…", "waiting"),
    "published": ("↗", "calm"),
    "unroutable": ("!", "warning"),
    "failed": ("✕", "bad"),
    "handled": ("✓", "good"),
    "retrying": ("↻", "warning"),
    "dead": ("✕", "bad"),
    "attempt failed": ("↻", "warning"),
    "rejected": ("✕", "bad"),
    "crashed": ("!", "bad"),
    "unhandled": ("…", "waiting"),
}


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a row's state means, and what happens next."""

    meaning: str
    what_next: str


def pill(state: str, word: str = "") -> SafeString:
    """Return a state as icon and word: never by colour alone."""
    icon, tone = LOOKS[state]
    return format_html(
        '<span class="messaging-pill messaging-{}"><span aria-hidden="true">{}</span> {}</span>',
        tone,
        icon,
        word or state,
    )


def icon(kind: Kind) -> SafeString:
    """Return the icon of an entry of a story; its words stand beside it."""
    glyph, tone = LOOKS[kind]
    return format_html('<span class="messaging-icon messaging-{}" aria-hidden="true">{}</span>', tone, glyph)


def moment(time: datetime) -> str:
    """Return a time to the millisecond, as `21 Nov 2026 02:52:04.025`."""
    return f"{date_format(localtime(time), 'j M Y')} {clock(time)}"


def short_moment(time: datetime) -> str:
    """Return a time to the second, without the year where it is this one."""
    local = localtime(time)
    return date_format(local, "j M H:i:s" if local.year == localtime().year else "j M Y H:i:s")


def clock(time: datetime) -> str:
    """Return the time of day to the millisecond."""
    local = localtime(time)
    return f"{local:%H:%M:%S}.{local.microsecond // 1000:03d}"


def span(time: timedelta) -> str:
    """Return a length of time in its two largest units that matter: 20 ms, 3.2 s, 4 min 10 s, 2 h 5 min, 3 d 4 h."""
    seconds = time.total_seconds()
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    for unit, larger, smaller, size in (("min", 3600, "s", 60), ("h", 86400, "min", 3600)):
        if seconds < larger:
            rest = int(seconds % size) // (size // 60)
            return f"{int(seconds // size)} {unit} {rest} {smaller}"
    return f"{int(seconds // 86400)} d {int(seconds % 86400) // 3600} h"


def explain_outbox(row: OutboxMessage) -> Explanation:
    """Say how far a message has come on its way to the broker."""
    due = short_moment(row.publish_at) if row.publish_at > now() else ""
    match row.state:
        case OutboxMessage.State.PUBLISHED:
            audience = ", ".join(row.expected_consumers) or "whoever is bound to its type"
            return Explanation("The broker confirmed it: every queue it was routed to has it.", f"For {audience}.")
        case OutboxMessage.State.UNROUTABLE:
            return Explanation(
                "Some queue that should have it did not take it; the last error says which.",
                f"It is tried again by itself{f' at {due}' if due else ''}, at least once a minute. "
                "Restore the queue, binding or permission that is named.",
            )
        case OutboxMessage.State.FAILED:
            return Explanation(
                "The broker refuses this very message; the last error says why.",
                "Nothing by itself: a person has to mend the cause.",
            )
        case _ if due:
            return Explanation("It is committed, and rests.", f"It is published at {due}.")
        case _:
            return Explanation(
                "It is committed, and not yet confirmed by the broker.",
                "A relay publishes it. If this lasts: is a web, consumer or run_relay process running, "
                "and RabbitMQ reachable?",
            )


def explain_inbox(row: InboxMessage) -> Explanation:
    """Say what a consumer has done about a message."""
    match row.state:
        case InboxMessage.State.HANDLED:
            return Explanation(
                f"{row.consumer} handled it, and its effects are committed.",
                "Nothing: a further delivery would be recognised as a duplicate.",
            )
        case InboxMessage.State.RETRYING:
            return Explanation(
                f"{row.consumer} has not managed it yet; attempt {row.attempt} is the next one that may run.",
                "An outbox row with the same message id brings it once its rest is over.",
            )
        case _:
            return Explanation(
                f"{row.consumer} could not deal with it, and it will not be tried again.",
                "Nothing by itself: the reason below is for a person. It is kept, and never pruned.",
            )

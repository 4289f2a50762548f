"""States as icon and word, and times as people read them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from django.utils.formats import date_format
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.timezone import localtime

from messaging.history.effect_trouble import failed_attempts, is_overdue
from messaging.models import Effect, InboxMessage, OutboxMessage

#: Icon and tone of each state, outcome and kind of entry; those of effects without the word.
LOOKS = {
    "written": ("✎", "calm"),
    "pending": ("…", "waiting"),
    "published": ("↗", "calm"),
    "received": ("↘", "calm"),
    "unroutable": ("!", "warning"),
    "failed": ("✕", "bad"),
    "handled": ("✓", "good"),
    "retrying": ("↻", "warning"),
    "dead": ("✕", "bad"),
    "attempt failed": ("↻", "warning"),
    "rejected": ("✕", "bad"),
    "crashed": ("!", "bad"),
    "unhandled": ("…", "waiting"),
    "cancelled": ("⊘", "calm"),
    "discarded": ("⊘", "calm"),
    "waiting": ("…", "waiting"),
    "effects due": ("…", "waiting"),
    "intended": ("✎", "calm"),
    "due": ("…", "waiting"),
    "sending": ("↗", "waiting"),
    "done": ("✓", "good"),
    "unknown": ("?", "bad"),
    "failing": ("↻", "warning"),
    "overdue": ("!", "warning"),
    "not done": ("↻", "warning"),
    "doubtful": ("?", "warning"),
    "done late": ("!", "bad"),
    "acted": ("↻", "calm"),
}


def pill(state: str, word: str = "") -> SafeString:
    """Return a state as icon and word: never by colour alone."""
    name = state.replace("_", " ")
    glyph, tone = LOOKS[name]
    text = '<span class="messaging-pill messaging-{}"><span aria-hidden="true">{}</span> {}</span>'
    return format_html(text, tone, glyph, word or name)


def pill_of(row: OutboxMessage | InboxMessage | Effect) -> SafeString:
    """Return the state of a row: of an effect also that it is failing or overdue, of a handled message also what became
    of its effects and callbacks."""
    if isinstance(row, Effect):
        if row.is_failing:
            return pill("failing", f"{row.get_state_display()}, {failed_attempts(row)}")
        if is_overdue(row):
            return pill("overdue", f"{row.get_state_display()}, overdue")
        return pill(row.state, "given up" if row.given_up else "")
    if isinstance(row, InboxMessage) and row.state in {InboxMessage.State.HANDLED, InboxMessage.State.EFFECTS_DUE}:
        if trouble := getattr(row, "effect_trouble", None):
            return pill(trouble, f"handled, effect {trouble}")
        if getattr(row, "callback_failed", False):
            return pill("failed", "handled, callback failed")
    return pill(row.state)


def with_commands(sentence: str) -> SafeString:
    """Return a sentence in which what stands between backquotes is a command."""
    text = sentence[:1].upper() + sentence[1:]
    parts = (
        format_html("<code>{}</code>" if number % 2 else "{}", each) for number, each in enumerate(text.split("`"))
    )
    return format_html_join("", "{}", ((part,) for part in parts))


def icon(kind: str) -> SafeString:
    """Return the icon of an entry of a story, to stand beside its words."""
    glyph, tone = LOOKS[kind.removeprefix("effect ")]
    return format_html('<span class="messaging-icon messaging-{}" aria-hidden="true">{}</span>', tone, glyph)


def moment(time: datetime) -> str:
    """Return a time to the millisecond, as `21 Nov 2026 02:52:04.025`."""
    return f"{date_format(localtime(time), 'j M Y')} {clock(time)}"


def short_moment(time: datetime) -> str:
    """Return a time to the second, without the current year."""
    local = localtime(time)
    return date_format(local, "j M H:i:s" if local.year == localtime(datetime.now(UTC)).year else "j M Y H:i:s")


def clock(time: datetime) -> str:
    """Return the time of day to the millisecond."""
    return localtime(time).time().isoformat("milliseconds")


def span(time: timedelta) -> str:
    """Return a length of time in its two largest units that matter: 20 ms, 3.2 s, 4 min 10 s, 2 h 5 min, 3 d 4 h."""
    seconds = time.total_seconds()
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"

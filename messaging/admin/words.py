"""States as icon and word, and times as people read them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from django.utils.formats import date_format
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.timezone import localtime

from messaging.history.effect_trouble import failed_attempts, is_overdue
from messaging.history.timeline import Kind
from messaging.models import Effect

#: Icon and tone of each state, outcome and kind of entry.
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
    # Effects.
    "intended": ("✎", "calm"),
    "sending": ("↗", "waiting"),
    "done": ("✓", "good"),
    "unknown": ("?", "bad"),
    "failing": ("↻", "warning"),
    "overdue": ("!", "warning"),
    # Of attempts of effects.
    "not done": ("↻", "warning"),
    "doubtful": ("?", "warning"),
    "done late": ("!", "bad"),
    "effect due": ("…", "waiting"),
    "effect sending": ("↗", "waiting"),
    "effect not done": ("↻", "warning"),
    "effect doubtful": ("?", "warning"),
    "effect done late": ("!", "bad"),
    "effect done": ("✓", "good"),
    "effect failed": ("✕", "bad"),
    "effect unknown": ("?", "bad"),
    # What people did.
    "acted": ("↻", "calm"),
}


def pill(state: str, word: str = "") -> SafeString:
    """Return a state as icon and word: never by colour alone."""
    icon, tone = LOOKS[state.replace("_", " ")]
    return format_html(
        '<span class="messaging-pill messaging-{}"><span aria-hidden="true">{}</span> {}</span>',
        tone,
        icon,
        word or state.replace("_", " "),
    )


def effect_pill(effect: Effect) -> SafeString:
    """Return an effect's state; *failing* if an attempt failed and another one follows."""
    if effect.is_failing:
        return pill("failing", f"{effect.get_state_display()}, {failed_attempts(effect)}")
    if is_overdue(effect):
        return pill("overdue", f"{effect.get_state_display()}, overdue")
    return pill(effect.state, "given up" if effect.given_up else "")


def icon(kind: Kind) -> SafeString:
    """Return the icon of an entry of a story, to stand beside its words."""
    glyph, tone = LOOKS[kind]
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

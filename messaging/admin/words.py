"""States in words: an icon, what it means, what happens next. The same as in docs/states.md."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from django.utils.formats import date_format
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.timezone import localtime

from messaging.history.effect_trouble import EffectTrouble, failed_attempts, is_overdue
from messaging.history.timeline import Kind
from messaging.models import Effect, InboxMessage, OutboxMessage

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


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a row's state means, and what happens next."""

    meaning: str
    what_next: str


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
    """Return an effect's state; *failing* where an attempt failed and another one follows."""
    if effect.is_failing:
        return pill("failing", f"{effect.get_state_display()}, {failed_attempts(effect)}")
    if is_overdue(effect):
        return pill("overdue", f"{effect.get_state_display()}, overdue")
    return pill(effect.state, "given up" if effect.given_up else "")


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


def explain_outbox(row: OutboxMessage) -> Explanation:
    """Say how far a message has come on its way to the broker."""
    due = short_moment(row.publish_at) if row.publish_at > datetime.now(UTC) else ""
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
                f"Nothing by itself: mend the cause, then replay the message at {row.consumer}."
                if row.consumer
                else "Nothing by itself: mend the cause, then publish it now, or cancel it.",
            )
        case OutboxMessage.State.CANCELLED:
            return Explanation(
                "A person decided that it shall not be published; the last error says who.",
                "Nothing. If it was to bring a message to one consumer again, that message is dead there, and can be "
                "replayed.",
            )
        case _ if due:
            return Explanation(
                "It is committed, and rests.", f"A relay publishes it, not before {due}, unless it is cancelled."
            )
        case _:
            return Explanation(
                "It is committed, and not yet confirmed by the broker.",
                "A relay publishes it. If this lasts: is a web, consumer or run_relay process running, "
                "and RabbitMQ reachable?",
            )


def explain_inbox(row: InboxMessage, *, effect_trouble: str = "", callback_failed: bool = False) -> Explanation:
    """Say what a consumer has done about a message. `effect_trouble` is the worst that an effect of it has;
    `callback_failed`: a callback of `on_commit` did."""
    match row.state:
        case InboxMessage.State.HANDLED | InboxMessage.State.EFFECTS_DUE if effect_trouble:
            return Explanation(
                f"{row.consumer} handled it, and its changes in the database are committed. An effect of it "
                f"outside the database {'has' if effect_trouble == EffectTrouble.FAILED else 'is'} {effect_trouble}.",
                "The story below leads to that effect, whose page says what to do.",
            )
        case InboxMessage.State.HANDLED if callback_failed:
            return Explanation(
                f"{row.consumer} handled it, and its changes in the database are committed. A function that its "
                "handler registered with `transaction.on_commit` failed after that.",
                "Nothing by itself: the attempt below says what failed. Do by hand what it left undone.",
            )
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
        case InboxMessage.State.EFFECTS_DUE:
            return Explanation(
                f"{row.consumer} handled it, and something outside the database is still to be done for it.",
                f"A process of {row.consumer} carries it out; the story says how far it has come.",
            )
        case InboxMessage.State.WAITING:
            return Explanation(
                f"It waits for its turn: {row.consumer} handles the messages of one ordering key one after the other.",
                "It is sent again once the earlier ones are handled, dead or cancelled.",
            )
        case InboxMessage.State.DISCARDED:
            return Explanation(
                "It was dead, and a person decided that nothing more shall come of it; the reason says who.",
                "Nothing. It is kept for a while, so that a copy of it is recognised.",
            )
        case _:
            return Explanation(
                f"{row.consumer} could not deal with it, and it will not be tried again.",
                "Nothing by itself: the reason below is for a person, who can replay or discard it. It is kept, and "
                "never pruned.",
            )


def explain_effect(effect: Effect) -> Explanation:
    """Say how far an effect has come."""
    match effect.state:
        case Effect.State.INTENDED:
            tried = f"{failed_attempts(effect)}; it was not done." if effect.attempts else "Not begun yet."
            again = "tried again" if effect.attempts else "begun"
            if effect.send_at > datetime.now(UTC):
                return Explanation(tried, f"It is {again} at {short_moment(effect.send_at)}, if its consumer runs.")
            return Explanation(
                tried,
                f"It has been due since {short_moment(effect.send_at)}, and is {again} as soon as a process of its "
                f"consumer takes it. If this lasts: does run_consumer {effect.consumer} run?",
            )
        case Effect.State.SENDING:
            return Explanation(
                "Somebody is at it, or was when its process died.",
                "If no answer comes in time, it is repeated, or asked for, where that is safe, and else unknown.",
            )
        case Effect.State.DONE:
            return Explanation("It is done.", "Nothing.")
        case Effect.State.FAILED if effect.given_up:
            return Explanation(
                "A person gave it up; the error says who, and the attempts say what came before.", "Nothing."
            )
        case Effect.State.FAILED:
            return Explanation(
                "It was not done; the error says why.",
                "Nothing by itself. Mend the cause, then say that it was not done: it is carried out again. Or give "
                "it up.",
            )
        case _:
            return Explanation(
                "It may have been done or not: the answer was lost, and repeating it blindly could do it twice.",
                "Nothing by itself. Look into the log of the other side, and settle it.",
            )

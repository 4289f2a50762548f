"""What the state of a row means, and what happens next: the same as in docs/states.md."""

from __future__ import annotations

from datetime import UTC, datetime

from messaging.admin.words import short_moment
from messaging.history.effect_trouble import EffectTrouble, failed_attempts
from messaging.models import Effect, InboxMessage, OutboxMessage

_OUTBOX = {
    "published": ("RabbitMQ confirmed it: every queue to which it was routed has it.", "For {audience}."),
    "unroutable": (
        "A queue that should have it did not take it; the last error says which.",
        "It is tried again by itself{at}, at least once a minute. Restore the queue, binding or permission that is "
        "named.",
    ),
    "failed": (
        "RabbitMQ refuses this message itself; the last error says why.",
        "Nothing by itself: remove the cause, then {cure}.",
    ),
    "cancelled": (
        "A person decided not to publish it; the last error says who.",
        "Nothing. If it was for one consumer alone, the message is dead there, and can be replayed.",
    ),
    "later": ("It is committed, and waits for its time.", "A relay publishes it after {due}, unless it is cancelled."),
    "pending": (
        "It is committed, and not yet confirmed by RabbitMQ.",
        "A relay publishes it. If this lasts: is a web, consumer or run_relay process running, and RabbitMQ reachable?",
    ),
}
_HANDLED = "{consumer} handled it, and its changes in the database are committed."
_INBOX = {
    "effect trouble": (
        _HANDLED + " An effect of it outside the database {trouble}.",
        "The story below leads to that effect, whose page says what to do.",
    ),
    "callback failed": (
        _HANDLED + " A function that its handler registered with `transaction.on_commit` failed after that.",
        "Nothing by itself: the attempt below says what failed. Do by hand what it left undone.",
    ),
    "handled": (
        "{consumer} handled it, and its effects are committed.",
        "Nothing: a further delivery would be recognised as a duplicate.",
    ),
    "retrying": (
        "{consumer} has not handled it yet; only attempt {attempt} may run next.",
        "An outbox row with the same message id brings it once its delay is over.",
    ),
    "effects_due": (
        "{consumer} handled it, and an effect of it outside the database is still to be carried out.",
        "A process of {consumer} carries it out; the story says how far it is.",
    ),
    "waiting": (
        "It waits for earlier messages: {consumer} handles those of one ordering key one after the other.",
        "It is sent again once the earlier ones are handled, dead or cancelled.",
    ),
    "discarded": (
        "It was dead, and a person gave it up for good; the reason says who.",
        "Nothing. It is kept for a while, so that a copy of it is recognised.",
    ),
    "dead": (
        "{consumer} could not handle it, and it will not be tried again.",
        "Nothing by itself: read the reason below, then replay or discard it. It is never pruned.",
    ),
}
_EFFECT = {
    "later": ("{tried}", "It is {again} at {due}, if its consumer runs."),
    "intended": (
        "{tried}",
        "It has been due since {due}, and is {again} as soon as a process of its consumer takes it. If this lasts: "
        "does run_consumer {consumer} run?",
    ),
    "sending": (
        "A process is carrying it out, or died while it did.",
        "If no answer comes in time, it is repeated or asked for if that is safe, else it is unknown.",
    ),
    "done": ("It is done.", "Nothing."),
    "given up": ("A person gave it up; the error says who, and the attempts say what came before.", "Nothing."),
    "failed": (
        "It was not done; the error says why.",
        "Nothing by itself. Remove the cause, then say that it was not done: it is carried out again. Or give it up.",
    ),
    "unknown": (
        "It may have been done or not: the answer was lost, and repeating it blindly could do it twice.",
        "Nothing by itself. Look into the log of the other side, and settle it.",
    ),
}


def explain(row: OutboxMessage | InboxMessage | Effect) -> tuple[str, str]:
    """Return what the row's state means, and what happens next.

    An inbox message may have the attributes `effect_trouble` (the worst trouble of its effects) and `callback_failed`,
    as the list of the admin reads them.
    """
    if isinstance(row, OutboxMessage):
        return _of_outbox(row)
    return _of_inbox(row) if isinstance(row, InboxMessage) else _of_effect(row)


def _of_outbox(row: OutboxMessage) -> tuple[str, str]:
    due = short_moment(row.publish_at) if row.publish_at > datetime.now(UTC) else ""
    return _filled(
        _OUTBOX["later" if due and row.state == OutboxMessage.State.PENDING else row.state],
        audience=", ".join(row.expected_consumers) or "every queue that is bound to its type",
        at=f" at {due}" if due else "",
        due=due,
        cure=f"replay the message at {row.consumer}" if row.consumer else "publish it now, or cancel it",
    )


def _of_inbox(row: InboxMessage) -> tuple[str, str]:
    case, trouble = row.state, getattr(row, "effect_trouble", None)
    if trouble and row.state in {InboxMessage.State.HANDLED, InboxMessage.State.EFFECTS_DUE}:
        case = "effect trouble"
    elif row.state == InboxMessage.State.HANDLED and getattr(row, "callback_failed", False):
        case = "callback failed"
    verb = "has" if trouble == EffectTrouble.FAILED else "is"
    return _filled(_INBOX[case], consumer=row.consumer, attempt=row.attempt, trouble=f"{verb} {trouble}")


def _of_effect(effect: Effect) -> tuple[str, str]:
    case = effect.state
    if effect.state == Effect.State.INTENDED and effect.send_at > datetime.now(UTC):
        case = "later"
    elif effect.given_up and effect.state == Effect.State.FAILED:
        case = "given up"
    return _filled(
        _EFFECT[case],
        tried=f"{failed_attempts(effect)}; it was not done." if effect.attempts else "Not begun yet.",
        again="tried again" if effect.attempts else "begun",
        due=short_moment(effect.send_at),
        consumer=effect.consumer,
    )


def _filled(sentences: tuple[str, str], **facts: object) -> tuple[str, str]:
    meaning, what_next = sentences
    return meaning.format(**facts), what_next.format(**facts)

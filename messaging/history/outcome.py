"""How far all messages about a subject are, in a few words: for example for a list of orders."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from messaging import consumers
from messaging.history.effect_trouble import OVERDUE, first_trouble, is_overdue
from messaging.models import Effect, InboxMessage, OutboxMessage

#: States, the worst first: those that need a person, those that go on by themselves, those that a person ended.
WORST_FIRST = (
    *("dead", "failed", "unknown", "unroutable", "failing", "retrying", "overdue"),
    *("pending", "unhandled", "waiting", "intended", "sending"),
    *("discarded", "cancelled", "done"),
)
#: What is said of a message, and of an effect, by state.
_SENT = {
    "failed": "{} refused by RabbitMQ",
    "overdue": "{} overdue, not published",
    "pending": "{} not published yet",
    "unroutable": "{} unroutable",
    "cancelled": "{} cancelled",
}
_RECEIVED = {
    "unhandled": "{type} begun by {consumer}",
    "retrying": "{type} failed at {consumer}, to be tried again",
    "waiting": "{type} waits for earlier messages at {consumer}",
    "dead": "{type} dead at {consumer}",
    "discarded": "{type} discarded at {consumer}",
}
_EFFECT = {
    "unknown": "{}: outcome unknown",
    "failed": "{} failed",
    "failing": "{} failed {times}, to be tried again",
    "overdue": "{} overdue, not done",
    "discarded": "{} given up",
    "intended": "{} not done yet",
    "sending": "{} not done yet",
}


@dataclass(frozen=True, slots=True)
class Fact:
    """Something that is not simply done: its state (of WORST_FIRST), and what has it, in words."""

    state: str
    words: str


#: If nothing else is to be reported.
ALL_DONE = Fact("done", "all handled")
NOTHING = Fact("done", "no message")


def of_subjects(subjects: Collection[str]) -> dict[str, list[Fact]]:
    """Return what is to be reported of the messages of each subject, the worst first; ALL_DONE if everything is done.

    Three queries, however many subjects. Messages whose rows were pruned are not known any more.
    """
    outbox = OutboxMessage.objects.filter(subject__in=subjects).defer("body", "headers", "last_error").order_by("pk")
    inbox = InboxMessage.objects.filter(subject__in=subjects).defer("body", "headers", "reason").order_by("pk")
    received = {row.pk: row for row in inbox}
    arrived = {(row.message_id, row.consumer) for row in received.values()}
    facts: dict[str, dict[Fact, None]] = defaultdict(dict)
    for sent in outbox:
        facts[sent.subject].update(dict.fromkeys(_of_outbox(sent, arrived)))
    for row in received.values():
        facts[row.subject].update(dict.fromkeys(_of_inbox(row)))
    for effect in Effect.objects.filter(inbox_message__in=list(received)).defer("payload"):
        facts[received[effect.inbox_message_id].subject].update(dict.fromkeys(_of_effect(effect)))
    return {
        subject: sorted(facts[subject], key=lambda fact: WORST_FIRST.index(fact.state)) or [ALL_DONE]
        if subject in facts else [NOTHING]
        for subject in subjects
    }  # fmt: skip


def _of_outbox(row: OutboxMessage, arrived: Collection[tuple[str, str]]) -> Iterator[Fact]:
    if row.state == OutboxMessage.State.PUBLISHED:
        for consumer in [row.consumer] if row.consumer else consumers.recording(row.expected_consumers):
            if (row.message_id, consumer) not in arrived:
                yield Fact("unhandled", f"{row.type} not handled by {consumer} yet")
        return
    state = row.state
    if state == OutboxMessage.State.PENDING and row.publish_at < datetime.now(UTC) - timedelta(seconds=OVERDUE):
        state = "overdue"
    yield Fact(state, _SENT[state].format(f"{row.type} for {row.consumer}" if row.consumer else row.type))


def _of_inbox(row: InboxMessage) -> Iterator[Fact]:
    first = row.state == InboxMessage.State.RETRYING and row.attempt == 1
    state = "unhandled" if first else row.state
    if state in _RECEIVED:
        yield Fact(state, _RECEIVED[state].format(type=row.type, consumer=row.consumer))


def _of_effect(effect: Effect) -> Iterator[Fact]:
    state = first_trouble(effect) or effect.state
    if state in Effect.OPEN and is_overdue(effect):
        state = "overdue"
    elif effect.given_up:
        state = "discarded"
    if state in _EFFECT:
        times = "once" if effect.attempts == 1 else f"{effect.attempts} times"
        yield Fact(str(state), _EFFECT[state].format(f"{effect.name} of {effect.consumer}", times=times))

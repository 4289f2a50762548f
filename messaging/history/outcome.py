"""How far all messages about a subject are, in a few words: for example for a list of orders."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from messaging.history.effect_trouble import OVERDUE, EffectTrouble, first_trouble, is_overdue
from messaging.models import Effect, InboxMessage, OutboxMessage

#: States, the worst first: those that need a person, those that go on by themselves, those that a person ended.
WORST_FIRST = (
    *("dead", "failed", "unknown", "unroutable", "failing", "retrying", "overdue"),
    *("pending", "unhandled", "waiting", "intended", "sending"),
    *("discarded", "cancelled", "done"),
)


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
    outbox = OutboxMessage.objects.filter(subject__in=subjects).defer("body", "headers", "last_error")
    inbox = InboxMessage.objects.filter(subject__in=subjects).defer("body", "headers", "reason")
    rows = {subject: _Rows([], []) for subject in subjects}
    for sent in outbox.order_by("pk"):
        rows[sent.subject].outbox.append(sent)
    received = list(inbox.order_by("pk"))
    effects: dict[int, list[Effect]] = {}
    for effect in Effect.objects.filter(inbox_message__in=[row.pk for row in received]).defer("payload"):
        effects.setdefault(effect.inbox_message_id, []).append(effect)
    for row in received:
        rows[row.subject].inbox.append((row, effects.get(row.pk, [])))
    return {subject: _told(found) for subject, found in rows.items()}


@dataclass(frozen=True, slots=True)
class _Rows:
    outbox: list[OutboxMessage]
    inbox: list[tuple[InboxMessage, list[Effect]]]


def _told(rows: _Rows) -> list[Fact]:
    if not (rows.outbox or rows.inbox):
        return [NOTHING]
    facts = dict.fromkeys([*_of_outbox(rows), *_of_inbox(rows.inbox)])
    return sorted(facts, key=lambda fact: WORST_FIRST.index(fact.state)) or [ALL_DONE]


def _of_outbox(rows: _Rows) -> Iterator[Fact]:
    there = {(row.message_id, row.consumer) for row, _ in rows.inbox}
    for sent in rows.outbox:
        about = f"{sent.type} for {sent.consumer}" if sent.consumer else sent.type
        match sent.state:
            case OutboxMessage.State.PUBLISHED:
                for consumer in [sent.consumer] if sent.consumer else sent.expected_consumers:
                    if (sent.message_id, consumer) not in there:
                        yield Fact("unhandled", f"{sent.type} not handled by {consumer} yet")
            case OutboxMessage.State.FAILED:
                yield Fact("failed", f"{about} refused by RabbitMQ")
            case OutboxMessage.State.PENDING if sent.publish_at < datetime.now(UTC) - timedelta(seconds=OVERDUE):
                yield Fact("overdue", f"{about} overdue, not published")
            case OutboxMessage.State.PENDING:
                yield Fact("pending", f"{about} not published yet")
            case state:
                yield Fact(state, f"{about} {state}")


def _of_inbox(rows: Iterable[tuple[InboxMessage, list[Effect]]]) -> Iterator[Fact]:
    for row, effects in rows:
        match row.state:
            case InboxMessage.State.HANDLED | InboxMessage.State.EFFECTS_DUE:
                pass
            case InboxMessage.State.RETRYING if row.attempt == 1:
                yield Fact("unhandled", f"{row.type} begun by {row.consumer}")
            case InboxMessage.State.RETRYING:
                yield Fact("retrying", f"{row.type} failed at {row.consumer}, to be tried again")
            case InboxMessage.State.WAITING:
                yield Fact("waiting", f"{row.type} waits for earlier messages at {row.consumer}")
            case state:
                yield Fact(state, f"{row.type} {state} at {row.consumer}")
        for effect in effects:
            yield from _of_effect(effect)


def _of_effect(effect: Effect) -> Iterator[Fact]:
    about = f"{effect.name} of {effect.consumer}"
    match first_trouble(effect):
        case EffectTrouble.UNKNOWN:
            yield Fact("unknown", f"{about}: done or not")
        case EffectTrouble.FAILED:
            yield Fact("failed", f"{about} failed")
        case EffectTrouble.FAILING:
            times = "once" if effect.attempts == 1 else f"{effect.attempts} times"
            yield Fact("failing", f"{about} failed {times}, to be tried again")
        case _ if is_overdue(effect):
            yield Fact("overdue", f"{about} overdue, not done")
        case _ if effect.given_up:
            yield Fact("discarded", f"{about} given up")
        case _ if effect.state in Effect.OPEN:
            yield Fact(effect.state, f"{about} not done yet")

"""The story of a message: in the order of cause and effect, and open where something is still to happen."""

import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from messaging.history import timeline
from messaging.history.timeline import Entry, Kind
from messaging.models import ActionOnMessage, DeliveryAttempt, Effect, InboxMessage, OperatorAction, OutboxMessage

pytestmark = pytest.mark.django_db

START = datetime(2026, 5, 1, 12, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def outbox(message_id: str = "m-1", **columns: Any) -> OutboxMessage:
    row = {"type": "order.placed", "subject": "W-1", "routing_key": "order.placed", "body": b"{}", "created_at": at(0)}
    return OutboxMessage.objects.create(message_id=message_id, **{**row, **columns})


def published(message_id: str = "m-1", **columns: Any) -> OutboxMessage:
    row = {"state": "published", "published_at": at(0.05), "expected_consumers": ["sms"]}
    return outbox(message_id, **{**row, **columns})


def inbox(state: str, message_id: str = "m-1", **columns: Any) -> InboxMessage:
    row = {"consumer": "sms", "type": "order.placed", "subject": "W-1", "changed_at": at(1), "app_id": "warren"}
    return InboxMessage.objects.create(message_id=message_id, state=state, **{**row, **columns})


def attempt(row: InboxMessage, number: int, outcome: str, finished: float, **columns: Any) -> DeliveryAttempt:
    return DeliveryAttempt.objects.create(
        inbox_message=row,
        number=number,
        outcome=outcome,
        finished_at=at(finished),
        duration=timedelta(milliseconds=20),
        **columns,
    )


def effect(row: InboxMessage, state: str, **columns: Any) -> Effect:
    facts = {"consumer": row.consumer, "message_id": row.message_id, "name": "text", "intended_at": at(1.5)}
    return Effect.objects.create(**{"inbox_message": row, "state": state, "changed_at": at(2), **facts, **columns})


def effect_attempt(row: Effect, number: int, outcome: str, seconds: float, error: str) -> None:
    row.failed_attempts.create(token=uuid.uuid4(), number=number, outcome=outcome, finished_at=at(seconds), error=error)


def acted(action: str, seconds: float, **details: str) -> None:
    row = OperatorAction.objects.create(actor="ann", action=action, at=at(seconds), details=details)
    ActionOnMessage.objects.create(action=row, message_id="m-1")


def story() -> tuple[Entry, ...]:
    return timeline.for_message("m-1").entries


def told(entries: Sequence[Entry]) -> list[tuple[str, str, int]]:
    return [(entry.kind.value, entry.consumer, entry.attempt) for entry in entries]


@pytest.mark.parametrize(
    "written",
    [
        lambda: inbox("handled", handled_at=at(0.5), process="host:42", milliseconds=20),
        lambda: attempt(inbox("handled"), 1, "handled", 0.5),
    ],
    ids=["row", "attempt"],
)
def test_a_success_is_told_once_wherever_it_is_written(written: Callable[[], object]) -> None:
    """Earlier versions wrote an attempt."""
    written()
    entries = story()
    assert told(entries) == [("handled", "sms", 1)]
    assert (entries[0].at, entries[0].duration) == (at(0.5), timedelta(milliseconds=20))


def test_a_message_is_written_published_and_handled():
    published()
    attempt(inbox("handled"), 1, "handled", 0.5)

    assert told(story()) == [("written", "", 1), ("published", "", 1), ("handled", "sms", 1)]
    assert [entry.gap for entry in story()] == [None, timedelta(seconds=0.05), timedelta(seconds=0.45)]


def test_a_message_that_was_handled_before_it_was_confirmed_is_told_in_the_order_of_time():
    published(published_at=at(0.9))
    attempt(inbox("handled"), 1, "handled", 0.1)

    assert [entry.kind for entry in story()] == [Kind.WRITTEN, Kind.HANDLED, Kind.PUBLISHED]
    assert [entry.gap for entry in story()[1:]] == [timedelta(seconds=0.1), timedelta(seconds=0.8)]


ANONYMOUS = "published by a client without an app_id"


@pytest.mark.parametrize(
    ("columns", "detail"),
    [
        ({"app_id": "billing"}, "published by billing"),
        ({"app_id": ""}, ANONYMOUS),
        (
            {"app_id": "", "identified": False},
            f"{ANONYMOUS}, without a message_id: at-least-once, a copy of it would be handled too",
        ),
    ],
)
def test_a_foreign_message_is_received_once_and_its_publisher_named(columns: dict[str, Any], detail: str):
    published(consumer="sms", attempt=2, origin="retry", created_at=at(1), published_at=at(2))
    row = inbox("handled", received_at=at(0), **columns)
    attempt(row, 1, "failed", 0.5)
    attempt(row, 2, "handled", 3)

    first, *others = story()

    assert (first.kind, first.consumer, first.at, first.detail) == (Kind.RECEIVED, "sms", at(0), detail)
    assert Kind.RECEIVED not in [entry.kind for entry in others]


def test_a_story_has_each_attempt_until_the_message_is_dead():
    published()
    published(consumer="sms", attempt=2, created_at=at(1), published_at=at(11))
    row = inbox("dead", attempt=2, reason="no such order", changed_at=at(12))
    attempt(row, 1, "failed", 1, error="gateway slow")
    attempt(row, 2, "crashed", 11.5)
    attempt(row, 2, "rejected", 12.001, error="no such order")

    assert [(*each, entry.detail) for each, entry in zip(told(story()), story(), strict=True)] == [
        ("written", "", 1, ""),
        ("published", "", 1, "for sms"),
        ("attempt failed", "sms", 1, "gateway slow"),
        ("written", "sms", 2, ""),
        ("published", "sms", 2, "for sms"),
        ("crashed", "sms", 2, ""),
        ("rejected", "sms", 2, "no such order"),
        ("dead", "sms", 2, "no such order"),
    ]


def a_waiting_retry() -> None:
    published()
    outbox(consumer="sms", attempt=2, created_at=at(1), publish_at=at(60))
    attempt(inbox("retrying", attempt=2), 1, "failed", 1)


def a_published_retry() -> None:
    published()
    published(consumer="sms", attempt=2, created_at=at(1), published_at=at(11))
    attempt(inbox("retrying", attempt=2), 1, "failed", 1)


@pytest.mark.parametrize(
    ("make", "kind", "facts"),
    [
        (lambda: outbox(publish_at=at(9), last_error="x"), Kind.PENDING, {"due": at(9), "detail": "x"}),
        (lambda: outbox(state="unroutable", last_error="no queue"), Kind.UNROUTABLE, {"detail": "no queue"}),
        (published, Kind.UNHANDLED, {"consumer": "sms", "at": None}),
        (a_waiting_retry, Kind.PENDING, {"consumer": "sms", "due": at(60)}),
        (a_published_retry, Kind.UNHANDLED, {"consumer": "sms", "attempt": 2}),
        (
            lambda: inbox("retrying", starts=2),
            Kind.UNHANDLED,
            {"detail": "its handling was started 2 times and has not ended"},
        ),
        (
            lambda: inbox("waiting", ordering_key="W-1"),
            Kind.WAITING,
            {"detail": "until the earlier messages of W-1 are settled"},
        ),
    ],
)
def test_what_is_still_to_happen_is_open_and_comes_last(make: Callable[[], object], kind: Kind, facts: dict[str, Any]):
    make()

    *before, last = story()

    assert (last.kind, last.is_open) == (kind, True)
    assert {name: getattr(last, name) for name in facts} == facts
    assert not any(entry.is_open for entry in before)


def test_a_person_s_end_of_a_message_says_who_and_a_refused_one_why():
    outbox(state="cancelled", publish_at=at(3), last_error="cancelled by ann")
    inbox("discarded", reason="discarded by bob; it was dead: no such order", changed_at=at(4))
    outbox("m-2", state="failed", publish_at=at(9), last_error="too large")

    _, cancelled, discarded = story()

    assert (cancelled.kind, cancelled.at, cancelled.detail) == (Kind.CANCELLED, at(3), "cancelled by ann")
    assert (discarded.kind, discarded.at) == (Kind.DISCARDED, at(4))
    assert discarded.detail.startswith("discarded by bob")
    refused = timeline.for_message("m-2").entries[-1]
    assert (refused.kind, refused.is_open, refused.detail) == (Kind.FAILED, False, "too large")


def test_the_story_of_a_subject_has_all_its_messages_also_one_that_lost_its_subject():
    published("m-1")
    inbox("dead", subject="", type="", changed_at=at(1))
    published("m-2", type="order.cancelled", created_at=at(10), published_at=at(10.1))
    published("m-3", subject="")

    found = timeline.for_subject("W-1")

    assert found.message_ids == ["m-1", "m-2"]
    assert [entry.kind for entry in found.entries][2] is Kind.DEAD
    assert told(found.entries)[-1] == ("unhandled", "sms", 1)
    assert timeline.for_subject("").entries == ()


def test_a_long_story_says_that_it_is_cut_and_guesses_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(timeline, "ROW_LIMIT", 3)
    for number in range(4):
        published(f"m-{number}")

    found = timeline.for_subject("W-1")

    assert found.truncated
    assert not any(entry.kind is Kind.UNHANDLED for entry in found.entries)
    assert set(found.message_ids) == {"m-1", "m-2", "m-3"}


def test_a_story_takes_few_queries_however_long(django_assert_max_num_queries: Any):
    for number in range(20):
        published(f"m-{number}")
        attempt(inbox("handled", f"m-{number}"), 1, "handled", 1)

    with django_assert_max_num_queries(6):
        timeline.for_subject("W-1")


# --- effects, and what people did --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "columns", "kind", "is_open", "detail"),
    [
        ("intended", {"send_at": at(9), "error": "busy"}, Kind.EFFECT_DUE, True, "busy"),
        ("sending", {"sending_until": at(9)}, Kind.EFFECT_SENDING, True, ""),
        ("done", {"reference": "SM1", "error": "settled by ann"}, Kind.EFFECT_DONE, False, "SM1; settled by ann"),
        ("failed", {"error": "no such number"}, Kind.EFFECT_FAILED, False, "no such number"),
        ("unknown", {"error": "no answer"}, Kind.EFFECT_UNKNOWN, False, "no answer"),
    ],
)
def test_a_story_has_an_effect_from_its_intention_on(
    state: str, columns: dict[str, Any], kind: Kind, is_open: bool, detail: str
):
    row = inbox("handled")
    attempt(row, 1, "handled", 1)
    text = effect(row, state, **columns)
    if state == "failed":
        effect_attempt(text, 1, "failed", 2, "no such number")  # the same end: told once

    handled, intended, last = story()

    assert (handled.kind, intended.kind, intended.effect, intended.at) == (Kind.HANDLED, Kind.INTENDED, "text", at(1.5))
    assert (last.kind, last.is_open, last.detail) == (kind, is_open, detail)
    assert (last.at, last.due) == ((None, at(9)) if is_open else (at(2), None))


def test_a_story_keeps_each_attempt_of_an_effect_that_was_settled():
    text = effect(inbox("handled"), "done", reference="SM1", attempts=1, changed_at=at(20))
    effect_attempt(text, 1, "not done", 3, "busy")
    effect_attempt(text, 2, "unknown", 5, "the gateway answered 500")
    acted("settle", 9, decision="not done")

    assert [(entry.what, entry.attempt, entry.detail) for entry in story()[1:]] == [
        (Kind.EFFECT_NOT_DONE, 1, "busy"),
        (Kind.EFFECT_UNKNOWN, 2, "the gateway answered 500"),
        ("settled", 0, "not done"),
        (Kind.EFFECT_DONE, 1, "SM1"),
    ]


def test_actions_of_people_precede_their_consequences_and_views_are_left_out():
    row = inbox("retrying", attempt=3)
    attempt(row, 2, "failed", 1)
    acted("replay", 5, note="gateway is back")
    outbox(consumer="sms", attempt=3, origin="replay", created_at=at(5))
    acted("publish", 6)
    acted("settle", 7, verdict="done", note="seen")  # as an earlier version called the decision
    acted("reconcile", 8)
    acted("view payload", 9)

    entries = story()

    assert [(entry.what, entry.detail) for entry in entries if entry.actor] == [
        ("replayed", "gateway is back"),
        ("made due now", ""),
        ("settled", "done, seen"),
        ("reconciled", ""),
    ]
    kinds = [entry.kind for entry in entries]
    assert kinds.index(Kind.ACTED) + 1 == kinds.index(Kind.WRITTEN)

"""The story of a message: in the order of cause and effect, and open where something is still to happen."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from messaging.history import timeline
from messaging.history.timeline import Kind, Story
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


def told(story: Story) -> list[tuple[str, str, int]]:
    return [(entry.kind.value, entry.consumer, entry.attempt) for entry in story.entries]


def test_a_message_is_written_published_and_handled():
    published()
    attempt(inbox("handled"), 1, "handled", 0.5)

    story = timeline.for_message("m-1")

    assert told(story) == [("written", "", 1), ("published", "", 1), ("handled", "sms", 1)]
    assert [entry.gap for entry in story.entries] == [None, timedelta(seconds=0.05), timedelta(seconds=0.45)]


@pytest.mark.parametrize(
    ("columns", "detail"),
    [
        ({"app_id": "billing"}, "published by billing"),
        ({"app_id": ""}, "published by a client without an app_id"),
        (
            {"app_id": "", "identified": False},
            "published by a client without an app_id, without a message_id: at-least-once, a copy of it would be "
            "handled too",
        ),
    ],
)
def test_a_message_from_elsewhere_is_received_and_says_from_whom(columns: dict[str, Any], detail: str):
    published(consumer="sms", attempt=2, origin="retry", created_at=at(1), published_at=at(2))
    row = inbox("handled", received_at=at(0), **columns)
    attempt(row, 1, "failed", 0.5)
    attempt(row, 2, "handled", 3)

    first, *_ = timeline.for_message("m-1").entries

    assert (first.kind, first.consumer, first.at, first.detail) == (Kind.RECEIVED, "sms", at(0), detail)
    assert [kind for kind, *_ in told(timeline.for_message("m-1"))].count("received") == 1


def test_a_story_has_each_retry_until_the_message_is_dead():
    published()
    published(consumer="sms", attempt=2, created_at=at(1), published_at=at(11))
    row = inbox("dead", attempt=2, reason="gateway down", changed_at=at(12))
    attempt(row, 1, "failed", 1, error="gateway slow")
    attempt(row, 2, "failed", 12.001, error="gateway down")

    story = timeline.for_message("m-1")

    assert told(story) == [
        ("written", "", 1),
        ("published", "", 1),
        ("attempt failed", "sms", 1),
        ("written", "sms", 2),
        ("published", "sms", 2),
        ("attempt failed", "sms", 2),
        ("dead", "sms", 2),
    ]
    assert [entry.detail for entry in story.entries if not entry.outbox_id] == [
        "gateway slow",
        "gateway down",
        "gateway down",
    ]


def test_a_story_never_goes_back_in_time_though_a_message_was_handled_before_it_was_confirmed():
    published(published_at=at(0.9))
    attempt(inbox("handled"), 1, "handled", 0.1)

    entries = timeline.for_message("m-1").entries

    assert [entry.kind for entry in entries] == [Kind.WRITTEN, Kind.HANDLED, Kind.PUBLISHED]
    assert [entry.gap for entry in entries[1:]] == [timedelta(seconds=0.1), timedelta(seconds=0.8)]


def test_an_expected_consumer_without_a_row_is_still_to_come():
    published(expected_consumers=["red_packet", "sms"])
    attempt(inbox("handled", consumer="red_packet"), 1, "handled", 0.5)

    last = timeline.for_message("m-1").entries[-1]

    assert (last.kind, last.consumer, last.is_open, last.at) == (Kind.UNHANDLED, "sms", True, None)


def test_a_waiting_retry_is_open():
    published()
    outbox(consumer="sms", attempt=2, created_at=at(1), publish_at=at(60))
    attempt(inbox("retrying", attempt=2), 1, "failed", 1)

    story = timeline.for_message("m-1")

    assert [entry.kind for entry in story.entries if entry.is_open] == [Kind.PENDING]
    assert (story.entries[-1].consumer, story.entries[-1].due) == ("sms", at(60))


def test_a_retry_that_was_published_and_not_handled_is_still_to_come():
    published()
    published(consumer="sms", attempt=2, created_at=at(1), published_at=at(11))
    attempt(inbox("retrying", attempt=2), 1, "failed", 1)

    assert told(timeline.for_message("m-1"))[-1] == ("unhandled", "sms", 2)


def test_a_first_attempt_that_was_started_and_did_not_end_is_still_to_come():
    inbox("retrying", attempt=1, starts=2)

    (entry,) = timeline.for_message("m-1").entries

    assert entry.kind is Kind.UNHANDLED
    assert entry.detail == "its handling was started 2 times and has not ended"


@pytest.mark.parametrize(
    ("state", "kind", "is_open"),
    [("pending", Kind.PENDING, True), ("unroutable", Kind.UNROUTABLE, True), ("failed", Kind.FAILED, False)],
)
def test_a_story_says_why_a_message_is_not_published(state: str, kind: Kind, is_open: bool):
    outbox(state=state, publish_at=at(9), last_error="no queue orders.sms")

    last = timeline.for_message("m-1").entries[-1]

    assert (last.kind, last.is_open, last.detail) == (kind, is_open, "no queue orders.sms")


def test_a_story_has_crashes_and_rejections():
    published()
    row = inbox("dead", attempt=1, reason="no such order", changed_at=at(3))
    attempt(row, 1, "crashed", 2)
    attempt(row, 1, "rejected", 3)

    assert told(timeline.for_message("m-1"))[2:] == [("crashed", "sms", 1), ("rejected", "sms", 1), ("dead", "sms", 1)]


def test_the_story_of_a_subject_has_all_its_messages():
    published("m-1")
    attempt(inbox("handled", "m-1"), 1, "handled", 0.5)
    published("m-2", type="order.cancelled", created_at=at(10), published_at=at(10.1))
    published("m-3", subject="W-2")

    story = timeline.for_subject("W-1")

    assert story.message_ids == ["m-1", "m-2"]
    assert told(story)[-1] == ("unhandled", "sms", 1)


def test_a_dead_message_that_lost_its_subject_belongs_to_the_story():
    published()
    inbox("dead", subject="", type="")

    assert [entry.kind for entry in timeline.for_subject("W-1").entries][-1] is Kind.DEAD


def test_without_a_subject_there_is_no_story():
    published(subject="")

    assert timeline.for_subject("").entries == ()


def test_a_long_story_says_that_it_is_cut_and_guesses_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(timeline, "ROW_LIMIT", 3)
    for number in range(4):
        published(f"m-{number}")

    story = timeline.for_subject("W-1")

    assert story.truncated
    assert not any(entry.kind is Kind.UNHANDLED for entry in story.entries)
    assert set(story.message_ids) == {"m-1", "m-2", "m-3"}


def test_a_story_takes_few_queries_however_long(django_assert_max_num_queries: Any):
    for number in range(20):
        published(f"m-{number}")
        attempt(inbox("handled", f"m-{number}"), 1, "handled", 1)

    with django_assert_max_num_queries(6):
        timeline.for_subject("W-1")


# --- effects, turns, and what people did -------------------------------------------------------------------


def effect(row: InboxMessage, state: str, **columns: Any) -> Effect:
    facts = {"consumer": row.consumer, "message_id": row.message_id, "name": "text", "intended_at": at(1.5)}
    return Effect.objects.create(**{"inbox_message": row, "state": state, "changed_at": at(2), **facts, **columns})


@pytest.mark.parametrize(
    ("state", "columns", "kind", "is_open", "detail"),
    [
        ("intended", {"send_at": at(9), "error": "busy"}, Kind.EFFECT_DUE, True, "busy"),
        ("sending", {"sending_until": at(9)}, Kind.EFFECT_SENDING, True, ""),
        ("done", {"reference": "SM1"}, Kind.EFFECT_DONE, False, "SM1"),
        ("done", {"reference": "SM1", "error": "settled by ann"}, Kind.EFFECT_DONE, False, "SM1; settled by ann"),
        ("failed", {"error": "no such number"}, Kind.EFFECT_FAILED, False, "no such number"),
        ("unknown", {"error": "no answer"}, Kind.EFFECT_UNKNOWN, False, "no answer"),
    ],
)
def test_a_story_has_an_effect_from_its_intention_on(
    state: str, columns: dict[str, Any], kind: Kind, is_open: bool, detail: str
):
    published()
    row = inbox("handled")
    attempt(row, 1, "handled", 1)
    effect(row, state, **columns)

    *_, handled, intended, last = timeline.for_message("m-1").entries

    assert (handled.kind, intended.kind, intended.effect, intended.at) == (Kind.HANDLED, Kind.INTENDED, "text", at(1.5))
    assert (last.kind, last.is_open, last.detail) == (kind, is_open, detail)
    assert (last.at, last.due) == ((None, at(9)) if is_open else (at(2), None))


def test_a_story_keeps_each_attempt_of_an_effect_that_was_settled():
    published()
    row = inbox("handled")
    text = effect(row, "done", reference="SM1", attempts=1, changed_at=at(20))
    for number, outcome, seconds, error in [(1, "not done", 3, "busy"), (2, "unknown", 5, "the gateway answered 500")]:
        text.failed_attempts.create(
            token=uuid.uuid4(), number=number, outcome=outcome, finished_at=at(seconds), error=error
        )
    acted("settle", 9, verdict="not done")

    told = [(entry.what, entry.attempt, entry.detail) for entry in timeline.for_message("m-1").entries[3:]]

    assert told == [
        (Kind.EFFECT_NOT_DONE, 1, "busy"),
        (Kind.EFFECT_UNKNOWN, 2, "the gateway answered 500"),
        ("settled", 0, "not done"),
        (Kind.EFFECT_DONE, 1, "SM1"),
    ]


def test_the_end_of_an_effect_is_one_entry():
    published()
    text = effect(inbox("handled"), "failed", error="no such number")
    text.failed_attempts.create(
        token=uuid.uuid4(), number=1, outcome="failed", finished_at=at(2), error="no such number"
    )

    kinds = [entry.kind for entry in timeline.for_message("m-1").entries]

    assert kinds.count(Kind.EFFECT_FAILED) == 1


def test_a_message_that_waits_for_earlier_ones_is_open():
    published()
    inbox("waiting", ordering_key="W-1")

    last = timeline.for_message("m-1").entries[-1]

    assert (last.kind, last.is_open, last.detail) == (
        Kind.WAITING,
        True,
        "until the earlier messages of W-1 are settled",
    )


def test_cancelled_and_discarded_entries_say_who_did_it():
    outbox(state="cancelled", publish_at=at(3), last_error="cancelled by ann")
    inbox("discarded", reason="discarded by bob; it was dead: no such order", changed_at=at(4))

    story = timeline.for_message("m-1")

    assert [(entry.kind, entry.at) for entry in story.entries[1:]] == [
        (Kind.CANCELLED, at(3)),
        (Kind.DISCARDED, at(4)),
    ]
    assert [entry.detail.partition(";")[0] for entry in story.entries[1:]] == ["cancelled by ann", "discarded by bob"]
    assert not any(entry.is_open for entry in story.entries)


def acted(action: str, seconds: float, **details: str) -> None:
    row = OperatorAction.objects.create(actor="ann", action=action, at=at(seconds), details=details)
    ActionOnMessage.objects.create(action=row, message_id="m-1")


def test_operator_actions_precede_their_consequences_and_views_are_left_out():
    row = inbox("retrying", attempt=3)
    attempt(row, 2, "failed", 1)
    acted("replay", 5, note="gateway is back")
    outbox(consumer="sms", attempt=3, origin="replay", created_at=at(5))
    acted("publish", 6)
    acted("settle", 7, verdict="done", note="seen")
    acted("reconcile", 8)
    acted("hasten", 9)  # as an earlier version called it
    acted("view payload", 10)

    story = timeline.for_message("m-1")

    assert [(entry.what, entry.detail) for entry in story.entries if entry.actor] == [
        ("replayed", "gateway is back"),
        ("made due now", ""),
        ("settled", "done, seen"),
        ("reconciled", ""),
        ("made due now", ""),
    ]
    kinds = [entry.kind for entry in story.entries]
    assert kinds.index(Kind.ACTED) + 1 == kinds.index(Kind.WRITTEN)
    assert story.entries[kinds.index(Kind.WRITTEN)].origin == "replay"

"""The story of a message: in the order of cause and effect, and open where something is still to happen."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from messaging.models import DeliveryAttempt, InboxMessage, OutboxMessage
from messaging.operations import timeline
from messaging.operations.timeline import Kind

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
    row = {"consumer": "sms", "type": "order.placed", "subject": "W-1", "changed_at": at(1)}
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


def told(story: timeline.Story) -> list[tuple[str, str, int]]:
    return [(entry.kind.value, entry.consumer, entry.attempt) for entry in story.entries]


def test_a_message_is_written_published_and_handled():
    published()
    attempt(inbox("handled"), 1, "handled", 0.5)

    story = timeline.for_message("m-1")

    assert told(story) == [("written", "", 1), ("published", "", 1), ("handled", "sms", 1)]
    assert [entry.gap for entry in story.entries] == [None, timedelta(seconds=0.05), timedelta(seconds=0.45)]


def test_each_retry_is_told_until_the_message_is_dead():
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


def test_published_comes_before_handled_though_it_was_marked_later():
    published(published_at=at(0.9))
    attempt(inbox("handled"), 1, "handled", 0.1)

    story = timeline.for_message("m-1")

    assert [entry.kind for entry in story.entries] == [Kind.WRITTEN, Kind.PUBLISHED, Kind.HANDLED]
    assert story.entries[2].gap == timedelta(0)
    assert story.times_go_back


def test_an_expected_consumer_without_a_row_is_still_to_come():
    published(expected_consumers=["red_packet", "sms"])
    attempt(inbox("handled", consumer="red_packet"), 1, "handled", 0.5)

    last = timeline.for_message("m-1").entries[-1]

    assert (last.kind, last.consumer, last.is_open, last.at) == (Kind.UNHANDLED, "sms", True, None)


def test_a_retry_that_rests_is_still_to_come():
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
def test_what_keeps_a_message_from_the_broker_is_told(state: str, kind: Kind, is_open: bool):
    outbox(state=state, publish_at=at(9), last_error="no queue orders.sms")

    last = timeline.for_message("m-1").entries[-1]

    assert (last.kind, last.is_open, last.detail) == (kind, is_open, "no queue orders.sms")


def test_a_crash_and_a_rejection_are_told():
    published()
    row = inbox("dead", attempt=1, reason="no such order", changed_at=at(3))
    attempt(row, 1, "crashed", 2)
    attempt(row, 1, "rejected", 3)

    assert told(timeline.for_message("m-1"))[2:] == [("crashed", "sms", 1), ("rejected", "sms", 1), ("dead", "sms", 1)]


def test_a_subjects_story_is_told_of_all_its_messages_in_one():
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

    with django_assert_max_num_queries(4):
        timeline.for_subject("W-1")

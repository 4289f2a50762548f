"""Waiting messages can be cancelled: the row says so, and later messages of the ordering key are released."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError
from django.utils.timezone import now

from messaging import database
from messaging.actions.cancel import cancel
from messaging.actions.replay import replay
from messaging.actions.selection import Selection
from messaging.broker.publisher import Outcome, Status
from messaging.consumers import Consumer
from messaging.message import Delivery
from messaging.models import InboxMessage, OutboxMessage
from messaging.models.failures import failure_group
from messaging.relay import leases
from messaging.relay.leases import Mark
from messaging.worker import handling, ordering
from tests.support.consuming import (
    FailingHandler,
    Noted,
    a_consumer,
    a_delivery,
    an_outbox_row,
    delivery_of,
    notes,
    registered,
)
from tests.support.running import add, at_once

pytestmark = pytest.mark.django_db

ALL = Selection()
WHO = "ann@host"
#: The group of messages that were cancelled.
CANCELLED = failure_group("notes", "test.noted", "cancelled")


@pytest.fixture
def handler() -> FailingHandler:
    return FailingHandler()


@pytest.fixture
def consumer(handler: FailingHandler) -> Iterator[Consumer]:
    consumer = a_consumer(handler)
    with registered(consumer):
        yield consumer


def cancelled(selection: Selection = ALL, **options: Any) -> dict[str, int]:
    """What was cancelled, by box."""
    return cancel.run(selection, **{"by": WHO, **options}).facts


def retrying(consumer: Consumer, handler: FailingHandler) -> OutboxMessage:
    """The outbox row of a retry that is not due yet."""
    handler.failing[""] = ValueError("gateway down")
    assert handling.handle(consumer, a_delivery()) == "retrying"
    handler.failing.clear()
    return OutboxMessage.objects.get()


@pytest.mark.parametrize("state", ["pending", "unroutable", "failed"])
def test_an_event_that_waits_is_not_published_and_says_why(state: str) -> None:
    an_outbox_row(state=state, publish_at=database.in_future(3600))

    assert cancelled(note="wrong price") == {"outbox": 1, "inbox": 0, "leased": 0}

    row = OutboxMessage.objects.get()
    assert (row.state, row.last_error) == ("cancelled", "cancelled by ann@host: wrong price")
    assert row.publish_at <= now()  # which is when it was cancelled
    OutboxMessage.objects.update(publish_at=database.in_future(-1))
    assert leases.claim(10, 30) == []


def test_a_leased_row_is_not_cancelled() -> None:
    row = an_outbox_row(lease_until=database.in_future(20))
    for wanted in (ALL, Selection(outbox_rows=[row.pk])):
        assert cancel.plan(wanted).facts == cancelled(wanted) == {"outbox": 0, "inbox": 0, "leased": 1}
    assert OutboxMessage.objects.get().state == "pending"


def test_a_relay_that_was_frozen_past_its_lease_does_not_mark_a_cancelled_row_published() -> None:
    an_outbox_row()
    (held,) = leases.claim(10, 30)
    OutboxMessage.objects.update(lease_until=database.in_future(-1))
    assert cancelled()["outbox"] == 1
    leases.write([Mark(held, Outcome(Status.CONFIRMED), ())])
    row = OutboxMessage.objects.get()
    assert (row.state, row.lease_until) == ("cancelled", None)


def test_a_cancelled_retry_or_replay_leaves_its_message_dead_and_to_be_replayed(
    consumer: Consumer, handler: FailingHandler
) -> None:
    row = retrying(consumer, handler)

    assert cancelled(Selection(message_ids=[row.message_id]))["outbox"] == 1

    letter = InboxMessage.objects.get()
    assert (letter.state, letter.reason, letter.attempt) == ("dead", "cancelled by ann@host", 2)
    assert letter.failure_group == CANCELLED
    # The copy that a broker may have got from a relay that died before its mark.
    assert handling.handle(consumer, delivery_of(row, queue=consumer.queue)) == "duplicate"
    assert replay.run(ALL, by=WHO).changed == 1
    assert cancelled()["outbox"] == 1
    assert InboxMessage.objects.get().state == "dead"
    assert replay.run(ALL, by=WHO).changed == 1
    sent = OutboxMessage.objects.get(origin="replay", state="pending")
    assert handling.handle(consumer, delivery_of(sent, queue=consumer.queue)) == "handled"
    assert notes("hello") == 1


def test_a_retry_or_copy_that_was_overtaken_leaves_its_message_alone(
    consumer: Consumer, handler: FailingHandler
) -> None:
    row = retrying(consumer, handler)
    assert handling.handle(consumer, delivery_of(row, queue=consumer.queue)) == "handled"
    an_outbox_row(consumer="notes", origin="reconcile", message_id=row.message_id)
    assert cancelled()["outbox"] == 2
    assert InboxMessage.objects.get().state == "handled"


def test_a_retry_that_was_overtaken_and_failed_again_leaves_the_next_attempt_alone(
    consumer: Consumer, handler: FailingHandler
) -> None:
    row = retrying(consumer, handler)
    handler.failing[""] = ValueError("gateway still down")
    assert handling.handle(consumer, delivery_of(row, queue=consumer.queue)) == "retrying"

    OutboxMessage.objects.exclude(pk=row.pk).update(lease_until=database.in_future(20))
    assert cancelled()["outbox"] == 1

    letter = InboxMessage.objects.get()
    assert (letter.state, letter.attempt) == ("retrying", 3)


def test_one_that_is_sent_again_because_it_was_lost_is_dead_when_cancelled_and_not_found_missing_again() -> None:
    an_outbox_row(consumer="notes", origin="reconcile", body=b'{"text": "x"}', headers={"trace": "a"}, subject="W-1")
    cancelled()
    letter = InboxMessage.objects.get()
    assert (letter.state, letter.attempt, letter.subject) == ("dead", 1, "W-1")
    assert bytes(letter.body or b"") == b'{"text": "x"}'


# --- order by key ------------------------------------------------------------------------------------------


def test_messages_behind_a_cancelled_event_are_released_at_once(consumer: Consumer) -> None:
    (first,), (second,) = add(Noted(text="first"), ordering_key="W-1"), add(Noted(text="second"), ordering_key="W-1")
    OutboxMessage.objects.filter(pk=second.pk).update(state="published", expected_consumers=["notes"])
    assert handling.handle(consumer, delivery_of(second, queue=consumer.queue)) == "waiting"

    assert cancelled(Selection(message_ids=[first.message_id]))["outbox"] == 1

    turn = OutboxMessage.objects.get(origin="turn")
    assert turn.message_id == second.message_id
    assert handling.handle(consumer, delivery_of(turn, queue=consumer.queue)) == "handled"


def test_messages_that_cannot_be_released_do_not_make_a_failure_of_what_is_cancelled(
    consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    [row] = add(Noted(text="first"), ordering_key="W-1")

    def refused(*given: Any) -> None:
        raise OperationalError("canceling statement due to lock timeout")

    monkeypatch.setattr(ordering, "release_next", refused)
    assert cancelled(Selection(message_ids=[row.message_id]))["outbox"] == 1


def three_of_one_key(consumer: Consumer) -> list[Delivery]:
    rows = [add(Noted(text=text), ordering_key="W-1")[0] for text in ("first", "second", "third")]
    OutboxMessage.objects.update(state="published", expected_consumers=["notes"])
    first, *later = (delivery_of(row, queue=consumer.queue) for row in rows)
    assert [handling.handle(consumer, each) for each in later] == ["waiting", "waiting"]
    return [first, *later]


def test_a_waiting_message_is_dead_once_cancelled_and_releases_the_next(consumer: Consumer) -> None:
    first, second, third = three_of_one_key(consumer)
    waiting = InboxMessage.objects.filter(message_id=second.message_id)
    waiting.update(changed_at=database.in_future(-7200))

    wanted = Selection(inbox_rows=[waiting.get().pk])
    assert cancel.plan(wanted).facts == cancelled(wanted) == {"outbox": 0, "inbox": 1, "leased": 0}

    letter = waiting.get()
    assert (letter.state, letter.reason, letter.failure_group) == ("dead", "cancelled by ann@host", CANCELLED)
    assert now() - letter.changed_at < timedelta(hours=1)
    assert handling.handle(consumer, first) == "handled"
    assert OutboxMessage.objects.get(origin="turn").message_id == third.message_id


def test_a_message_that_is_cancelled_when_its_turn_has_come_releases_the_next(consumer: Consumer) -> None:
    first, second, third = three_of_one_key(consumer)
    assert handling.handle(consumer, first) == "handled"
    assert OutboxMessage.objects.get(origin="turn").message_id == second.message_id
    assert cancelled()["outbox"] == 1
    assert OutboxMessage.objects.get(origin="turn", state="pending").message_id == third.message_id


# --- which, by whom, and at once ---------------------------------------------------------------------------


def test_filters_say_which(consumer: Consumer) -> None:
    an_outbox_row(message_id="a", type="test.erased")
    an_outbox_row(message_id="b", subject="W-1")
    an_outbox_row(message_id="c", consumer="notes", last_error="gateway down")
    an_outbox_row(message_id="d", created_at=database.in_future(-7200))
    for wanted, number in [
        (Selection(type="test.erased"), 1),
        (Selection(subject="W-1"), 1),
        (Selection(reason="Gateway"), 1),
        (Selection(consumer="notes"), 1),
        (Selection(since=timedelta(hours=1)), 3),
        (Selection(group="abc"), 0),
        (ALL, 4),
    ]:
        assert cancel.plan(wanted).facts["outbox"] == number, wanted


@pytest.mark.django_db(transaction=True)
def test_a_relay_and_a_cancel_at_once_get_each_row_once() -> None:
    for number in range(60):
        an_outbox_row(message_id=f"m-{number}")
    held, gone = at_once(lambda: sum(len(leases.claim(5, 30)) for _ in range(12)), lambda: cancelled()["outbox"])
    assert OutboxMessage.objects.filter(state="cancelled", lease_token=None).count() == gone
    assert OutboxMessage.objects.filter(state="pending", lease_token__isnull=False).count() == held
    assert held + gone == 60

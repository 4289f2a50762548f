"""A consumer with fenced=False: what succeeds at once leaves no row, what fails is recorded, retried and replayed."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction

from messaging import consumers, outbox, testing
from messaging.actions.prune import prune
from messaging.actions.replay import replay
from messaging.actions.selection import Selection
from messaging.consumers import Consumer, consumer
from messaging.history import outcome, timeline
from messaging.message import Delivery
from messaging.models import InboxMessage, OutboxMessage
from messaging.reconcile.lost import compare
from messaging.worker import handling
from tests.support.consuming import (
    FailingHandler,
    Noted,
    a_consumer,
    a_delivery,
    a_message,
    attempts,
    delivery_of,
    look_after,
    notes,
    outcomes_of_attempts,
    registered,
)

pytestmark = pytest.mark.django_db


@pytest.fixture
def handler() -> FailingHandler:
    return FailingHandler()


@pytest.fixture
def unfenced(handler: FailingHandler) -> Iterator[Consumer]:
    """The project's only consumer."""
    declared = a_consumer(handler, fenced=False, batch=3)
    with registered(declared):
        yield declared


def next_delivery(delivery: Delivery) -> Delivery:
    """What the retry or replay that was written for a message brings."""
    return delivery_of(OutboxMessage.objects.filter(message_id=delivery.message_id).latest("pk"))


def test_what_succeeds_at_once_leaves_no_row_and_a_copy_of_it_runs_again(unfenced: Consumer) -> None:
    delivery = a_delivery()
    assert [handling.handle(unfenced, delivery) for _ in range(2)] == ["handled"] * 2
    assert handling.handle_together(unfenced, [a_delivery(), a_delivery()]) == ["handled"] * 2
    assert not InboxMessage.objects.exists()
    assert notes("hello") == 4


def test_its_handler_runs_in_a_transaction(unfenced: Consumer, handler: FailingHandler) -> None:
    handler.failing[""] = ValueError("not today")
    testing.deliver(a_message(), unfenced)
    assert testing.deliver_together([a_message(), a_message()], unfenced) == ["retrying"] * 2
    assert notes() == 0


def test_what_fails_is_recorded_retried_and_then_handled_once(unfenced: Consumer, handler: FailingHandler) -> None:
    handler.failing[""] = ValueError("not today")
    first = a_delivery()
    assert handling.handle(unfenced, first) == "retrying"
    handler.failing.clear()
    second = next_delivery(first)
    assert [handling.handle(unfenced, second) for _ in range(2)] == ["handled", "duplicate"]
    assert outcomes_of_attempts() == [(1, "failed"), (2, "handled")]
    assert notes("hello") == 1


def test_a_later_attempt_has_its_row_whichever_way_it_came(unfenced: Consumer, handler: FailingHandler) -> None:
    """The second one came through another exchange, so it does not look like a retry of ours."""
    handler.failing[""] = ValueError("not today")
    first = a_delivery()
    assert handling.handle(unfenced, first) == "retrying"
    handler.failing.clear()
    moved = a_delivery(first.message, attempt=2, exchange="moved")
    assert [handling.handle(unfenced, moved) for _ in range(2)] == ["handled", "duplicate"]


def test_what_fails_for_good_is_dead_and_can_be_replayed(unfenced: Consumer, handler: FailingHandler) -> None:
    handler.failing[""] = ValueError("not today")
    delivery = a_delivery(a_message(id="m-1"))
    for expected in ("retrying", "retrying", "dead"):
        assert handling.handle(unfenced, delivery) == expected
        delivery = next_delivery(delivery)
    assert testing.deliver(a_message(body=b"{", id="m-2"), unfenced) == "dead"
    handler.failing.clear()
    assert replay.run(Selection(message_ids=("m-1",)), by="tests").changed == 1
    assert handling.handle(unfenced, next_delivery(delivery)) == "handled"
    assert InboxMessage.objects.get(message_id="m-1").state == "handled"


def test_a_message_that_kills_its_process_is_counted_and_ends_dead(unfenced: Consumer) -> None:
    redelivered = a_delivery(redelivered=True)
    for _ in range(handling.CRASH_LIMIT):
        assert handling._count_start(redelivered) is None
    assert handling.handle(unfenced, redelivered) == "dead"
    assert [each.outcome for each in attempts()] == ["crashed"] * handling.CRASH_LIMIT


def test_a_redelivered_message_that_succeeds_has_a_row_that_says_so(unfenced: Consumer) -> None:
    delivery = a_delivery(redelivered=True)
    assert [handling.handle(unfenced, delivery) for _ in range(2)] == ["handled", "duplicate"]
    assert InboxMessage.objects.get().state == "handled"


def test_its_messages_wait_for_no_earlier_one_of_their_key(unfenced: Consumer) -> None:
    with transaction.atomic():
        rows = outbox.add(Noted(text="first"), Noted(text="second"), ordering_key="k")
    assert [handling.handle(unfenced, delivery_of(row)) for row in reversed(rows)] == ["handled"] * 2
    assert not InboxMessage.objects.exists()


def test_it_intends_no_effects_at_any_attempt(unfenced: Consumer) -> None:
    def intending(event: Noted, delivery: Delivery) -> None:
        delivery.intended.append(object())  # type: ignore[arg-type]

    mine = replace(unfenced, handler=intending)
    first = a_delivery()
    assert handling.handle(mine, first) == "retrying"
    assert handling.handle(mine, next_delivery(first)) == "retrying"
    assert "fenced=False, intends no effects" in InboxMessage.objects.get().reason


def test_a_success_without_a_row_is_neither_missed_nor_sent_again_and_its_event_is_pruned(
    unfenced: Consumer, settings: Any
) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "OUTBOX_RETENTION_DAYS": 1}
    with transaction.atomic():
        outbox.add(Noted(text="hello"), subject="n-1")
    assert testing.deliver_due() == [("notes", "handled")]
    assert OutboxMessage.objects.get().expected_consumers == ["notes"]

    assert [entry.kind.value for entry in timeline.for_subject("n-1").entries] == ["written", "published"]
    assert outcome.of_subjects(["n-1"]) == {"n-1": [outcome.ALL_DONE]}
    row = OutboxMessage.objects.get()
    assert row.published_at is not None
    assert compare(unfenced, None, row.published_at + timedelta(days=1), 10).lost == []

    OutboxMessage.objects.update(
        created_at=row.created_at - timedelta(days=2), published_at=row.published_at - timedelta(days=2)
    )
    prune.run(by="tests", batch=10)
    assert not OutboxMessage.objects.exists()


def test_a_counted_start_that_is_sent_again_is_handled_and_not_sent_once_more(unfenced: Consumer) -> None:
    """The process died, and RabbitMQ lost the message: reconciling brings the same attempt once more."""
    lost = a_delivery(redelivered=True, exchange="tests")
    assert handling._count_start(lost) is None
    row = InboxMessage.objects.get()
    with transaction.atomic():
        outbox.resend(row, consumer=unfenced.name, queue=unfenced.queue, origin=OutboxMessage.Origin.RECONCILE,
                      body=lost.message.body)  # fmt: skip

    assert [handling.handle(unfenced, next_delivery(lost)) for _ in range(2)] == ["handled", "duplicate"]

    assert InboxMessage.objects.get().state == "handled"
    assert notes("hello") == 1


def test_what_waited_while_it_had_a_fence_is_sent_and_handled_once(unfenced: Consumer) -> None:
    with transaction.atomic():
        _, second = outbox.add(Noted(text="first"), Noted(text="second"), ordering_key="k")
    assert handling.handle(replace(unfenced, fenced=True), delivery_of(second)) == "waiting"

    look_after([unfenced])

    turn = OutboxMessage.objects.get(origin=OutboxMessage.Origin.TURN)
    assert [handling.handle(unfenced, delivery_of(turn)) for _ in range(2)] == ["handled", "duplicate"]
    assert notes("second") == 1


def test_it_is_declared_with_the_decorator() -> None:
    with registered():

        @consumer("mine", Noted, fenced=False)
        def mine(event: Noted, delivery: Delivery) -> None: ...

        assert not consumers.get("mine").fenced
        assert consumers.get("mine").records_failures

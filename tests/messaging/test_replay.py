"""Dead messages run again behind the same fence, once, however many operators ask; a replay of failing ones stops."""

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from messaging import database, outbox, tasks
from messaging.actions import action, replay_run
from messaging.actions.discard import discard
from messaging.actions.publish_now import publish_now
from messaging.actions.replay import Plan, replay
from messaging.actions.selection import Selection
from messaging.consumers import Consumer
from messaging.exceptions import ReplayStopped
from messaging.models import ActionOnMessage, Effect, InboxMessage, OperatorAction, OutboxMessage
from messaging.relay import leases
from messaging.worker import handling
from tests.support.consuming import (
    FailingHandler,
    a_consumer,
    a_dead_message,
    a_delivery,
    a_message,
    an_inbox_row,
    an_outbox_row,
    delivery_of,
    notes,
    registered,
)
from tests.support.running import at_once

pytestmark = pytest.mark.django_db
#: For tests with threads.
committed = pytest.mark.django_db(transaction=True)

ALL = Selection()
WHO = "ann@host"


@pytest.fixture
def handler() -> FailingHandler:
    return FailingHandler()


@pytest.fixture
def consumer(handler: FailingHandler) -> Iterator[Consumer]:
    consumer = a_consumer(handler)
    with registered(consumer):
        yield consumer


def replayed(selection: Selection = ALL, **options: Any) -> SimpleNamespace:
    return SimpleNamespace(**replay.run(selection, **{"by": WHO, **options}).facts)


def planned(selection: Selection = ALL) -> Counter[str]:
    counts: Counter[str] = Counter()
    for what, count, _, _ in replay.plan(selection).table:
        counts[what] += count
    return counts


def arrives(consumer: Consumer, **which: Any) -> str:
    """Handle what a replay has sent."""
    return handling.handle(
        consumer, delivery_of(OutboxMessage.objects.filter(**which).latest("pk"), queue=consumer.queue)
    )


def states() -> set[tuple[str, int]]:
    return set(InboxMessage.objects.values_list("state", "attempt"))


def dead(count: int) -> None:
    """That many dead messages, m00 and so on."""
    for number in range(count):
        a_dead_message(a_consumer(), f"m{number:02}")


# --- one message -------------------------------------------------------------------------------------------


def test_a_dead_message_goes_to_its_consumer_alone_and_is_handled_once(consumer: Consumer) -> None:
    row = a_dead_message(consumer, **{"x-subject": "W-1", "trace": "abc"})
    long_ago = database.in_future(-86_400)
    InboxMessage.objects.update(changed_at=long_ago)

    assert replayed(Selection(message_ids=[row.message_id])).replayed == 1

    sent = OutboxMessage.objects.get()
    assert (sent.exchange, sent.routing_key, sent.consumer) == ("", consumer.queue, "notes")
    assert (sent.message_id, sent.attempt, sent.origin, sent.subject) == (row.message_id, 2, "replay", "W-1")
    assert sent.headers == {"trace": "abc"}
    assert states() == {("retrying", 2)}
    # `reconcile` takes an attempt that has been expected for long for a lost one.
    assert not InboxMessage.objects.filter(changed_at__lte=long_ago).exists()
    assert [arrives(consumer), arrives(consumer)] == ["handled", "duplicate"]
    assert notes("hello") == 1
    assert states() == {("handled", 2)}


def test_a_late_copy_of_an_earlier_attempt_is_still_a_duplicate(consumer: Consumer) -> None:
    row = a_dead_message(consumer)
    replayed()
    copy = a_delivery(a_message(id=row.message_id), attempt=1)
    assert handling.handle(consumer, copy) == "duplicate"
    assert notes() == 0


def test_it_gets_a_whole_new_retry_policy(consumer: Consumer, handler: FailingHandler) -> None:
    handler.failing[""] = ValueError("not today")
    verdicts = [handling.handle(consumer, a_delivery())] + [arrives(consumer) for _ in range(2)]
    assert verdicts == ["retrying", "retrying", "dead"]

    replayed()
    # The same message elsewhere, and another one here, were not replayed.
    for other in ({"consumer": "copies", "message_id": InboxMessage.objects.get().message_id}, {"message_id": "m-1"}):
        an_inbox_row(**other)
    assert [arrives(consumer) for _ in range(3)] == ["retrying", "retrying", "dead"]
    assert ("dead", 6) in states()


def test_one_that_killed_its_process_is_not_dead_again_before_it_has_begun(consumer: Consumer) -> None:
    delivery = a_delivery(redelivered=True)
    InboxMessage.objects.create(
        consumer="notes", message_id=delivery.message_id, state="retrying", attempt=1, starts=3, type="test.noted"
    )
    assert handling.handle(consumer, delivery) == "dead"

    replayed()

    assert InboxMessage.objects.get().starts == 0
    sent = delivery_of(OutboxMessage.objects.get(), redelivered=True)
    assert handling.handle(consumer, sent) == "handled"


def test_later_messages_of_its_ordering_key_wait_again(consumer: Consumer) -> None:
    first, second = (a_dead_message(consumer, text) for text in ("first", "second"))
    InboxMessage.objects.filter(pk=first.pk).update(ordering_key="W-1", position=1)
    OutboxMessage.objects.bulk_create(
        OutboxMessage(
            pk=position, message_id=row.message_id, type="test.noted", routing_key="test.noted", body=b"",
            state="published", expected_consumers=["notes"], ordering_key="W-1",
        )
        for position, row in ((1, first), (2, second))
    )  # fmt: skip
    InboxMessage.objects.filter(pk=second.pk).update(ordering_key="W-1", position=2)

    replayed()

    assert arrives(consumer, message_id=second.message_id) == "waiting"
    assert arrives(consumer, message_id=first.message_id) == "handled"
    assert arrives(consumer, message_id=second.message_id, origin="turn") == "handled"


# --- who may run, and who does not -------------------------------------------------------------------------


def test_a_plan_counts_each_case_and_changes_nothing(consumer: Consumer) -> None:
    a_dead_message(consumer)
    a_dead_message(consumer)
    InboxMessage.objects.filter(pk=a_dead_message(consumer).pk).update(body_truncated=True)
    a_dead_message(a_consumer(name="gone"))
    InboxMessage.objects.filter(pk=a_dead_message(consumer).pk).update(type="test.erased")
    for state in ("handled", "effects_due", "retrying", "waiting", "discarded"):
        InboxMessage.objects.create(consumer="notes", message_id=state, state=state, type="test.noted")
    for message_id, attempt in (("replayed", 4), ("failed again since", 5)):
        an_inbox_row(message_id=message_id, state="retrying", attempt=attempt, attempts_before=3)
    before = list(InboxMessage.objects.values())

    told = planned()

    assert told == {
        Plan.RUNS: 2,
        Plan.REPLAYED: 1,
        Plan.DONE: 2,
        Plan.WAITS: 3,
        Plan.NO_HANDLER: 2,
        Plan.TRUNCATED: 1,
        Plan.DISCARDED: 1,
    }
    assert list(InboxMessage.objects.values()) == before
    assert not OutboxMessage.objects.exists()
    assert not OperatorAction.objects.exists()
    assert replayed().replayed == told[Plan.RUNS]


def test_a_plan_sums_its_consumers_and_lists_the_largest_number_first(consumer: Consumer) -> None:
    others = [a_consumer(name=name) for name in ("copies", "archive")]
    with registered(consumer, *others):
        for each in (*others, consumer, consumer):
            a_dead_message(each)

        plan = replay.plan(ALL)

    assert (plan.changed, [count for count, _ in plan.lines]) == (4, [4])
    assert [(count, name) for _, count, name, _ in plan.table] == [(2, "notes"), (1, "archive"), (1, "copies")]


def test_a_failure_group_that_was_replayed_meanwhile_is_said_to_be_so(consumer: Consumer) -> None:
    group = Selection(group=a_dead_message(consumer).failure_group)
    assert replayed(group).replayed == 1
    assert replay.why_nothing(group) == "1 already replayed"


def test_filters_say_which(consumer: Consumer) -> None:
    copies = a_consumer(name="copies")
    with registered(consumer, copies):
        a = a_dead_message(consumer, "a", **{"x-subject": "W-1"})
        InboxMessage.objects.filter(pk=a.pk).update(changed_at=a.changed_at - timedelta(hours=2))
        b, c = a_dead_message(consumer, "b", reason="gateway down"), a_dead_message(copies, "c")
        for wanted, found in [
            (Selection(reason="GATEWAY"), {b}),
            (Selection(consumer="copies"), {c}),
            (Selection(subject="W-1"), {a}),
            (Selection(type="test.noted"), {a, b, c}),
            (Selection(type="test.erased"), set()),
            (Selection(since=timedelta(hours=1)), {b, c}),
            (Selection(consumer="notes", since=timedelta(hours=1)), {b}),
        ]:
            assert set(replay.rows(InboxMessage, wanted)) == found, wanted


def test_a_failure_group_is_replayed_together(consumer: Consumer) -> None:
    rows = [a_dead_message(consumer, reason=f"no order 'W-{number}'") for number in (1, 2)]
    a_dead_message(consumer, reason="gateway down")
    assert replayed(Selection(group=rows[0].failure_group)).replayed == 2
    assert set(OutboxMessage.objects.values_list("message_id", flat=True)) == {row.message_id for row in rows}


def test_a_discarded_message_is_not_replayed_any_more_and_a_copy_is_a_duplicate(consumer: Consumer) -> None:
    row = a_dead_message(consumer, reason="no such order")

    assert discard.run(Selection(message_ids=[row.message_id]), by=WHO, note="test data").facts == {"discarded": 1}

    row.refresh_from_db()
    assert (row.state, row.reason) == ("discarded", f"discarded by {WHO}: test data; it was dead: no such order")
    assert replayed().replayed == 0
    assert handling.handle(consumer, a_delivery(a_message(id=row.message_id))) == "duplicate"
    assert notes() == 0


# --- two operators -----------------------------------------------------------------------------------------


@committed
def test_many_operators_at_once_replay_each_message_once(consumer: Consumer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(action, "SIZE", 3)
    dead(16)
    results = at_once(*(partial(replayed, by=name) for name in ("a", "b", "c", "d")))
    assert sum(each.replayed for each in results) == 16
    assert OutboxMessage.objects.count() == 16
    assert sum(OperatorAction.objects.values_list("changed", flat=True)) == 16
    assert ActionOnMessage.objects.count() == 16


@committed
def test_a_discard_and_a_replay_at_once_are_one_of_both(consumer: Consumer) -> None:
    dead(12)
    went, gone = at_once(lambda: replayed().replayed, lambda: discard.run(ALL, by="bob").changed)
    assert went + gone == 12
    assert OutboxMessage.objects.count() == went == InboxMessage.objects.filter(state="retrying").count()


# --- pace --------------------------------------------------------------------------------------------------


class Pace:
    """The clock of a replay, and a consumer that handles what was replayed while it sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.consumer: Consumer | None = None

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.consumer:
            for row in OutboxMessage.objects.filter(state="pending", origin="replay"):
                handling.handle(self.consumer, delivery_of(row, queue=self.consumer.queue))
                OutboxMessage.objects.filter(pk=row.pk).update(state="published")


@pytest.fixture
def pace(monkeypatch: pytest.MonkeyPatch, consumer: Consumer) -> Pace:
    pace = Pace()
    monkeypatch.setattr(replay_run, "time", pace)
    pace.consumer = consumer
    return pace


@pytest.mark.parametrize(
    ("failing", "options", "replayed_", "failed", "why"),
    [
        ("", {"canary": 3}, 3, 3, "3 of 3 failed again: 100%, over the limit of 20%"),
        ("m01", {"canary": 4, "max_failures": 0.25}, 10, 1, ""),
        ("none of them", {"canary": 3}, 10, 0, ""),
    ],
)
def test_a_canary_that_fails_stops_the_others(
    pace: Pace, handler: FailingHandler, failing: str, options: dict[str, Any], replayed_: int, failed: int, why: str
) -> None:
    dead(10)
    handler.failing[failing] = ValueError("still broken")
    result = replayed(**options)
    assert (result.replayed, result.failed, result.left) == (replayed_, failed, 10 - replayed_)
    assert (result.stopped, result.timed_out) == (why, False)
    pace.sleep(1)
    assert InboxMessage.objects.filter(state="handled", attempt=2).count() == replayed_ - failed
    assert notes() == InboxMessage.objects.filter(state="handled").count()


def test_a_canary_that_is_not_handled_stops_the_others_in_time(pace: Pace, consumer: Consumer) -> None:
    dead(4)
    pace.consumer = None
    result = replayed(canary=2, canary_wait=2)
    assert result.timed_out
    assert 2 <= pace.now < 3
    assert "2 of the first 2 had not been handled after 2 s" in result.stopped
    assert (result.replayed, result.left) == (2, 2)


@pytest.mark.parametrize(
    ("state", "error"), [("failed", "no such number"), ("unknown", "no answer"), ("intended", "busy")]
)
def test_an_effect_that_fails_counts_as_a_failure(pace: Pace, consumer: Consumer, state: str, error: str) -> None:
    dead(3)

    def texting(event: Any, delivery: Any) -> None:
        row = InboxMessage.objects.get(message_id=delivery.message_id)
        Effect.objects.create(
            inbox_message=row, consumer="notes", message_id=row.message_id, name="text", state=state, error=error
        )
        if state == "intended":
            InboxMessage.objects.filter(pk=row.pk).update(state="effects_due")

    pace.consumer = a_consumer(texting)
    result = replayed(canary=1)
    assert (result.replayed, result.failed) == (1, 1)


def test_failures_that_begin_later_stop_it_too(
    pace: Pace, consumer: Consumer, handler: FailingHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(action, "SIZE", 5)
    dead(15)
    handler.failing.update({f"m{number:02}": ValueError("broken again") for number in range(5, 15)})
    result = replayed(rate=25)
    assert (result.replayed, result.left) == (10, 5)
    assert "5 of 10 failed again" in result.stopped


def test_no_more_than_the_rate_go_in_a_second_however_slow_the_database_was(
    pace: Pace, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments: list[float] = []

    def slowly(*told: Any, **more: Any) -> None:
        pace.now += 0.1
        moments.append(pace.now)
        resend(*told, **more)

    resend = outbox.resend
    monkeypatch.setattr(outbox, "resend", slowly)
    dead(10)

    assert replayed(rate=5).replayed == 10
    assert moments[5] - moments[4] >= 1


def test_it_can_be_told_to_stop_and_goes_on_when_asked_again(
    consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(action, "SIZE", 2)
    dead(6)
    result = replayed(should_stop=lambda: OutboxMessage.objects.count() >= 4)
    assert (result.replayed, result.left, result.stopped) == (4, 2, "told to stop")
    assert replayed().replayed == 2


@pytest.mark.parametrize(("name", "value"), [("rate", 0), ("canary", -1), ("max_failures", 1.1)])
def test_a_pace_that_makes_no_sense_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is from "):
        replayed(**{name: value})


# --- by Celery -------------------------------------------------------------------------------------------------


def test_celery_does_the_same(consumer: Consumer) -> None:
    row = a_dead_message(consumer)
    a_dead_message(consumer, reason="another one")
    done = tasks.of_actions["replay"](by="ann", group=row.failure_group, since=3600, note="gateway is back", rate=10)
    assert (done["replayed"], done["stopped"]) == (1, "")
    assert OutboxMessage.objects.get().message_id == row.message_id
    assert OperatorAction.objects.get().actor == "ann"
    with pytest.raises(ValueError, match="say which"):
        tasks.of_actions["replay"](by="ann")


def test_a_task_that_stopped_is_no_success(pace: Pace, consumer: Consumer, handler: FailingHandler) -> None:
    dead(4)
    handler.failing[""] = ValueError("still broken")
    with pytest.raises(ReplayStopped, match=r"^2 replayed\. .* 2 were not replayed\.$"):
        tasks.of_actions["replay"](by="ann", consumer="notes", canary=2)


# --- publish now -----------------------------------------------------------------------------------


def test_a_waiting_retry_and_a_refused_row_are_published_now() -> None:
    later = database.in_future(3600)
    an_outbox_row(message_id="retry", consumer="notes", publish_at=later)
    an_outbox_row(message_id="unroutable", state="unroutable", publish_at=later)
    an_outbox_row(message_id="refused", state="failed")
    assert leases.claim(10, 30) == []

    assert publish_now.run(ALL, by=WHO).changed == 3

    assert {row.message_id for row in leases.claim(10, 30)} == {"retry", "unroutable", "refused"}
    action = OperatorAction.objects.get()
    assert (action.action, action.changed) == ("publish", 3)


def test_rows_that_are_due_published_cancelled_or_leased_are_left_alone() -> None:
    later = database.in_future(3600)
    an_outbox_row()
    an_outbox_row(state="published", publish_at=later)
    an_outbox_row(state="cancelled", publish_at=later)
    an_outbox_row(publish_at=later, lease_until=database.in_future(20))
    before = list(OutboxMessage.objects.values())
    assert publish_now.run(ALL, by=WHO).changed == 0
    assert list(OutboxMessage.objects.values()) == before

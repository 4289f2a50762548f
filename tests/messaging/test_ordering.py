"""Messages of one ordering key are handled in the order of their transactions, through retries; others flow."""

import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from importlib import import_module
from typing import Any

import pytest
from celery import current_app
from django.db import transaction
from django.utils.timezone import now
from structlog.testing import capture_logs

from messaging import conf, database, effects, outbox
from messaging.actions.cancel import cancel
from messaging.actions.replay import replay
from messaging.actions.selection import Selection
from messaging.consumers import Consumer
from messaging.effects import EffectKind
from messaging.exceptions import Reject
from messaging.message import Delivery
from messaging.models import InboxMessage, OutboxMessage
from messaging.reconcile.stuck import stuck
from messaging.worker import handling, inbox, ordering
from messaging.worker.upkeep import Upkeep
from tests.support.consuming import Noted, a_consumer, an_effect, delivery_of, outcomes_of_attempts, registered
from tests.support.running import InThread, add
from tests.support.waiting import eventually, locks_waited_for

pytestmark = pytest.mark.django_db
#: For several transactions at once.
committing = pytest.mark.django_db(transaction=True)

State = InboxMessage.State


class Diary:
    """A handler that writes down what it handled, and fails for what it is told to."""

    def __init__(self) -> None:
        self.handled: list[str] = []
        self.failing: dict[str, Exception] = {}

    def __call__(self, event: Noted, delivery: Delivery) -> None:
        if event.text in self.failing:
            raise self.failing[event.text]
        self.handled.append(event.text)

    __module__ = __name__
    __qualname__ = "Diary"


@pytest.fixture
def diary() -> Diary:
    return Diary()


@pytest.fixture
def consumer(diary: Diary) -> Iterator[Consumer]:
    consumer = a_consumer(diary)
    with registered(consumer):
        yield consumer


def added(*texts: str, key: str = "W-1", to: Sequence[str] = ("notes",)) -> list[OutboxMessage]:
    """Events of one key, each in a transaction of its own, published to these consumers."""
    rows = [add(Noted(text=text), ordering_key=key)[0] for text in texts]
    OutboxMessage.objects.filter(pk__in=[row.pk for row in rows]).update(state="published", expected_consumers=list(to))
    return rows


def arrives(consumer: Consumer, row: OutboxMessage) -> str:
    return handling.handle(consumer, delivery_of(row, consumer=consumer.name))


def sent_again(message_id: str) -> OutboxMessage:
    """The latest row by which a message comes again."""
    return OutboxMessage.objects.filter(message_id=message_id).exclude(origin="event").latest("pk")


def test_an_early_message_waits_visibly_and_is_sent_again_in_its_order(consumer: Consumer, diary: Diary) -> None:
    first, second = added("first", "second")
    assert [arrives(consumer, second) for _ in range(2)] == ["waiting", "duplicate"]
    assert InboxMessage.objects.get().state == State.WAITING
    assert not OutboxMessage.objects.exclude(origin="event").exists()

    assert [arrives(consumer, first) for _ in range(2)] == ["handled", "duplicate"]
    again = sent_again(second.message_id)
    assert (again.consumer, again.routing_key, again.attempt, again.origin) == ("notes", consumer.queue, 1, "turn")
    assert [arrives(consumer, row) for row in (again, again, second)] == ["handled", "duplicate", "duplicate"]
    assert diary.handled == ["first", "second"]


def test_the_order_holds_through_retries(consumer: Consumer, diary: Diary) -> None:
    first, second, third = added("first", "second", "third")
    diary.failing["first"] = RuntimeError("gateway down")
    assert [arrives(consumer, row) for row in (first, second, third)] == ["retrying", "waiting", "waiting"]

    diary.failing.clear()
    assert arrives(consumer, sent_again(first.message_id)) == "handled"
    assert arrives(consumer, sent_again(second.message_id)) == "handled"
    assert arrives(consumer, sent_again(third.message_id)) == "handled"
    assert diary.handled == ["first", "second", "third"]


def test_a_retry_that_waits_for_an_earlier_message_that_is_replayed_keeps_its_count(
    consumer: Consumer, diary: Diary
) -> None:
    first, second = added("first", "second")
    diary.failing = {"first": Reject("no such order"), "second": RuntimeError("gateway down")}
    assert [arrives(consumer, row) for row in (first, second)] == ["dead", "retrying"]
    replay.run(Selection(message_ids=[first.message_id]), by="ann")
    retry = sent_again(second.message_id)
    diary.failing.clear()
    assert arrives(consumer, retry) == "waiting"
    assert InboxMessage.objects.get(message_id=second.message_id).attempt == retry.attempt == 2

    assert arrives(consumer, sent_again(first.message_id)) == "handled"
    assert arrives(consumer, sent_again(second.message_id)) == "handled"
    assert outcomes_of_attempts(message_id=second.message_id)[-1] == (2, "handled")


def test_messages_of_other_keys_and_without_a_key_flow(consumer: Consumer, diary: Diary) -> None:
    (stuck,) = added("stuck", key="W-1")
    diary.failing["stuck"] = RuntimeError("gateway down")
    arrives(consumer, stuck)
    (other,) = added("other", key="W-2")
    (free,) = added("free", key="")
    assert arrives(consumer, other) == arrives(consumer, free) == "handled"


def test_a_dead_message_delays_no_later_one(consumer: Consumer, diary: Diary) -> None:
    first, second = added("first", "second")
    diary.failing["first"] = Reject("no such order")
    assert arrives(consumer, second) == "waiting"
    assert arrives(consumer, first) == "dead"
    assert arrives(consumer, sent_again(second.message_id)) == "handled"


@pytest.mark.parametrize(
    ("first", "verdict"),
    [
        # Still to be published, for this consumer too.
        ({"state": "unroutable", "expected_consumers": []}, "waiting"),
        ({"state": "pending", "publish_at": now() + timedelta(hours=1)}, "waiting"),
        # It never comes here.
        ({"type": "test.erased"}, "handled"),
        ({"expected_consumers": ["declared before"]}, "handled"),
        ({"state": "failed"}, "handled"),
        ({"state": "cancelled"}, "handled"),
    ],
)
def test_only_a_message_that_comes_to_the_consumer_is_waited_for(
    consumer: Consumer, first: dict[str, Any], verdict: str
) -> None:
    earlier, second = added("first", "second")
    OutboxMessage.objects.filter(pk=earlier.pk).update(**first)
    assert arrives(consumer, second) == verdict


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_a_message_that_will_not_be_published_is_not_waited_for(consumer: Consumer, state: str) -> None:
    first, second = added("first", "second")
    assert arrives(consumer, second) == "waiting"
    OutboxMessage.objects.filter(pk=first.pk).update(state=state)
    assert ordering.release_due([consumer])[0] == 1
    assert arrives(consumer, sent_again(second.message_id)) == "handled"
    assert ordering.release_due([consumer])[0] == 0


@pytest.mark.parametrize("name", ["messaging.run_effects", "messaging.sweep"])
def test_a_task_of_celery_does_what_is_due_where_no_consumer_runs(consumer: Consumer, name: str) -> None:
    """By the name of today, and by the one that schedules of earlier versions have."""
    first, second = added("first", "second")
    assert arrives(consumer, second) == "waiting"
    OutboxMessage.objects.filter(pk=first.pk).update(state="cancelled")
    an_effect("intended", inbox_state="effects due")
    sent: list[str] = []
    with effects.registry.temporary(EffectKind(name="text", send=lambda sending: sent.append(sending.key))):
        import_module("messaging.tasks")  # as a worker of Celery does at its start
        assert current_app.tasks[name]() == {"effects": 1, "released": 1}
    assert sent == ["m-1:notes:text"]


def test_a_message_that_was_cancelled_after_it_arrived_is_waited_for(consumer: Consumer, diary: Diary) -> None:
    """It was unroutable for another consumer alone: here it goes on, and nothing may overtake it."""
    first, second = added("first", "second")
    diary.failing["first"] = RuntimeError("gateway down")
    assert arrives(consumer, first) == "retrying"
    OutboxMessage.objects.filter(pk=first.pk).update(state="unroutable", expected_consumers=["notes", "copies"])
    cancel.run(Selection(outbox_rows=[first.pk]), by="ann")
    assert OutboxMessage.objects.get(pk=first.pk).state == "cancelled"
    assert arrives(consumer, second) == "waiting"
    assert ordering.release_due([consumer])[0] == 0

    diary.failing.clear()
    assert arrives(consumer, sent_again(first.message_id)) == "handled"
    assert arrives(consumer, sent_again(second.message_id)) == "handled"
    assert diary.handled == ["first", "second"]


def test_each_consumer_has_an_order_of_its_own(consumer: Consumer) -> None:
    """What another consumer has handled, or lets wait, says nothing about this one."""
    copies = a_consumer(name="copies")
    first, second = added("first", "second", to=["copies", "notes"])
    assert arrives(copies, second) == "waiting"
    assert arrives(consumer, first) == "handled"
    assert ordering.release_due([consumer, copies])[0] == 0
    assert not OutboxMessage.objects.exclude(origin="event").exists()


def test_a_lost_message_that_is_sent_again_keeps_its_place(consumer: Consumer, diary: Diary) -> None:
    first, second = added("first", "second")
    assert arrives(consumer, second) == "waiting"
    with transaction.atomic():
        outbox.resend(first, consumer="notes", queue=consumer.queue, origin=OutboxMessage.Origin.RECONCILE)
    assert arrives(consumer, sent_again(first.message_id)) == "handled"
    assert arrives(consumer, sent_again(second.message_id)) == "handled"
    assert diary.handled == ["first", "second"]


def test_a_batch_keeps_the_order(consumer: Consumer, diary: Diary) -> None:
    rows = added("first", "second", "third")
    together = handling.handle_together(consumer, [delivery_of(row) for row in rows])
    assert together == ["handled"] * 3
    assert diary.handled == ["first", "second", "third"]

    fourth, fifth = added("fourth", "fifth")
    together = handling.handle_together(consumer, [delivery_of(fifth), delivery_of(fourth)])
    assert together == ["waiting", "handled"]


def test_an_odd_position_makes_a_message_dead(consumer: Consumer) -> None:
    (row,) = added("first")
    delivery = delivery_of(row)
    forged = {**delivery.message.headers, "x-position": "seven"}
    object.__setattr__(delivery.message, "headers", forged)
    assert handling.handle(consumer, delivery) == "dead"


def test_a_key_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="255"):
        add(Noted(text="x"), ordering_key="k" * 256)


def in_a_transaction(work: Callable[[], Any], begun: threading.Event, go_on: threading.Event) -> InThread:
    def run() -> Any:
        with transaction.atomic():
            result = work()
            begun.set()
            assert go_on.wait(15)
            return result

    return InThread(run, "transaction")


@committing
@pytest.mark.only_on("postgresql")  # SQLite has one writer
def test_rows_of_one_key_have_the_order_of_their_commits() -> None:
    begun, go_on = threading.Event(), threading.Event()
    early = in_a_transaction(lambda: outbox.add(Noted(text="early"), ordering_key="W-1"), begun, go_on)
    assert begun.wait(15)
    late = InThread(lambda: add(Noted(text="late"), ordering_key="W-1"), "late")
    assert add(Noted(text="other"), ordering_key="W-2")  # does not wait
    eventually(lambda: waits_for_a_lock(late))
    go_on.set()
    assert early.join()[0].pk < late.join()[0].pk


@committing
@pytest.mark.only_on("postgresql")
def test_two_messages_of_one_key_are_never_handled_at_once(consumer: Consumer) -> None:
    first, second = added("first", "second")
    begun, go_on = threading.Event(), threading.Event()

    def slow(event: Noted, delivery: Delivery) -> None:
        begun.set()
        assert go_on.wait(15)

    slowly = InThread(lambda: arrives(a_consumer(slow), first), "first")
    assert begun.wait(15)
    quickly = InThread(lambda: arrives(consumer, second), "second")
    quickly.thread.join(0.2)
    assert quickly.thread.is_alive(), "the second was not held back"
    go_on.set()
    assert (slowly.join(), quickly.join()) == ("handled", "handled")


@committing
@pytest.mark.only_on("postgresql")
def test_settling_and_waiting_at_once_leave_no_message_behind(consumer: Consumer, diary: Diary) -> None:
    """If the two did not see each other, the second would wait for ever."""
    for round_ in range(10):
        first, second = added("first", "second", key=f"W-{round_}")
        both = [InThread(lambda row=row: arrives(consumer, row), "race") for row in (second, first)]
        for each in both:
            each.join()
        for row in OutboxMessage.objects.filter(origin="turn", ordering_key=f"W-{round_}"):
            arrives(consumer, row)
        assert InboxMessage.objects.filter(ordering_key=f"W-{round_}", state="handled").count() == 2
    assert diary.handled == ["first", "second"] * 10


@committing
def test_a_consumer_process_releases_what_waits_behind_a_cancelled_event(
    consumer: Consumer, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conf, "POLL_INTERVAL", 0.05)
    first, second = added("first", "second")
    assert arrives(consumer, second) == "waiting"
    OutboxMessage.objects.filter(pk=first.pk).update(state="cancelled")
    upkeep = Upkeep([consumer])
    upkeep.thread.start()
    try:
        eventually(lambda: OutboxMessage.objects.filter(message_id=second.message_id, origin="turn"))
    finally:
        upkeep.stopping.set()
        upkeep.thread.join(15)


def test_waiting_keys_are_looked_at_a_few_at_a_time_and_none_is_left_out(consumer: Consumer, diary: Diary) -> None:
    """Where thousands wait behind one that fails, effects do not wait until each of them was looked at."""
    copies, elsewhere = a_consumer(diary, name="copies"), a_consumer(diary, name="elsewhere")
    diary.failing["first"] = RuntimeError("gateway down")
    assert arrives(copies, added("first", key="W-1", to=["copies"])[0]) == "retrying"
    for each, key in [(elsewhere, "W-1"), (copies, "W-3"), *((consumer, f"W-{number}") for number in range(1, 6))]:
        first, second = added("first", "second", key=key, to=[each.name])
        assert (arrives(each, first), arrives(each, second)) == ("retrying", "waiting")
    failing = InboxMessage.objects.filter(consumer="notes", state="retrying")
    failing.filter(ordering_key__in=["W-3", "W-5"]).update(state="dead")

    looks = []
    reached = ordering.BEGINNING
    for _ in range(4):
        released, reached = ordering.release_due([consumer, copies], after=reached, limit=3)
        looks.append((released, reached))
    assert looks == [
        (0, ("notes", "W-2")),  # behind that of the copies
        (2, ("notes", "W-5")),
        (0, ordering.BEGINNING),
        (0, ("notes", "W-2")),
    ]


@pytest.mark.only_on("sqlite")
def test_on_sqlite_releasing_waiting_messages_lets_the_shop_write_in_between(
    consumer: Consumer, diary: Diary, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "RECONCILE_AFTER": 0.001}
    for key in ("W-1", "W-2", "W-3"):
        first, second = added("first", "second", key=key)
        diary.failing["first"] = RuntimeError("gateway down")
        assert (arrives(consumer, first), arrives(consumer, second)) == ("retrying", "waiting")
    pauses: list[float] = []
    monkeypatch.setattr(database.time, "sleep", pauses.append)

    ordering.release_due([consumer])
    assert len(pauses) == 3
    list(stuck([consumer]))
    assert len(pauses) == 6


@committing
@pytest.mark.only_on("postgresql")
def test_a_copy_that_arrives_while_a_failure_is_recorded_does_not_block(
    consumer: Consumer, diary: Diary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both need the key and the row. Taken in different order, each would wait for what the other has."""
    (row,) = added("first")
    diary.failing["first"] = Reject("no such order")
    copies: list[InThread] = []
    bury = inbox.bury

    def bury_and_be_met(delivery: Delivery, reason: str) -> int | None:
        buried = bury(delivery, reason)
        copies.append(InThread(lambda: arrives(a_consumer(), row), "copy"))
        eventually(lambda: waits_for_a_lock(copies[0]))
        return buried

    monkeypatch.setattr(inbox, "bury", bury_and_be_met)
    with capture_logs() as logs:
        assert arrives(consumer, row) == "dead"
        assert copies[0].join() == "duplicate"
    assert not [each for each in logs if each["event"] == "message.contention"]


def waits_for_a_lock(thread: InThread) -> bool:
    assert thread.thread.is_alive()
    return locks_waited_for() > 0

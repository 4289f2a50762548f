"""What the broker lost is named, and sent again once; nothing else is. The broker is played by lists: what a real one
answers about its queues is tested in `tests/faults/test_lost.py`."""

import json
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db.models import DateTimeField, F
from django.db.models.functions import Now

from messaging import consumers, database, tasks
from messaging.broker.queue_answers import QueueAnswer
from messaging.consumers import Consumer
from messaging.events import Event
from messaging.exceptions import AccessRefused, BrokerUnavailable, NotFound
from messaging.message import Delivery
from messaging.models import DeliveryAttempt, Effect, EmptyQueue, InboxMessage, OperatorAction, OutboxMessage
from messaging.reconcile import empty_queues, lost
from messaging.reconcile.findings import Trouble
from messaging.reconcile.reconcile import Report, reconcile
from messaging.routing import Exchange
from messaging.worker import handling, inbox
from tests.support.command_line import Said, messages
from tests.support.consuming import (
    Noted,
    a_consumer,
    a_delivery,
    an_inbox_row,
    an_outbox_row,
    delivery_of,
    look_after,
    note,
    notes,
    registered,
    take_note,
)
from tests.support.running import add, at_once

pytestmark = pytest.mark.django_db

State = InboxMessage.State


class Filed(Event, type="test.filed", exchange=Exchange("test.files", "headers"), headers=("format",)):
    """Something was filed; who wants it says in which format."""

    format: str


class Broker:
    """The queues of the registered consumers, and the messages in them."""

    def __init__(self) -> None:
        self.queues: dict[str, list[OutboxMessage]] = defaultdict(list)

    def relay(self) -> None:
        """Let everything go out that waits."""
        for row in OutboxMessage.objects.filter(state="pending").order_by("pk"):
            for each in consumers.registered():
                if each.name == row.consumer or (not row.consumer and each.wants(row.type)):
                    self.queues[each.queue].append(row)
                    row.expected_consumers.append(each.name)
            row.state, row.published_at = OutboxMessage.State.PUBLISHED, Now()
            row.save()
            row.refresh_from_db()

    def publish(self, *texts: str, **options: Any) -> list[OutboxMessage]:
        rows = add(*(Noted(text=text) for text in texts), **options)
        self.relay()
        return rows

    def lose(self, consumer: Consumer, *texts: str, **options: Any) -> list[OutboxMessage]:
        """Publish events and lose what is in the consumer's queue, which is then seen empty for long enough."""
        rows = self.publish(*texts, **options)
        self.queues[consumer.queue].clear()
        seen_empty()
        return rows

    def handle(self, *wanted: Consumer) -> None:
        """Let everything be handled that is in the queues of these consumers; what follows from it goes out."""
        for consumer in wanted:
            while queue := self.queues[consumer.queue]:
                handling.handle(consumer, delivery_of(queue.pop(0), consumer=consumer.name, queue=consumer.queue))
                self.relay()

    def answers(self, _: object, queues: list[str], **__: Any) -> dict[str, QueueAnswer]:
        """What the queues tell."""
        return {queue: QueueAnswer(ready=len(self.queues[queue])) for queue in queues}


@pytest.fixture
def consumer(broker: Broker) -> Consumer:
    return known()


@pytest.fixture(autouse=True)
def broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    broker = Broker()
    monkeypatch.setattr(empty_queues, "opened", nullcontext)
    monkeypatch.setattr(empty_queues, "ask_queues", broker.answers)
    monkeypatch.setattr(empty_queues, "PAUSE", 0.0)
    with registered():
        yield broker


def known(name: str = "notes", handler: Callable[..., None] = take_note) -> Consumer:
    """A consumer that relays and reconcile know."""
    consumer = a_consumer(handler, name)
    consumers.registry.put(consumer)
    return consumer


def time_passes(minutes: float = 60) -> None:
    """Let everything have happened that much longer ago."""
    before = timedelta(minutes=minutes)
    for model in (OutboxMessage, InboxMessage, DeliveryAttempt, Effect, EmptyQueue):
        times = [f.name for f in model._meta.concrete_fields if isinstance(f, DateTimeField)]
        model._default_manager.update(**{name: F(name) - before for name in times})
    for queue in EmptyQueue.objects.all():
        queue.young = [(datetime.fromisoformat(text) - before).isoformat() for text in queue.young]
        queue.save()


def seen_empty() -> None:
    """Let every queue be seen empty, now and a while ago."""
    time_passes(minutes=5)
    named()
    time_passes()
    named()


def named(**options: Any) -> Report:
    """What is found, without changing anything."""
    return reconcile(repair=False, by="", **options)


def repaired(**options: Any) -> Report:
    return reconcile(repair=True, by="ann", **options)


def lost_ids(report: Report) -> list[str]:
    return [each.message_id for each in report.of(Trouble.LOST)]


def whys() -> list[str]:
    return [each.why for each in named().findings]


# --- lost --------------------------------------------------------------------------------------------------


def test_an_arrived_message_is_not_reported(broker: Broker, consumer: Consumer) -> None:
    broker.publish("a", "b", "c")
    broker.handle(consumer)
    seen_empty()
    assert repaired() == Report()


def test_a_lost_message_is_named_and_sent_again_to_the_consumer_that_missed_it(broker: Broker) -> None:
    first, second = known("first"), known("second")
    row, _ = broker.publish("a", "b")
    broker.handle(first)
    broker.queues[second.queue].pop(0)
    broker.handle(second)
    seen_empty()

    report = named()
    (finding,) = report.findings
    assert (finding.trouble, finding.message_id, finding.consumer) == ("lost", row.message_id, "second")
    assert not report.is_well
    assert OutboxMessage.objects.count() == 2

    assert repaired().is_well
    again = OutboxMessage.objects.get(origin="reconcile")
    assert (again.message_id, again.attempt, again.consumer) == (row.message_id, 1, "second")
    assert (again.exchange, again.routing_key) == ("", second.queue)
    done = OperatorAction.objects.get()
    assert (done.action, done.actor, done.changed) == ("reconcile", "ann", 1)
    assert repaired() == Report()

    broker.relay()
    assert broker.queues[first.queue] == []
    broker.handle(second)
    assert notes() == 4
    seen_empty()
    assert repaired() == Report()


def test_what_is_in_a_queue_that_was_not_seen_empty_twice_is_not_lost(broker: Broker, consumer: Consumer) -> None:
    broker.publish("a", "b")
    for _ in range(3):
        report = repaired()
        assert report.findings == []
        assert report.undecided == {"notes": f"queue {consumer.queue} is not empty"}
        time_passes()
    broker.queues[consumer.queue].clear()
    report = repaired()
    assert report.findings == []
    assert "seen empty once more" in report.undecided["notes"]
    assert OutboxMessage.objects.count() == 2


def test_what_was_published_since_the_queue_was_empty_is_not_lost(broker: Broker, consumer: Consumer) -> None:
    seen_empty()
    broker.publish("a")
    broker.queues[consumer.queue].clear()
    assert named().findings == []


def test_what_was_sent_to_one_consumer_alone_is_not_missed_by_another(broker: Broker) -> None:
    broker.publish("a")
    OutboxMessage.objects.update(consumer="copies")
    known()
    seen_empty()
    assert named().findings == []


def test_messages_in_the_hands_of_a_slow_consumer_are_not_lost(broker: Broker, consumer: Consumer) -> None:
    """The queue shows none ready, and RabbitMQ does not tell over AMQP of those that were delivered."""
    rows = broker.publish("a", "b", "c", "d")
    broker.queues[consumer.queue].clear()
    named()
    for row in rows:
        time_passes()
        assert handling.handle(consumer, delivery_of(row)) == "handled"
        for _ in range(2):
            assert repaired().findings == []
    assert not OutboxMessage.objects.filter(origin="reconcile").exists()


def test_a_lost_retry_is_sent_again_with_its_attempt(broker: Broker) -> None:
    moods = [ValueError("no")]

    def moody(event: Noted, delivery: Delivery) -> None:
        note(event.text)
        if moods:
            raise moods.pop()

    consumer = known(handler=moody)
    (row,) = broker.publish("a")
    broker.queues[consumer.queue].clear()
    assert handling.handle(consumer, delivery_of(row, queue=consumer.queue)) == "retrying"
    broker.relay()
    broker.queues[consumer.queue].clear()
    seen_empty()
    (finding,) = repaired().findings
    assert "attempt 2 has not come" in finding.why
    assert OutboxMessage.objects.get(origin="reconcile").attempt == 2
    broker.relay()
    broker.handle(consumer)
    assert InboxMessage.objects.get().state == State.HANDLED
    assert notes() == 1


def test_a_copy_that_is_lost_too_is_sent_again_after_the_interval_only(broker: Broker, consumer: Consumer) -> None:
    broker.lose(consumer, "a")
    assert repaired().sent_again == 1
    broker.relay()
    # It counts since its publish, however long it waited for that.
    OutboxMessage.objects.filter(origin="reconcile").update(created_at=database.in_future(-86_400))
    broker.queues[consumer.queue].clear()
    time_passes(minutes=2)
    named()
    time_passes(minutes=8)
    assert repaired() == Report()
    time_passes(minutes=10)
    assert repaired().sent_again == 1
    broker.relay()
    broker.handle(consumer)
    assert OutboxMessage.objects.filter(origin="reconcile").count() == 2
    assert notes() == 1


def test_no_more_than_the_limit_are_sent_at_once_and_the_others_later(broker: Broker, consumer: Consumer) -> None:
    broker.lose(consumer, *(str(number) for number in range(12)))
    assert [repaired(limit=5).sent_again for _ in range(4)] == [5, 5, 2, 0]
    broker.relay()
    broker.handle(consumer)
    assert notes() == 12


def test_what_arrives_after_it_was_named_is_not_sent_again(
    broker: Broker, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (row,) = broker.lose(consumer, "late")
    compare = lost.compare

    def compared_before_it_arrives(*arguments: Any) -> lost.Comparison:
        compared = compare(*arguments)
        assert handling.handle(consumer, delivery_of(row)) == "handled"
        return compared

    monkeypatch.setattr(lost, "compare", compared_before_it_arrives)
    report = repaired()
    assert (report.findings, report.sent_again) == ([], 0)
    assert not OutboxMessage.objects.filter(origin="reconcile").exists()


@pytest.mark.django_db(transaction=True)
def test_two_at_once_send_each_message_once(
    broker: Broker, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.lose(consumer, *(str(number) for number in range(10)))
    both_found_them = threading.Barrier(2, timeout=30)
    compare = lost.compare

    def together(*arguments: Any) -> lost.Comparison:
        compared = compare(*arguments)
        both_found_them.wait()
        return compared

    monkeypatch.setattr(lost, "compare", together)
    reports = at_once(repaired, repaired)
    assert sum(report.sent_again for report in reports) == 10
    assert all(report.is_well for report in reports)
    assert OutboxMessage.objects.filter(origin="reconcile").count() == 10


def test_the_task_of_celery_sends_lost_messages_again(broker: Broker, consumer: Consumer) -> None:
    broker.lose(consumer, "a")
    assert tasks.reconcile_messages() == {"lost": 1, "stuck": 0, "doubled": 0, "sent again": 1}
    assert OperatorAction.objects.get().actor == "celery"


def test_a_message_whose_handling_has_begun_is_not_lost(broker: Broker, consumer: Consumer) -> None:
    (row,) = broker.lose(consumer, "a")
    assert inbox.start(delivery_of(row, redelivered=True))
    assert named().findings == []
    time_passes()
    assert lost_ids(named()) == [row.message_id]


def test_no_message_that_is_waited_for_is_forgotten_over_a_later_one(broker: Broker, consumer: Consumer) -> None:
    rows = [broker.publish("first"), broker.publish("second")]
    first, second = (row for each in rows for row in each)
    OutboxMessage.objects.filter(pk=first.pk).update(published_at=database.in_future(-60))
    broker.queues[consumer.queue].clear()
    seen_empty()
    for row in (first, second):
        assert inbox.start(delivery_of(row, redelivered=True))
    assert named(since=timedelta(days=1)).findings == []
    time_passes()
    assert sorted(lost_ids(named())) == sorted([first.message_id, second.message_id])


def test_what_is_named_is_named_again_whatever_the_database_makes_of_times(broker: Broker, consumer: Consumer) -> None:
    broker.publish("a")
    broker.queues[consumer.queue].clear()
    named()
    EmptyQueue.objects.update(empty_at=database.in_future(3600), young=[])
    OutboxMessage.objects.update(published_at=Now())
    for _ in range(3):
        assert len(lost_ids(named())) == 1


def test_what_arrived_is_not_read_again_and_what_comes_later_is(
    broker: Broker, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lost, "PAGE", 3)
    broker.publish(*(str(number) for number in range(10)))
    broker.handle(consumer)
    seen_empty()
    until = EmptyQueue.objects.get().checked_until
    assert until
    assert not OutboxMessage.objects.filter(published_at__gte=until).exists()

    (late,) = broker.lose(consumer, "late")
    for _ in range(3):  # it is not forgotten while it is not sent again
        assert lost_ids(named()) == [late.message_id]


@pytest.mark.parametrize("size", [1, 2, 500])
def test_rows_that_were_marked_in_the_same_moment_are_all_looked_at(
    broker: Broker, consumer: Consumer, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(lost, "PAGE", size)
    rows = broker.publish(*(str(number) for number in range(7)))
    OutboxMessage.objects.update(published_at=OutboxMessage.objects.order_by("pk").values("published_at")[:1])
    broker.queues[consumer.queue].clear()
    seen_empty()
    assert sorted(lost_ids(named())) == sorted(row.message_id for row in rows)
    assert sorted(lost_ids(named(limit=2)))[:2]
    assert repaired().sent_again == 7


def test_rows_that_were_published_in_another_order_than_written_are_all_looked_at(
    broker: Broker, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lost, "PAGE", 2)
    rows = broker.publish("a", "b", "c", "d")
    for seconds, row in enumerate(rows):
        OutboxMessage.objects.filter(pk=row.pk).update(published_at=F("published_at") - timedelta(seconds=seconds))
    broker.queues[consumer.queue].clear()
    seen_empty()
    assert lost_ids(named()) == [row.message_id for row in reversed(rows)]


def test_a_message_that_comes_while_it_is_sent_again_is_handled_once(broker: Broker, consumer: Consumer) -> None:
    broker.publish("a")
    late = broker.queues[consumer.queue].pop()
    seen_empty()
    assert repaired().sent_again == 1
    broker.queues[consumer.queue].append(late)
    broker.relay()
    broker.handle(consumer)
    assert notes() == 1


def test_a_lost_predecessor_holds_its_key_up_until_it_is_sent_again(broker: Broker) -> None:
    order: list[str] = []

    def in_order(event: Noted, delivery: Delivery) -> None:
        order.append(event.text)

    consumer = known(handler=in_order)
    broker.publish("first", ordering_key="k")
    broker.queues[consumer.queue].clear()
    broker.publish("second", ordering_key="k")
    broker.handle(consumer)
    assert order == []
    seen_empty()
    assert repaired().sent_again == 1
    broker.relay()
    broker.handle(consumer)
    assert order == ["first", "second"]


@pytest.mark.parametrize(("counts", "is_empty"), [([3, 2, 0], True), ([1] * empty_queues.TRIES, False)])
def test_a_busy_queue_is_asked_until_it_is_empty(
    monkeypatch: pytest.MonkeyPatch, consumer: Consumer, counts: list[int], is_empty: bool
) -> None:
    answers = iter(counts)
    monkeypatch.setattr(empty_queues, "ask_queues", lambda *_, **__: {consumer.queue: QueueAnswer(ready=next(answers))})
    assert set(empty_queues.look([consumer])[1]) == ({"notes"} if is_empty else set())
    assert list(answers) == []


@pytest.mark.parametrize(
    ("answer", "silent", "empty"),
    [
        (QueueAnswer(refusal=NotFound("NOT_FOUND - no queue 'q' in vhost '/'")), False, True),
        (QueueAnswer(refusal=AccessRefused("ACCESS_REFUSED - read access")), False, False),
        (QueueAnswer(silent="no answer within 5 s"), True, False),
    ],
)
def test_a_missing_queue_is_empty_and_nothing_is_known_of_one_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, consumer: Consumer, answer: QueueAnswer, silent: bool, empty: bool
) -> None:
    monkeypatch.setattr(empty_queues, "ask_queues", lambda *_, **__: {consumer.queue: answer})
    assert [bool(found) for found in empty_queues.look([consumer])] == [silent, empty]


# --- consumers that come and go ----------------------------------------------------------------------------


def test_a_consumer_deployed_today_does_not_get_what_was_before_unless_asked_for(broker: Broker) -> None:
    old = known("old")
    rows = broker.publish("a", "b", "c")
    broker.handle(old)
    new = known("new")
    seen_empty()
    assert repaired() == Report()

    (later,) = broker.publish("d")
    asked: dict[str, Any] = {"names": ["new"], "earlier": True, "since": timedelta(days=1)}
    assert [repaired(**asked, limit=2).sent_again for _ in range(3)] == [2, 1, 0]
    broker.relay()
    broker.handle(old, new)
    received = InboxMessage.objects.filter(consumer="new").values_list("message_id", flat=True)
    assert sorted(received) == sorted(row.message_id for row in [*rows, later])
    assert InboxMessage.objects.filter(consumer="old").count() == 4
    assert InboxMessage.objects.exclude(state=State.HANDLED).count() == 0
    assert repaired(**asked).sent_again == 0


@pytest.mark.parametrize(
    ("event", "wants", "sent"),
    [
        (Noted(text="a"), {"keys": ("test.#",)}, 1),
        (Noted(text="a"), {"keys": ("elsewhere.#",)}, 0),
        (Filed(format="pdf"), {"headers": {"format": "pdf"}}, 1),
        (Filed(format="pdf"), {"headers": {"format": "txt"}}, 0),
    ],
)
def test_a_new_consumer_gets_of_the_earlier_events_those_that_its_bindings_take(
    broker: Broker, event: Event, wants: dict[str, Any], sent: int
) -> None:
    add(event)
    broker.relay()
    consumers.registry.put(a_consumer(name="new", events=(type(event),), **wants))
    assert repaired(names=["new"], earlier=True, since=timedelta(days=1)).sent_again == sent


def test_earlier_events_are_asked_for_with_consumer_and_age(broker: Broker) -> None:
    known("old")
    broker.publish("a")
    known("new")

    def earlier(*arguments: str) -> Said:
        return messages("reconcile", "--earlier", *arguments)

    assert earlier().code == 2
    assert earlier("--consumer", "new").code == 2
    assert earlier("--consumer", "nobody", "--since", "1d").code == 2
    assert earlier("--consumer", "new", "--since", "1d").code == 6
    said = earlier("--consumer", "new", "--since", "1d", "--repair")
    assert (said.code, "1 message sent again" in said.out) == (0, True)
    OutboxMessage.objects.filter(origin="event").update(published_at=database.in_future(-3 * 86_400))
    OutboxMessage.objects.filter(origin="reconcile").delete()
    assert earlier("--consumer", "new", "--since", "2d", "--repair").code == 0
    assert not OutboxMessage.objects.filter(origin="reconcile").exists()


def test_checked_messages_are_checked_again_if_asked(broker: Broker, consumer: Consumer) -> None:
    """As after a backup of the database was restored."""
    broker.publish("a")
    broker.handle(consumer)
    seen_empty()
    assert named() == Report()
    InboxMessage.objects.all().delete()
    assert named() == Report()
    assert repaired(since=timedelta(days=1)).sent_again == 1


# --- stuck -------------------------------------------------------------------------------------------------


def test_a_message_whose_next_attempt_nothing_brings_is_stuck_and_can_be_sent_on(
    broker: Broker, consumer: Consumer
) -> None:
    assert inbox.expect_next(a_delivery(), "it failed")
    assert whys() == []
    InboxMessage.objects.update(changed_at=database.in_future(-3600))
    assert whys() == ["attempt 2 is expected, and nothing brings it"]
    assert repaired().is_well
    assert repaired().findings == []
    broker.relay()
    broker.handle(consumer)
    assert InboxMessage.objects.get().state == State.HANDLED
    assert OperatorAction.objects.count() == 1


def expected(message_id: str = "m-1", hours: float = 1, **changes: Any) -> InboxMessage:
    """A message whose next attempt has been expected for hours."""
    row = an_inbox_row(**{"message_id": message_id, "state": "retrying", "attempt": 2, "body": b"{}", **changes})
    InboxMessage.objects.filter(pk=row.pk).update(changed_at=database.in_future(-3600 * hours))
    row.refresh_from_db()
    return row


@pytest.mark.parametrize(
    ("attempt", "on_its_way", "is_carried"),
    [
        (2, {"consumer": "notes", "attempt": 2}, True),
        (1, {"consumer": "", "attempt": 1}, True),
        (2, {"consumer": "copies", "attempt": 2}, False),
        (2, {"consumer": "notes", "attempt": 1}, False),
        (2, {"consumer": "notes", "attempt": 2, "message_id": "m-2"}, False),
    ],
    ids=["by a retry", "by the event", "to another consumer", "by an earlier attempt", "by another message"],
)
def test_an_expected_attempt_is_brought_by_its_own_row_alone(
    consumer: Consumer, attempt: int, on_its_way: dict[str, Any], is_carried: bool
) -> None:
    expected(attempt=attempt)
    an_outbox_row(**{"message_id": "m-1", "state": "pending", **on_its_way})
    assert bool(lost_ids(named())) is not is_carried


def test_only_what_waits_for_an_attempt_is_missed_and_by_its_own_consumer(broker: Broker, consumer: Consumer) -> None:
    known("copies")
    for state in ("handled", "dead", "discarded"):
        expected(state, state=state)
    row = expected(consumer="copies")
    [finding] = named().findings
    assert (finding.message_id, finding.consumer, finding.since) == ("m-1", "copies", row.changed_at)


def test_the_attempt_that_has_been_expected_for_longest_is_sent_first(consumer: Consumer) -> None:
    for message_id, hours in (("m-1", 1), ("m-2", 3), ("m-3", 2)):
        expected(message_id, hours)
    for _ in range(2):
        assert repaired(limit=1).sent_again == 1
    assert list(OutboxMessage.objects.order_by("pk").values_list("message_id", flat=True)) == ["m-2", "m-3"]


def test_a_message_that_was_not_released_is_stuck(broker: Broker, consumer: Consumer) -> None:
    (first,), _ = broker.publish("a", ordering_key="k"), broker.publish("b", ordering_key="k")
    broker.queues[consumer.queue].pop(0)
    broker.handle(consumer)
    InboxMessage.objects.update(changed_at=database.in_future(-3600))
    assert whys() == []
    OutboxMessage.objects.filter(pk=first.pk).update(state="cancelled")
    assert whys() == ["the messages before it are settled, and it was not sent: does its consumer run?"]
    look_after([consumer])
    assert whys() == []
    broker.relay()
    broker.handle(consumer)
    assert InboxMessage.objects.get().state == State.HANDLED


# --- the command -------------------------------------------------------------------------------------------


def test_the_command_says_what_is_wrong_and_what_to_do(broker: Broker, consumer: Consumer) -> None:
    said = messages("reconcile")
    assert (said.code, "must be seen empty once more" in said.out) == (0, True)
    (row,) = broker.lose(consumer, "a", subject="W-ABC123")

    said = messages("reconcile", "--json")
    found = json.loads(said.out)
    assert said.code == 6
    assert (found["trouble"], found["message_id"], found["consumer"]) == ("lost", row.message_id, "notes")
    assert found["subject"] == "W-ABC123"
    said = messages("reconcile")
    assert "1 lost, 0 doubled, 0 stuck" in said.out
    assert "sent again with --repair" in said.err

    for told in ("1 message sent again", "0 lost, 0 doubled, 0 stuck"):
        said = messages("reconcile", "--repair")
        assert (said.code, told in said.out) == (0, True)
    assert OperatorAction.objects.get().actor.count("@") == 1


def test_without_a_broker_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(_: Any) -> None:
        raise BrokerUnavailable("connection refused")

    monkeypatch.setattr(empty_queues, "opened", unreachable)
    known()
    assert messages("reconcile").code == 3

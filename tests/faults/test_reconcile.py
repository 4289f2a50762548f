"""What the broker lost is named, and sent again once; nothing else is, and nobody else is disturbed."""

import json
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db.models import DateTimeField, F
from django.db.models.functions import Now
from django.utils import timezone

from messaging import consumers, database
from messaging.consumers import Consumer
from messaging.exceptions import BrokerUnavailable
from messaging.message import Delivery
from messaging.models import (
    DeliveryAttempt,
    Effect,
    InboxMessage,
    OperatorAction,
    OutboxMessage,
    QueueSighting,
)
from messaging.reconcile import empty_queues, lost
from messaging.reconcile.findings import Trouble
from messaging.reconcile.reconcile import Report, reconcile
from messaging.worker import handling, inbox
from tests.support.amqp import plain_channel
from tests.support.consuming import (
    Noted,
    a_consumer,
    a_delivery,
    delivery_of,
    look_after,
    note,
    notes,
    registered,
    take_note,
)
from tests.support.running import IMPATIENT, InThread, RunningWorker, add, running_relay, running_worker, take_all
from tests.support.waiting import eventually

pytestmark = pytest.mark.django_db(transaction=True)

State = InboxMessage.State


@pytest.fixture(autouse=True)
def impatience(vhost: str, settings: Any) -> Iterator[None]:
    settings.MESSAGING = {**settings.MESSAGING, **IMPATIENT}
    with registered():
        yield


def known(name: str = "notes", handler: Callable[..., None] = take_note, **changes: Any) -> Consumer:
    """A consumer that relays and reconcile know."""
    consumer = a_consumer(handler, name, **changes)
    consumers.registry.put(consumer)
    return consumer


def published(*texts: str, **options: Any) -> list[OutboxMessage]:
    """Events that have gone out to the queues of all who are known."""
    rows = add(*(Noted(text=text) for text in texts), **options)
    relayed()
    return rows


def relayed() -> None:
    """Let everything go out that waits."""
    with running_relay():
        eventually(lambda: not OutboxMessage.objects.filter(state="pending").exists())


def handled(*wanted: Consumer) -> None:
    """Let everything in the queues be handled."""
    RunningWorker(list(wanted), burst=True).join()


def time_passes(minutes: float = 60) -> None:
    """Let everything have happened that much longer ago."""
    before = timedelta(minutes=minutes)
    for model in (OutboxMessage, InboxMessage, DeliveryAttempt, Effect, QueueSighting):
        times = [f.name for f in model._meta.concrete_fields if isinstance(f, DateTimeField)]
        model._default_manager.update(**{name: F(name) - before for name in times})
    for sighting in QueueSighting.objects.all():
        sighting.young = [(datetime.fromisoformat(text) - before).isoformat() for text in sighting.young]
        sighting.save()


def sighted() -> None:
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


def exit_code(*arguments: str) -> int:
    try:
        call_command("messages", "reconcile", *arguments)
    except CommandError as error:
        return error.returncode
    return 0


# --- lost --------------------------------------------------------------------------------------------------


def test_an_arrived_message_is_not_reported(vhost: str) -> None:
    notes_ = known()
    published("a", "b", "c")
    handled(notes_)
    sighted()
    assert repaired() == Report()


def test_a_message_deleted_by_hand_is_named_then_sent_again_and_handled_once(vhost: str) -> None:
    consumer = known()
    rows = published("a", "b", "c")
    with plain_channel(vhost) as channel:
        # Acknowledged at once: gone without a trace, as if by hand in the management pages.
        method, properties, _ = channel.basic_get(consumer.queue, auto_ack=True)
    assert method
    handled(consumer)
    sighted()

    report = named()
    (finding,) = report.findings
    assert (finding.trouble, finding.message_id, finding.consumer) == ("lost", properties.message_id, "notes")
    assert not report.is_well
    assert OutboxMessage.objects.count() == 3

    assert repaired().is_well
    again = OutboxMessage.objects.get(origin="reconcile")
    assert (again.message_id, again.attempt, again.consumer) == (properties.message_id, 1, "notes")
    assert (again.exchange, again.routing_key) == ("", consumer.queue)
    action = OperatorAction.objects.get()
    assert (action.action, action.actor, action.changed) == ("reconcile", "ann", 1)
    assert repaired() == Report()

    relayed()
    handled(consumer)
    assert notes() == len(rows)
    sighted()
    assert repaired() == Report()
    assert OutboxMessage.objects.count() == 4


def test_only_the_consumer_that_missed_it_gets_it_again(vhost: str) -> None:
    first, second = known("first"), known("second")
    published("a", "b")
    handled(first)
    with plain_channel(vhost) as channel:
        channel.queue_purge(second.queue)
    sighted()
    assert {each.consumer for each in repaired().findings} == {"second"}
    relayed()
    assert take_all(vhost, first.queue) == []
    assert len(take_all(vhost, second.queue)) == 2


def test_a_queue_that_is_gone_counts_as_empty(vhost: str) -> None:
    consumer = known()
    (row,) = published("a")
    with plain_channel(vhost) as channel:
        channel.queue_delete(consumer.queue)
    sighted()
    assert lost_ids(repaired()) == [row.message_id]
    relayed()
    handled(consumer)
    assert notes() == 1


def test_what_waits_in_its_queue_is_not_lost(vhost: str) -> None:
    consumer = known()
    published("a", "b")
    for _ in range(3):
        report = repaired()
        assert report.findings == []
        assert report.undecided == {"notes": f"queue {consumer.queue} is not empty"}
        time_passes()
    assert OutboxMessage.objects.count() == 2


def test_a_queue_seen_empty_once_is_not_enough(vhost: str) -> None:
    known()
    published("a")
    with plain_channel(vhost) as channel:
        channel.queue_purge("tests.notes")
    report = repaired()
    assert report.findings == []
    assert "seen empty once more" in report.undecided["notes"]


def test_messages_in_the_hands_of_a_slow_consumer_are_not_lost(vhost: str) -> None:
    """The queue shows none ready, and RabbitMQ tells nobody over AMQP of those that were delivered."""

    consumer = known()
    rows = published(*(str(number) for number in range(4)))
    with plain_channel(vhost) as channel:
        held = [channel.basic_get(consumer.queue) for _ in rows]
        assert all(method for method, _, _ in held)
        named()
        for row in rows:
            time_passes()
            assert handling.handle(consumer, delivery_of(row)) == "handled"
            for _ in range(2):
                assert repaired().findings == []
    assert not OutboxMessage.objects.filter(origin="reconcile").exists()


def test_a_lost_retry_is_sent_again_with_its_attempt(vhost: str) -> None:
    moods = [ValueError("no")]

    def moody(event: Noted, delivery: Delivery) -> None:
        note(event.text)
        if moods:
            raise moods.pop()

    consumer = known(handler=moody)
    published("a")
    handled(consumer)
    assert InboxMessage.objects.get().attempt == 2
    relayed()
    with plain_channel(vhost) as channel:
        channel.queue_purge(consumer.queue)
    sighted()
    (finding,) = repaired().findings
    assert "attempt 2 has not come" in finding.why
    assert OutboxMessage.objects.get(origin="reconcile").attempt == 2
    relayed()
    handled(consumer)
    assert InboxMessage.objects.get().state == State.HANDLED
    assert notes() == 1


def test_a_copy_that_is_lost_too_is_sent_again_after_the_interval_only(vhost: str) -> None:
    consumer = known()
    published("a")
    with plain_channel(vhost) as channel:
        channel.queue_purge(consumer.queue)
    sighted()
    assert repaired().sent_again == 1
    relayed()
    with plain_channel(vhost) as channel:
        channel.queue_purge(consumer.queue)
    time_passes(minutes=2)
    named()
    time_passes(minutes=8)
    assert repaired() == Report()
    time_passes(minutes=10)
    assert repaired().sent_again == 1
    relayed()
    handled(consumer)
    assert OutboxMessage.objects.filter(origin="reconcile").count() == 2
    assert notes() == 1


def test_no_more_than_the_limit_are_sent_at_once_and_the_others_later(vhost: str) -> None:
    consumer = known()
    published(*(str(number) for number in range(25)))
    with plain_channel(vhost) as channel:
        channel.queue_purge(consumer.queue)
    sighted()
    assert [repaired(limit=10).sent_again for _ in range(4)] == [10, 10, 5, 0]
    relayed()
    handled(consumer)
    assert notes() == 25


def test_two_at_once_send_each_message_once(vhost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    consumer = known()
    published(*(str(number) for number in range(30)))
    with plain_channel(vhost) as channel:
        channel.queue_purge(consumer.queue)
    sighted()
    both_found_them = threading.Barrier(2, timeout=30)
    compare = lost.compare

    def together(*arguments: Any) -> lost.Comparison:
        account = compare(*arguments)
        both_found_them.wait()
        return account

    monkeypatch.setattr(lost, "compare", together)
    both = [InThread(repaired, "reconcile") for _ in range(2)]
    reports = [each.join(60) for each in both]
    assert sum(report.sent_again for report in reports) == 30
    assert all(report.is_well for report in reports)
    assert OutboxMessage.objects.filter(origin="reconcile").count() == 30


def test_a_message_whose_handling_has_begun_is_not_lost(vhost: str) -> None:
    consumer = known()
    (row,) = published("a")
    with plain_channel(vhost) as channel:
        assert channel.basic_get(consumer.queue)[0]
        sighted()
        assert inbox.start(delivery_of(row, redelivered=True))
        assert named().findings == []
        time_passes()
        assert lost_ids(named()) == [row.message_id]


def test_what_is_named_is_named_again_whatever_the_database_makes_of_times(vhost: str) -> None:
    consumer = known()
    published("a")
    assert take_all(vhost, consumer.queue)
    named()
    QueueSighting.objects.update(empty_at=database.in_future(3600), young=[])
    OutboxMessage.objects.update(published_at=Now())
    for _ in range(3):
        assert len(lost_ids(named())) == 1


def test_what_arrived_is_not_read_again_and_what_comes_later_is(vhost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lost, "PAGE", 3)
    consumer = known()
    published(*(str(number) for number in range(10)))
    handled(consumer)
    sighted()
    named()
    until = QueueSighting.objects.get().checked_until
    assert until
    assert not OutboxMessage.objects.filter(published_at__gte=until).exists()

    (late,) = published("late")
    with plain_channel(vhost) as channel:
        channel.queue_purge(consumer.queue)
    sighted()
    for _ in range(3):  # it is not forgotten while it is not sent again
        assert lost_ids(named()) == [late.message_id]


@pytest.mark.parametrize("size", [1, 2, 500])
def test_rows_that_were_marked_in_the_same_moment_are_all_looked_at(
    vhost: str, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(lost, "PAGE", size)
    known()
    rows = published(*(str(number) for number in range(7)))
    OutboxMessage.objects.update(published_at=OutboxMessage.objects.order_by("pk").values("published_at")[:1])
    with plain_channel(vhost) as channel:
        channel.queue_purge("tests.notes")
    sighted()
    assert sorted(lost_ids(named())) == sorted(row.message_id for row in rows)
    assert sorted(lost_ids(named(limit=2)))[:2]
    assert repaired().sent_again == 7


def test_a_message_that_comes_while_it_is_sent_again_is_handled_once(vhost: str) -> None:
    consumer = known()
    published("a")
    ((properties, body),) = take_all(vhost, consumer.queue)
    sighted()
    assert repaired().sent_again == 1
    with plain_channel(vhost) as channel:  # somebody had it all the time
        channel.basic_publish("", consumer.queue, body, properties)
    relayed()
    handled(consumer)
    assert notes() == 1


def test_a_lost_predecessor_holds_its_key_up_until_it_is_sent_again(vhost: str) -> None:
    order: list[str] = []

    def in_order(event: Noted, delivery: Delivery) -> None:
        order.append(event.text)

    consumer = known(handler=in_order)
    published("first", ordering_key="k")
    with plain_channel(vhost) as channel:
        channel.queue_purge(consumer.queue)
    published("second", ordering_key="k")
    handled(consumer)
    assert order == []
    sighted()
    assert repaired().sent_again == 1
    with running_relay(), running_worker(consumer):
        eventually(lambda: order == ["first", "second"])


def test_without_a_broker_it_says_so(settings: Any) -> None:
    known()
    settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": ["amqp://127.0.0.1:1/"]}
    with pytest.raises(BrokerUnavailable):
        named()
    assert exit_code() == 3


# --- consumers that come and go ----------------------------------------------------------------------------


def test_a_consumer_deployed_today_does_not_get_what_was_before_unless_asked_for(vhost: str) -> None:
    old = known("old")
    rows = published("a", "b", "c")
    handled(old)
    new = known("new")
    sighted()
    assert repaired() == Report()

    (later,) = published("d")
    asked: dict[str, Any] = {"names": ["new"], "earlier": True, "since": timedelta(days=1)}
    assert [repaired(**asked, limit=2).sent_again for _ in range(3)] == [2, 1, 0]
    relayed()
    handled(old, new)
    received = InboxMessage.objects.filter(consumer="new").values_list("message_id", flat=True)
    assert sorted(received) == sorted(row.message_id for row in [*rows, later])
    assert InboxMessage.objects.filter(consumer="old").count() == 4
    assert InboxMessage.objects.exclude(state=State.HANDLED).count() == 0
    assert repaired(**asked).sent_again == 0


def test_earlier_events_are_asked_for_with_consumer_and_age(vhost: str, capsys: pytest.CaptureFixture[str]) -> None:
    known("old")
    published("a")
    known("new")
    assert exit_code("--earlier") == 2
    assert exit_code("--earlier", "--consumer", "new") == 2
    assert exit_code("--earlier", "--consumer", "nobody", "--since", "1d") == 2
    assert exit_code("--earlier", "--consumer", "new", "--since", "1d") == 6
    assert exit_code("--earlier", "--consumer", "new", "--since", "1d", "--repair") == 0
    assert "1 message sent again" in capsys.readouterr().out
    OutboxMessage.objects.filter(origin="event").update(published_at=timezone.now() - timedelta(days=3))
    OutboxMessage.objects.filter(origin="reconcile").delete()
    assert exit_code("--earlier", "--consumer", "new", "--since", "2d", "--repair") == 0
    assert not OutboxMessage.objects.filter(origin="reconcile").exists()


def test_checked_messages_are_checked_again_if_asked(vhost: str) -> None:
    """As after a backup of the database was restored."""
    consumer = known()
    published("a")
    handled(consumer)
    sighted()
    assert named() == Report()
    InboxMessage.objects.all().delete()
    assert named() == Report()
    assert repaired(since=timedelta(days=1)).sent_again == 1


# --- stuck and doubled -------------------------------------------------------------------------------------


def long_ago() -> Any:
    return database.in_future(-3600)


def whys(report: Report | None = None) -> list[str]:
    return [each.why for each in (report or named()).findings]


def test_a_message_whose_next_attempt_nothing_brings_is_stuck_and_can_be_sent_on(vhost: str) -> None:
    consumer = known()
    delivery = a_delivery()
    assert inbox.expect_next(delivery, "it failed")
    assert whys() == []
    InboxMessage.objects.update(changed_at=long_ago())
    assert whys() == ["attempt 2 is expected, and nothing brings it"]
    assert repaired().is_well
    assert repaired().findings == []
    relayed()
    handled(consumer)
    assert InboxMessage.objects.get().state == State.HANDLED
    assert OperatorAction.objects.count() == 1


def test_a_message_that_was_not_released_is_stuck(vhost: str) -> None:
    consumer = known()
    row = add(Noted(text="a"), ordering_key="k")[0]
    add(Noted(text="b"), ordering_key="k")
    relayed()
    ((_, _), (properties, body)) = take_all(vhost, consumer.queue)
    with plain_channel(vhost) as channel:
        channel.basic_publish("", consumer.queue, body, properties)
    handled(consumer)
    InboxMessage.objects.update(changed_at=long_ago())
    assert whys() == []
    OutboxMessage.objects.filter(pk=row.pk).update(state="cancelled")
    assert whys() == ["the messages before it are settled, and it was not sent: does its consumer run?"]
    look_after([consumer])
    assert whys() == []
    relayed()
    handled(consumer)
    assert InboxMessage.objects.get().state == State.HANDLED


# --- the command -------------------------------------------------------------------------------------------


def test_the_command_says_what_is_wrong_and_what_to_do(vhost: str, capsys: pytest.CaptureFixture[str]) -> None:
    consumer = known()
    assert exit_code() == 0
    assert "must be seen empty once more" in capsys.readouterr().out
    (row,) = published("a", subject="W-ABC123")
    with plain_channel(vhost) as channel:
        channel.queue_purge(consumer.queue)
    sighted()

    assert exit_code("--json") == 6
    found = json.loads(capsys.readouterr().out)
    assert (found["trouble"], found["message_id"], found["consumer"]) == ("lost", row.message_id, "notes")
    assert found["subject"] == "W-ABC123"
    with pytest.raises(CommandError, match="sent again with --repair"):
        call_command("messages", "reconcile")
    assert "1 lost, 0 doubled, 0 stuck" in capsys.readouterr().out

    assert exit_code("--repair") == 0
    assert "1 message sent again" in capsys.readouterr().out
    assert exit_code("--repair") == 0
    assert "0 lost, 0 doubled, 0 stuck" in capsys.readouterr().out
    assert OperatorAction.objects.get().actor.count("@") == 1


def test_a_busy_queue_is_asked_until_it_is_empty(vhost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    consumer = known()
    published("a")
    looked = threading.Event()
    monkeypatch.setattr(empty_queues.time, "sleep", lambda seconds: looked.set())
    purge = InThread(lambda: (looked.wait(10), take_all(vhost, consumer.queue)), "purge")
    monkeypatch.setattr(empty_queues, "TRIES", 100_000)
    assert set(empty_queues.look([consumer])) == {"notes"}
    purge.join()

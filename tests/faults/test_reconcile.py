"""What the broker lost is named, and sent again once; nobody else is disturbed."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db.models.functions import Now

from messaging import database
from messaging.consumers import Consumer
from messaging.models import DeliveryAttempt, InboxMessage, OperatorAction, OutboxMessage, QueueSighting
from messaging.operations.findings import Trouble
from messaging.operations.reconcile import Report, reconcile
from tests.support.amqp import plain_channel
from tests.support.consuming import Noted, a_consumer, notes, registered
from tests.support.running import IMPATIENT, InThread, RunningWorker, add, running_relay, running_worker, take_all
from tests.support.waiting import eventually

pytestmark = pytest.mark.django_db(transaction=True)

CONSUMER = a_consumer()


@pytest.fixture(autouse=True)
def impatience(vhost: str, settings: Any) -> Iterator[None]:
    settings.MESSAGING = {**settings.MESSAGING, **IMPATIENT, "RECONCILE_AFTER": 0.001, "RECONCILE_INTERVAL": 1000}
    with registered(CONSUMER):
        yield


def published(*texts: str) -> None:
    """Events that lie in the consumer's queue, and are marked published."""
    with running_relay():
        for text in texts:
            add(Noted(text=text))
        eventually(lambda: not OutboxMessage.objects.exclude(state="published").exists())


def handled(consumer: Consumer = CONSUMER) -> None:
    """Empty the queue by the consumer, with a relay at hand."""
    with running_relay(), running_worker(consumer):
        eventually(lambda: not OutboxMessage.objects.exclude(state="published").exists())
        RunningWorker([consumer], burst=True).join()


def looked(repair: bool = True, **options: Any) -> Report:
    return reconcile(repair=repair, by="test", **options)


def lost(report: Report) -> list[str]:
    return [finding.message_id for finding in report.of(Trouble.LOST)]


def test_a_message_removed_from_a_queue_by_hand_is_named_sent_again_and_handled_once(vhost: str) -> None:
    published("first", "second", "third")
    with plain_channel(vhost) as channel:
        _, properties, _ = channel.basic_get("tests.notes", auto_ack=True)
    handled()
    assert notes() == 2

    named = looked(repair=False)
    assert lost(named) == [properties.message_id]
    assert not named.is_well
    assert looked().sent_again == 1
    handled()
    assert notes() == 3
    assert looked().findings == []
    assert set(DeliveryAttempt.objects.values_list("outcome", flat=True)) == {"handled"}


def test_a_purged_queue_is_repaired(vhost: str) -> None:
    """F12."""
    published("first", "second")
    with plain_channel(vhost) as channel:
        channel.queue_purge("tests.notes")
    assert looked().sent_again == 2
    handled()
    assert notes() == 2


def test_what_was_in_a_deleted_queue_comes_again(vhost: str) -> None:
    published("first", "second")
    with plain_channel(vhost) as channel:
        channel.queue_delete("tests.notes")
    assert looked().sent_again == 2
    handled()
    assert notes() == 2


def test_a_retry_that_the_broker_lost_comes_again(vhost: str) -> None:
    def fail(event: Noted, delivery: Any) -> None:
        if delivery.attempt == 1:
            raise RuntimeError
        CONSUMER.handler(event, delivery)

    failing = a_consumer(fail)
    published("first")
    RunningWorker([failing], burst=True).join()
    with running_relay():
        eventually(lambda: not OutboxMessage.objects.exclude(state="published").exists())
    with plain_channel(vhost) as channel:
        channel.queue_purge("tests.notes")

    report = looked()
    assert report.sent_again == 1
    again = OutboxMessage.objects.get(origin="reconcile")
    assert (again.attempt, again.consumer, again.routing_key) == (2, "notes", "tests.notes")
    handled(failing)
    assert notes() == 1


def test_what_lies_in_its_queue_is_not_lost() -> None:
    published("first")
    assert looked().findings == []


def test_what_was_sent_again_is_not_sent_again_at_once(vhost: str) -> None:
    published("first")
    take_all(vhost, "tests.notes")
    assert looked().sent_again == 1
    assert looked().sent_again == 0
    with running_relay():
        eventually(lambda: not OutboxMessage.objects.exclude(state="published").exists())
    take_all(vhost, "tests.notes")  # lost once more
    assert looked().findings == []
    OutboxMessage.objects.filter(origin="reconcile").update(created_at=database.in_future(-2000))
    assert looked().sent_again == 1


def test_two_who_reconcile_at_once_send_it_once(vhost: str) -> None:
    published(*(str(number) for number in range(10)))
    take_all(vhost, "tests.notes")
    both = [InThread(looked, "reconcile") for _ in range(2)]
    assert sum(each.join(60).sent_again for each in both) == 10
    assert OutboxMessage.objects.filter(origin="reconcile").count() == 10


def test_a_limit_is_kept_and_the_rest_comes_next_time(vhost: str) -> None:
    published(*(str(number) for number in range(5)))
    take_all(vhost, "tests.notes")
    first = looked(limit=2)
    assert (first.sent_again, first.is_well) == (2, False)
    assert looked(limit=2).sent_again == 2
    last = looked(limit=2)
    assert (last.sent_again, last.left) == (1, 0)
    handled()
    assert notes() == 5


def test_pages_leave_nothing_out(vhost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are marked in batches: many have the very same time."""
    published(*(str(number) for number in range(10)))
    take_all(vhost, "tests.notes")
    OutboxMessage.objects.update(published_at=Now())
    monkeypatch.setattr("messaging.operations.lost.PAGE", 3)
    assert looked().sent_again == 10


def test_naming_forgets_nothing(vhost: str) -> None:
    published("first")
    take_all(vhost, "tests.notes")
    for _ in range(2):
        assert len(lost(looked(repair=False))) == 1
    assert looked().sent_again == 1


def test_what_is_accounted_for_is_not_looked_at_again(vhost: str) -> None:
    published("first")
    handled()
    assert looked().findings == []
    sighting = QueueSighting.objects.get()
    assert sighting.checked_until
    assert sighting.checked_until > OutboxMessage.objects.get().published_at
    InboxMessage.objects.all().delete()  # as a backup that was restored would
    assert looked().findings == []
    assert looked(since=timedelta(days=1)).sent_again == 1


def test_a_consumer_deployed_today_does_not_receive_yesterday_unless_asked() -> None:
    published("yesterday")
    handled()
    newcomer = a_consumer(name="newcomer")
    with registered(CONSUMER, newcomer):
        published("today")
        handled(newcomer)
        handled()
        assert looked().findings == []
        assert notes("today") == 2
        assert looked(names=["newcomer"], since=timedelta(days=1), earlier=True).sent_again == 1
        handled(newcomer)
        assert notes("yesterday") == 2
        assert notes("today") == 2


def test_what_was_sent_again_by_mistake_is_a_duplicate(vhost: str) -> None:
    """An unacknowledged message cannot be seen: the queue looks empty, and the message is on its way."""
    published("first")
    with plain_channel(vhost) as channel:
        channel.basic_get("tests.notes", auto_ack=False)
        assert looked().sent_again == 1
    handled()
    eventually(lambda: notes() == 1)
    assert InboxMessage.objects.get().state == "handled"
    assert DeliveryAttempt.objects.count() == 1


def test_the_command_says_what_is_wrong_and_what_to_do(vhost: str, capsys: pytest.CaptureFixture[str]) -> None:
    published("first")
    take_all(vhost, "tests.notes")
    with pytest.raises(CommandError, match="sent again with --repair") as error:
        call_command("messages", "reconcile")
    assert error.value.returncode == 6
    assert "1 lost, 0 doubled, 0 stuck" in capsys.readouterr().out
    call_command("messages", "reconcile", "--repair")
    assert "1 message sent again" in capsys.readouterr().out
    action = OperatorAction.objects.get()
    assert (action.action, action.changed) == ("reconcile", 1)


def test_without_a_broker_nobody_can_say_what_is_lost(settings: Any) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": ["amqp://127.0.0.1:1/"]}
    with pytest.raises(CommandError, match="RabbitMQ") as error:
        call_command("messages", "reconcile")
    assert error.value.returncode == 3


def test_what_is_stuck_is_named() -> None:
    row = add(Noted(text="first"))[0]
    OutboxMessage.objects.filter(pk=row.pk).update(publish_at=database.in_future(-10), lease_until=None)
    report = looked()
    assert [finding.why for finding in report.of(Trouble.STUCK)] == ["pending: does a relay run?"]
    assert not report.is_well


def test_what_was_handled_twice_is_named() -> None:
    published("first")
    handled()
    attempt = DeliveryAttempt.objects.get()
    attempt.pk = None
    attempt.save()
    assert [finding.why for finding in looked().of(Trouble.DOUBLED)] == ["it was handled 2 times"]

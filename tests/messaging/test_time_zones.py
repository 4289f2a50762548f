"""Whatever the project says of time zones, times are right, and nothing that reads them fails."""

from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from django.apps import apps
from django.core.management import call_command
from django.db import models
from django.db.models import Max
from django.test import Client
from django.utils import timezone

from messaging import database, outbox
from messaging.actions.prune import prune
from messaging.history import outcome, timeline
from messaging.models import Effect, InboxMessage, OutboxMessage
from messaging.models.columns import UTCDateTimeField
from messaging.monitoring import status
from messaging.reconcile import empty_queues, lost, stuck
from messaging.reconcile.findings import Trouble
from messaging.worker import handling
from tests.support.consuming import FailingHandler, Noted, a_consumer, a_delivery, a_message, registered

pytestmark = pytest.mark.django_db

ADMIN = "/admin/messaging/"
#: When summer time ends in Berlin, an hour has the same name twice.
TWICE = [datetime(2026, 10, 25, hour, 30, tzinfo=UTC) for hour in (0, 1)]
JUST_NOW = timedelta(seconds=30)
PAGES = [
    "outboxmessage/", "outboxmessage/?since=1h", "outboxmessage/{outbox}/change/", "inboxmessage/?since=10min",
    "inboxmessage/{inbox}/change/", "outboxmessage/story/?subject=n-1", "effect/", "effect/{effect}/change/",
    "operatoraction/?since=1d",
]  # fmt: skip


@pytest.fixture(
    autouse=True, params=[(False, "Europe/Berlin"), (True, "Asia/Shanghai")], ids=["USE_TZ=False", "USE_TZ=True"]
)
def zone(request: pytest.FixtureRequest, db: None, settings: Any) -> None:
    settings.USE_TZ, settings.TIME_ZONE = request.param


def a_row(**columns: Any) -> OutboxMessage:
    usual = {"message_id": "m-1", "type": "test.noted", "subject": "n-1", "routing_key": "test.noted", "body": b"{}"}
    return OutboxMessage.objects.create(**{**usual, **columns})


def an_hour_ago(aware: bool = True) -> datetime:
    return datetime.now(UTC) - timedelta(hours=1) if aware else timezone.now() - timedelta(hours=1)


def test_every_time_of_a_row_is_stored_in_utc() -> None:
    times = [
        field
        for model in apps.get_app_config("messaging").get_models()
        for field in model._meta.fields
        if isinstance(field, models.DateTimeField)
    ]
    assert len(times) > 10
    assert [str(field) for field in times if not isinstance(field, UTCDateTimeField)] == []


def test_a_time_that_the_database_wrote_is_now() -> None:
    row = a_row()
    row.refresh_from_db()
    for time in (row.created_at, database.now(), OutboxMessage.objects.aggregate(last=Max("created_at"))["last"]):
        assert abs(datetime.now(UTC) - time) < JUST_NOW


def test_a_time_is_read_as_it_was_written_also_when_summer_time_ends() -> None:
    for moment in TWICE:
        row = a_row(published_at=moment)
        row.refresh_from_db()
        assert row.published_at == moment
        assert OutboxMessage.objects.filter(published_at=moment).exists()
        assert not OutboxMessage.objects.filter(published_at__gt=moment).exists()


def test_rows_are_found_by_a_time_of_either_kind(settings: Any) -> None:
    a_row()
    for aware in {True, bool(settings.USE_TZ)}:
        assert OutboxMessage.objects.filter(created_at__gte=an_hour_ago(aware)).exists()
        assert not OutboxMessage.objects.filter(created_at__lte=an_hour_ago(aware)).exists()


def test_a_message_fails_and_is_handled_with_its_times() -> None:
    moody = FailingHandler()
    moody.failing["hello"] = ValueError("bad")
    consumer = a_consumer(moody)
    message = a_message()
    with registered(consumer):
        assert handling.handle(consumer, a_delivery(message)) == "retrying"
        moody.failing.clear()
        assert handling.handle(consumer, a_delivery(message, attempt=2)) == "handled"
        story = timeline.for_message(message.id)
    times = [entry.at for entry in story.entries if entry.at]
    assert len(times) >= 3
    assert all(abs(datetime.now(UTC) - time) < JUST_NOW for time in times)
    assert all(entry.gap < JUST_NOW for entry in story.entries if entry.gap)


def test_what_was_lost_or_is_stuck_is_found() -> None:
    consumer = a_consumer()
    with registered(consumer):
        a_row(state="published", published_at=an_hour_ago(), expected_consumers=["notes"])
        a_row(message_id="m-2", created_at=an_hour_ago(), publish_at=an_hour_ago())
        assert [each.message_id for each in lost.compare(consumer, None, database.now(), 10).lost] == ["m-1"]
        begin = database.now() - timedelta(minutes=5)
        assert lost.compare(consumer, begin, database.now(), 10).lost == []
        assert [each.message_id for each in stuck.stuck([consumer]) if each.trouble is Trouble.STUCK] == ["m-2"]
        assert list(stuck.doubled(timedelta(hours=2))) == []
        empty_queues.note(consumer, database.now() - timedelta(hours=1))
        known = empty_queues.note(consumer, database.now())
        empty_queues.remember(consumer, database.now())
    assert known.empty_at is not None
    assert [fact.state for fact in outcome.of_subjects(["n-1"])["n-1"]] == ["overdue", "unhandled"]
    boxes = status.boxes()
    assert boxes.overdue
    assert boxes.oldest_age is not None
    assert timedelta(minutes=59) < boxes.oldest_age < timedelta(minutes=61)


def test_only_what_is_old_is_pruned(settings: Any) -> None:
    days = timedelta(days=settings.MESSAGING.get("OUTBOX_RETENTION_DAYS", 14))
    for number, age in enumerate((days - timedelta(hours=1), days + timedelta(hours=1))):
        a_row(message_id=f"m-{number}", state="published", created_at=datetime.now(UTC) - age,
              published_at=datetime.now(UTC) - age)  # fmt: skip
    prune.run()
    assert [row.message_id for row in OutboxMessage.objects.all()] == ["m-0"]


def test_a_delayed_event_waits_as_long_as_it_was_told() -> None:
    with database.atomic():
        [row] = outbox.add(Noted(text="x"), delay=timedelta(minutes=10))
    row.refresh_from_db()
    assert timedelta(minutes=9) < row.publish_at - datetime.now(UTC) < timedelta(minutes=11)


def test_no_command_and_no_page_fails_over_a_time(admin_client: Client) -> None:
    consumer = a_consumer()
    with registered(consumer):
        assert handling.handle(consumer, a_delivery(a_message(headers={"subject": "n-1"}))) == "handled"
    inbox = InboxMessage.objects.get()
    outbox = a_row(last_error="refused", publish_at=datetime.now(UTC) + timedelta(hours=1))
    effect = Effect.objects.create(
        inbox_message=inbox, consumer="notes", message_id="m-1", name="sms", send_at=an_hour_ago()
    )
    InboxMessage.objects.create(message_id="m-1", consumer="sms", state="dead", reason="bad", failure_group="abc")

    for options in ("list", "list --since 2h --json", "list --groups", "show m-1"):
        out = StringIO()
        call_command("messages", *options.split(), stdout=out)
        assert str(timezone.localtime(datetime.now(UTC)).year) in out.getvalue()
    for page in PAGES:
        answer = admin_client.get(ADMIN + page.format(inbox=inbox.pk, outbox=outbox.pk, effect=effect.pk))
        assert answer.status_code == 200
        if page == "inboxmessage/{inbox}/change/":
            assert f"{timezone.localtime(inbox.received_at):%H:%M:}" in answer.content.decode()

"""What decides is read where it is written, where a router sends reads to a replica that lags."""

from collections.abc import Iterator

import pytest
from django.apps import apps
from django.contrib.auth.models import Group
from django.db import models, transaction
from django.test import Client

from messaging import outbox
from messaging.actions.replay import replay
from messaging.actions.selection import Selection
from messaging.exceptions import Reject
from messaging.history import timeline
from messaging.models import DeliveryAttempt, Effect, InboxMessage, OutboxMessage
from messaging.worker import handling
from tests.support.consuming import Noted, a_consumer, a_delivery, a_message, delivery_of, notes, registered
from tests.support.replica import REPLICA, empty_replica

pytestmark = pytest.mark.django_db

MODELS = [model for label in ("messaging", "orders") for model in apps.get_app_config(label).get_models()]


@pytest.fixture(autouse=True)
def replica(db: None) -> Iterator[None]:
    """Any read that goes to the replica fails: it has no table."""
    with empty_replica():
        yield


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model._meta.label)
def test_every_way_to_read_a_row_goes_to_the_primary(model: type[models.Model]) -> None:
    assert model._default_manager.all().db == "default"
    assert model._base_manager.all().db == "default"  # refresh_from_db, and what a foreign key points at
    for relation in model._meta.related_objects:
        if relation.one_to_many and relation.get_accessor_name():
            assert getattr(model(pk=1), relation.get_accessor_name()).all().db == "default"


def test_a_project_may_still_name_the_replica() -> None:
    assert InboxMessage.objects.using(REPLICA).db == REPLICA


def test_a_query_of_the_projects_that_reads_the_replica_may_contain_one_of_ours() -> None:
    of_ours = Group.objects.using(REPLICA).filter(name__in=InboxMessage.objects.values("subject"))
    assert of_ours.query.get_compiler(REPLICA).as_sql()


def test_a_redelivered_message_is_handled() -> None:
    for _ in range(4):  # after each lost connection
        delivery = a_delivery(a_message(id="m-1"), redelivered=True)
        handling.handle(a_consumer(), delivery)
    row = InboxMessage.objects.get()
    assert (row.state, row.reason, notes("hello")) == ("handled", "", 1)


def test_messages_of_one_key_wait_for_each_other() -> None:
    consumer = a_consumer()
    with registered(consumer):
        with transaction.atomic():
            first = outbox.add(Noted(text="first"), ordering_key="k")[0]
        with transaction.atomic():
            second = outbox.add(Noted(text="second"), ordering_key="k")[0]
        assert handling.handle(consumer, delivery_of(second)) == "waiting"
        assert handling.handle(consumer, delivery_of(first)) == "handled"
        turn = OutboxMessage.objects.get(origin="turn")
        assert handling.handle(consumer, delivery_of(turn)) == "handled"


def test_a_dead_message_is_replayed_and_its_story_told(admin_client: Client) -> None:
    def refuse(event: Noted, delivery: object) -> None:
        raise Reject("no such note")

    consumer = a_consumer(refuse)
    with registered(consumer):
        assert handling.handle(consumer, a_delivery(a_message(id="m-1"))) == "dead"
        assert replay.run(Selection(message_ids=("m-1",)), by="tests").changed == 1
        row = InboxMessage.objects.get()
        row.refresh_from_db()
        assert row.state == "retrying"
        assert DeliveryAttempt.objects.get().inbox_message == row
        assert timeline.for_message("m-1").entries
        assert b"m-1" in admin_client.get(f"/admin/messaging/inboxmessage/{row.pk}/change/").content
        assert not Effect.objects.exists()

"""A queue that takes messages and never confirms them delays its own events and no others."""

import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.db import OperationalError, transaction
from django.utils import timezone

from messaging import conf
from messaging.broker.publisher import Outcome
from messaging.message import new_id
from messaging.models import OutboxMessage
from messaging.relay import destinations, leases
from messaging.relay.relay import Relay
from script.services.rabbitmq import RabbitMQNode
from tests.support.amqp import plain_channel
from tests.support.consuming import Erased, Noted, a_consumer, registered
from tests.support.running import IMPATIENT, InThread, add, running_relay, take_all
from tests.support.waiting import eventually

pytestmark = pytest.mark.django_db(transaction=True)

#: The one whose queue becomes unresponsive, and another.
CONSUMER, OTHER = a_consumer(), a_consumer(name="other", events=(Erased,))
State = OutboxMessage.State


@pytest.fixture(autouse=True)
def impatience(vhost: str, settings: Any) -> Iterator[None]:
    settings.MESSAGING = {**settings.MESSAGING, **IMPATIENT}
    with registered(CONSUMER, OTHER):
        yield


@contextmanager
def unresponsive(broker: RabbitMQNode, vhost: str, queue: str) -> Iterator[None]:
    """Inside, the quorum queue takes messages and confirms nothing, as one without its majority does."""
    process = f"whereis('{urlsplit(vhost).path[1:]}_{queue}')"
    broker.ctl("eval", f"sys:suspend({process}).")
    try:
        yield
    finally:
        broker.ctl("eval", f"sys:resume({process}).")


def declare(vhost: str, *queues: str) -> None:
    with plain_channel(vhost) as channel:
        for queue in queues:
            channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})


def a_row(queue: str, **changes: Any) -> OutboxMessage:
    row = {"message_id": new_id(), "type": "raw", "exchange": "", "routing_key": queue, "consumer": "raw", "body": b"1"}
    return OutboxMessage.objects.create(**{**row, **changes})


def count(**wanted: Any) -> int:
    return OutboxMessage.objects.filter(**wanted).count()


def is_published(row: OutboxMessage) -> bool:
    row.refresh_from_db()
    return row.state == State.PUBLISHED


def test_a_queue_that_never_confirms_delays_no_other_queue(
    vhost: str, broker: RabbitMQNode, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conf, "CLAIM_BATCH", 5)
    with running_relay() as relay:
        add(Noted(text="at first"))
        eventually(lambda: count(state=State.PUBLISHED) == 1)
        with unresponsive(broker, vhost, CONSUMER.queue):
            # In one batch: the channel waits for the first, and confirms nothing of the second.
            add(Noted(text="m"), Erased(text="e"), *[Noted(text="m") for _ in range(11)])
            eventually(lambda: relay._destinations.rest(frozenset({CONSUMER.queue})), within=60)
            for _ in range(20):
                add(Noted(text="m"), Erased(text="e"))
            eventually(lambda: count(type=Erased.event_type, state=State.PUBLISHED) == 21, within=60)
            assert count(type=Noted.event_type, state=State.PENDING) == 12 + 20
        eventually(lambda: count(state=State.PUBLISHED) == count(), within=90)
    assert len({properties.message_id for properties, _ in take_all(vhost, CONSUMER.queue)}) == 1 + 12 + 20


def test_new_events_for_an_unresponsive_queue_rest_untried(vhost: str, broker: RabbitMQNode) -> None:
    declare(vhost, "tests.silent")
    with unresponsive(broker, vhost, "tests.silent"), running_relay() as relay:
        a_row("tests.silent", publish_attempts=5)
        eventually(lambda: relay._destinations.rest(frozenset({"tests.silent"})))
        new = [a_row("tests.silent") for _ in range(5)]
        soon = timezone.now() + timedelta(seconds=1)
        eventually(lambda: count(pk__in=[row.pk for row in new], publish_at__gt=soon, lease_token=None) == 5)
        assert count(pk__in=[row.pk for row in new], publish_attempts=0) == 5


def test_a_backlog_for_an_unresponsive_queue_delays_no_other_queue(
    vhost: str, broker: RabbitMQNode, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each batch with such a row costs the whole time that is allowed for a confirm."""
    monkeypatch.setattr(conf, "CLAIM_BATCH", 5)
    declare(vhost, "tests.silent", "tests.well")
    with unresponsive(broker, vhost, "tests.silent"):
        for _ in range(100):
            a_row("tests.silent", publish_attempts=8)
        with running_relay() as relay:
            eventually(lambda: relay._publisher.ready)
            new = a_row("tests.well")
            eventually(lambda: is_published(new))


def test_confirmed_rows_are_marked_before_an_unresponsive_queue_is_waited_for(
    vhost: str, broker: RabbitMQNode, settings: Any
) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "PUBLISH_TIMEOUT": 60, "LEASE": 200}
    declare(vhost, "tests.silent", "tests.well")
    with running_relay(), unresponsive(broker, vhost, "tests.silent"):
        with transaction.atomic():
            a_row("tests.silent", publish_attempts=5)
            well = a_row("tests.well")
        eventually(lambda: is_published(well))


def test_an_unresponsive_queue_is_tried_again_with_one_message(
    vhost: str, broker: RabbitMQNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(destinations, "PAUSE", 0.5)
    where = frozenset({"tests.silent"})
    declare(vhost, *where)
    rows = [a_row("tests.silent", publish_attempts=2) for _ in range(10)]
    trials: list[int] = []
    with unresponsive(broker, vhost, "tests.silent"), running_relay() as relay:
        send = relay._send

        def noted(batch: Sequence[OutboxMessage]) -> list[Outcome]:
            if relay._destinations.unresponsive(where):
                trials.append(len(batch))
            return send(batch)

        monkeypatch.setattr(relay, "_send", noted)
        # Each row rests for itself too, longer each time, and until a full multiple of that rest by the clock.
        eventually(lambda: len(trials) >= 3, within=60)
        assert set(trials) == {1}
    with running_relay():
        eventually(lambda: count(state=State.PUBLISHED) == len(rows), within=90)


def test_a_row_that_rests_untried_says_why(vhost: str, broker: RabbitMQNode) -> None:
    declare(vhost, "tests.silent")
    with unresponsive(broker, vhost, "tests.silent"), running_relay() as relay:
        a_row("tests.silent", publish_attempts=5)
        eventually(lambda: relay._destinations.rest(frozenset({"tests.silent"})))
        new = a_row("tests.silent")
        eventually(lambda: count(pk=new.pk, last_error__startswith="not tried: "))


def test_a_database_that_cannot_take_rows_back_delays_no_other_queue(
    vhost: str, broker: RabbitMQNode, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "LEASE": 200}
    declare(vhost, "tests.silent", "tests.well")

    def locked(*_: Any) -> None:
        raise OperationalError("database is locked")

    with unresponsive(broker, vhost, "tests.silent"), running_relay() as relay:
        a_row("tests.silent", publish_attempts=5)
        eventually(lambda: relay._destinations.rest(frozenset({"tests.silent"})))
        monkeypatch.setattr(leases, "give_back", locked)
        with transaction.atomic():
            a_row("tests.silent")
            well = a_row("tests.well")
        eventually(lambda: is_published(well))
        monkeypatch.undo()


def test_rows_that_lost_their_connection_are_published_while_the_shop_is_busy(
    vhost: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each goes alone, and others are handed over all the while."""
    monkeypatch.setattr(conf, "POLL_INTERVAL", 1.0)
    queues = [f"tests.q{number}" for number in range(100)]
    declare(vhost, "tests.shop", *queues)
    lost = [a_row(queue, publish_attempts=2).pk for queue in queues]
    over = threading.Event()

    def shop(relay: Relay) -> None:
        while not over.is_set():
            leased = {"lease_token": uuid.uuid4(), "lease_until": timezone.now() + timedelta(seconds=30)}
            relay.hand_over([a_row("tests.shop", **leased)], time.monotonic())
            over.wait(0.002)

    with running_relay() as relay:
        busy = InThread(lambda: shop(relay), "shop")
        try:
            eventually(lambda: count(pk__in=lost, state=State.PUBLISHED) == 100)
        finally:
            over.set()
            busy.join()

"""The broker loses what it had confirmed: that is found, sent again, and happens once. Here a real broker tells of its
queues; what counts as lost is tested in `tests/messaging/test_reconcile.py`."""

import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from django.conf import settings as django_settings

from messaging import conf, consumers
from messaging.message import Delivery
from messaging.models import InboxMessage, OutboxMessage
from messaging.reconcile import empty_queues, lost
from messaging.reconcile.reconcile import reconcile
from orders.models import Product
from script.services.rabbitmq import RabbitMQNode
from tests.faults.shop import assert_each_once, declare_queues, everything_arrived, place, shop_at_work, situation
from tests.support.amqp import plain_channel
from tests.support.repeats import repeats
from tests.support.running import running_relay, running_worker
from tests.support.waiting import eventually

pytestmark = pytest.mark.django_db(transaction=True)

ORDERS = repeats(short=12, full=200)
SMS, RED_PACKET = "orders.sms", "orders.red_packet"


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines so short that a test sees a message missed."""
    for module in (lost, empty_queues):
        monkeypatch.setattr(module, "patience", lambda consumer: timedelta(seconds=1))
    monkeypatch.setattr(conf, "RECONCILE_INTERVAL", 5)


def address() -> str:
    url: str = django_settings.MESSAGING["AMQP_URLS"][0]
    return url


def is_published() -> bool:
    return not OutboxMessage.objects.exclude(state=OutboxMessage.State.PUBLISHED).exists()


def publish_orders(product: Product) -> None:
    with running_relay():
        for _ in ORDERS:
            place(product)
        eventually(is_published, 30)


def repaired() -> bool:
    """Reconcile as the housekeeper does; whether all is there now."""
    reconcile(repair=True, by="test")
    return everything_arrived()


def delete() -> int:
    with plain_channel(address()) as channel:
        channel.queue_delete(SMS)
    return len(ORDERS)


def purge_and_take_some() -> int:
    with plain_channel(address()) as channel:
        channel.queue_purge(SMS)
        # Acknowledged at once: gone without a trace, as if by hand in the management pages.
        assert all(channel.basic_get(RED_PACKET, auto_ack=True)[0] for _ in range(3))
    return len(ORDERS) + 3


@pytest.mark.parametrize("harm", [delete, purge_and_take_some])
def test_messages_removed_from_a_queue_are_sent_again_and_handled_once(
    vhost: str, product: Product, harm: Callable[[], int]
) -> None:
    """F11, F12."""
    declare_queues()
    publish_orders(product)
    assert reconcile(repair=True, by="test").undecided == {
        name: f"queue orders.{name} is not empty" for name in ("sms", "red_packet")
    }
    removed = harm()
    with shop_at_work():
        eventually(repaired, 90, every=0.3, report=situation)
        assert_each_once()
        for _ in range(2):
            assert reconcile(repair=True, by="test").findings == []
    assert OutboxMessage.objects.filter(origin=OutboxMessage.Origin.RECONCILE).count() == removed


def test_a_queue_deleted_with_messages_while_its_consumer_holds_some_loses_none(vhost: str, product: Product) -> None:
    """F11."""
    sms, red_packet = consumers.named(["sms", "red_packet"])
    begun, go_on = threading.Event(), threading.Event()

    def slow(event: Any, delivery: Delivery) -> None:
        begun.set()
        assert go_on.wait(30)
        sms.handler(event, delivery)

    with running_relay(), running_worker(replace(sms, handler=slow), prefetch=3), running_worker(red_packet):
        for _ in ORDERS:
            place(product)
        eventually(is_published, 30)
        assert begun.wait(30)
        delete()
        go_on.set()
        eventually(repaired, 90, every=0.3, report=situation)
    assert_each_once()


def test_a_broker_that_lost_all_its_data_is_filled_again(breakable_broker: RabbitMQNode, product: Product) -> None:
    """F20."""
    declare_queues()
    publish_orders(product)
    with running_relay(), running_worker(*consumers.named(["sms"])):
        half = InboxMessage.objects.filter(consumer="sms", state=InboxMessage.State.HANDLED)
        eventually(lambda: half.count() >= len(ORDERS) // 3, 30, report=situation)
        breakable_broker.kill()
        shutil.rmtree(breakable_broker.directory / "data")
        breakable_broker.start()
        breakable_broker.add_vhost(unquote(urlsplit(address()).path[1:]))
        for _ in ORDERS:
            place(product)
        with running_worker(*consumers.named(["red_packet"])):
            eventually(repaired, 120, every=0.3, report=situation)
    assert_each_once()
    assert OutboxMessage.objects.filter(origin=OutboxMessage.Origin.RECONCILE, consumer="red_packet").exists()

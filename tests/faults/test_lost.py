"""The broker loses what it had confirmed, behind the back of a shop at work: it comes again, and happens once."""

import shutil
import signal
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from django.conf import settings as django_settings

from messaging.models import InboxMessage, OutboxMessage
from messaging.reconcile.reconcile import reconcile
from orders.models import Product
from script.services.rabbitmq import RabbitMQNode
from tests.faults.shop import CONSUMING, assert_each_once, environment, everything_arrived, place, situation
from tests.support import failpoints
from tests.support.amqp import plain_channel
from tests.support.processes import ProcessStarter, RunningProcess
from tests.support.repeats import repeats
from tests.support.waiting import eventually

pytestmark = pytest.mark.django_db(transaction=True)

#: So short that a test sees a message missed.
IMPATIENT = {"RECONCILE_AFTER": 1.5, "RECONCILE_INTERVAL": 5}
ORDERS = repeats(short=12, full=200)


@pytest.fixture(autouse=True)
def impatience(breakable_broker: RabbitMQNode, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    failpoints.lower(settings, monkeypatch, **IMPATIENT)


@pytest.fixture
def start(run_process: ProcessStarter) -> Callable[..., RunningProcess]:
    def start(*command: str) -> RunningProcess:
        process = run_process(*command, **environment())
        process.wait_for_line(CONSUMING if command[0] == "run_consumer" else "amqp.connected")
        return process

    return start


def address() -> str:
    url: str = django_settings.MESSAGING["AMQP_URLS"][0]
    return url


def is_published() -> bool:
    return not OutboxMessage.objects.exclude(state=OutboxMessage.State.PUBLISHED).exists()


def purge() -> None:
    with plain_channel(address()) as channel:
        channel.queue_purge("orders.sms")


def delete() -> None:
    with plain_channel(address()) as channel:
        channel.queue_delete("orders.sms")


def take_some() -> None:
    # Acknowledged at once: gone without a trace, as if somebody had emptied it in the management pages.
    with plain_channel(address()) as channel:
        for _ in range(3):
            assert channel.basic_get("orders.red_packet", auto_ack=True)[0]
        assert channel.basic_get("orders.sms", auto_ack=True)[0]


def repaired() -> bool:
    """Reconcile as the housekeeper does; whether all is there now."""
    reconcile(repair=True, by="test")
    return everything_arrived()


@pytest.mark.parametrize("harm", [purge, delete, take_some])
def test_messages_removed_from_a_queue_are_sent_again_and_handled_once(
    start: Callable[..., RunningProcess], product: Product, harm: Callable[[], None]
) -> None:
    """F11, F12: at two queues, before their consumers run."""
    relay = start("run_relay")
    for _ in ORDERS:
        place(product)
    eventually(is_published, 30, report=lambda: relay.output)
    harm()
    consumers = start("run_consumer", "sms", "red_packet")
    eventually(repaired, 90, every=0.3, report=lambda: f"{situation()}\n{consumers.output}")
    assert_each_once()
    again = OutboxMessage.objects.filter(origin=OutboxMessage.Origin.RECONCILE)
    assert again.count() == {purge: len(ORDERS), delete: len(ORDERS), take_some: 4}[harm]
    for _ in range(3):
        assert reconcile(repair=True, by="test").findings == []
    assert again.count() == {purge: len(ORDERS), delete: len(ORDERS), take_some: 4}[harm]


def test_a_queue_deleted_with_messages_while_its_consumer_holds_some_loses_none(
    start: Callable[..., RunningProcess], product: Product
) -> None:
    """F11."""
    relay = start("run_relay")
    others = start("run_consumer", "red_packet")
    consumer = start("run_consumer", "sms", "--prefetch", "3")
    consumer.send(signal.SIGSTOP)
    for _ in ORDERS:
        place(product)
    eventually(is_published, 30, report=lambda: relay.output)
    delete()
    consumer.send(signal.SIGCONT)
    eventually(repaired, 90, every=0.3, report=lambda: f"{situation()}\n{consumer.output}\n{others.output}")
    assert_each_once()


def test_a_broker_that_lost_all_its_data_is_filled_again(
    breakable_broker: RabbitMQNode, start: Callable[..., RunningProcess], product: Product
) -> None:
    """F20."""
    relay = start("run_relay")
    for _ in ORDERS:
        place(product)
    eventually(is_published, 30, report=lambda: relay.output)
    consumers = start("run_consumer", "sms")
    half = InboxMessage.objects.filter(consumer="sms", state=InboxMessage.State.HANDLED)
    eventually(lambda: half.count() >= len(ORDERS) // 3, 30, report=lambda: consumers.output)
    breakable_broker.kill()
    shutil.rmtree(breakable_broker.directory / "data")
    breakable_broker.start()
    breakable_broker.add_vhost(unquote(urlsplit(address()).path[1:]))
    for _ in ORDERS:
        place(product)
    others = start("run_consumer", "red_packet")
    eventually(repaired, 120, every=0.3, report=lambda: f"{situation()}\n{consumers.output}\n{others.output}")
    assert_each_once()
    assert OutboxMessage.objects.filter(origin=OutboxMessage.Origin.RECONCILE, consumer="red_packet").exists()

"""RabbitMQ restarts, dies, freezes, runs out of memory, closes connections and revokes permissions.

A shop costs several processes, and a broken node a restart. So each test lets one shop meet several faults in turn.
"""

import re
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from messaging import conf, rpc
from messaging.broker.publisher import Publisher, Publishing
from messaging.exceptions import BrokerSilent
from messaging.message import Delivery, Message
from messaging.models import InboxMessage, OutboxMessage
from messaging.monitoring import status
from messaging.reconcile.reconcile import reconcile
from messaging.rpc import client
from orders.models import Order, Product
from script.services.rabbitmq import USER, RabbitMQNode
from tests.faults.shop import PATIENCE, Shop, assert_calm, environment, everything_arrived, open_shop, place, situation
from tests.support.amqp import messages_left, plain_channel, queue_length, send
from tests.support.consuming import Noted, a_consumer, a_message, notes, registered, take_note
from tests.support.processes import ProcessStarter, RunningProcess
from tests.support.repeats import repeats
from tests.support.running import IMPATIENT, add, declare_queues, running_relay, running_worker
from tests.support.waiting import eventually

#: What RabbitMQ does is the same for both databases.
pytestmark = pytest.mark.django_db(transaction=True)

#: How `rabbitmqctl` raises each alarm, and clears it.
ALARMS = {
    "memory": (["set_vm_memory_high_watermark", "0.0000001"], ["set_vm_memory_high_watermark", "0.4"]),
    "disk": (["set_disk_free_limit", "9000000000000"], ["set_disk_free_limit", "50MB"]),
}
#: Seconds between two attempts to connect of a refused account, half more at most.
REFUSED_PAUSE = 4


@pytest.fixture
def shop(
    breakable_broker: RabbitMQNode, run_process: ProcessStarter, product: Product, settings: Any
) -> Iterator[Shop]:
    yield open_shop(run_process, product.slug, **environment(RECONNECT_REFUSED=REFUSED_PAUSE))
    assert_nothing_is_left(breakable_broker, settings)


def assert_nothing_is_left(node: RabbitMQNode, settings: Any) -> None:
    """No message waits in a queue, and none is with a consumer that will never acknowledge it."""
    url: str = settings.MESSAGING["AMQP_URLS"][0]
    eventually(lambda: not messages_left(node, url), 20, report=lambda: messages_left(node, url))


def lines(process: RunningProcess, pattern: str) -> list[str]:
    return [line for line in process.lines if re.search(pattern, line)]


def test_a_broker_that_restarts_dies_or_freezes_loses_and_doubles_nothing(
    shop: Shop, breakable_broker: RabbitMQNode
) -> None:
    """F1, F2, F5."""
    [consumers] = shop.consumers
    with shop.shopping():
        shop.bought(5)
        breakable_broker.ctl("stop_app")
        shop.bought(10)
        breakable_broker.ctl("start_app")
        shop.bought(5)
    shop.assert_everything_arrives_once()
    for process, role in ((shop.web, "relay"), (consumers, "relay"), (consumers, "consumer")):
        assert len(lines(process, f"amqp.lost.*role={role}")) == 1, "one line, not one for each attempt"
        assert len(lines(process, f"amqp.connected.*after=.*role={role}")) == 1

    with shop.shopping():
        for _ in repeats(short=1, full=20):
            shop.bought(5)
            breakable_broker.kill()
            shop.bought(5)
            breakable_broker.start()
    shop.assert_everything_arrives_once()

    lost = len(lines(shop.web, "amqp.lost.*role=relay"))
    with shop.shopping():
        breakable_broker.pause()
        shop.bought(10)
        eventually(lambda: len(lines(shop.web, "amqp.lost.*role=relay")) > lost, 25)
        breakable_broker.resume()
        shop.bought(3)
    shop.assert_everything_arrives_once()
    shop.assert_unharmed()


def test_processes_started_without_a_broker_wait_calmly_and_everything_arrives_when_it_is_there(
    breakable_broker: RabbitMQNode, run_process: ProcessStarter, product: Product
) -> None:
    """F3, F4. No order gives up, and those that wait at the end are not published one by one."""
    breakable_broker.kill()
    consumers = run_process("run_consumer", "sms", "red_packet", **environment())
    relay = run_process("run_relay", **environment())
    shop = Shop(run_process.web(**environment()), [consumers, relay], product.slug)
    for _ in range(3):
        shop.buy()
    shop.numbers += [place(product).number for _ in repeats(short=150, full=5000)]
    consumers.wait_for_line("amqp.unreachable")
    relay.wait_for_line("amqp.unreachable")
    assert_calm(consumers, relay)
    breakable_broker.start()
    shop.assert_everything_arrives_once(max(300, PATIENCE))
    shop.assert_unharmed()
    for process in (consumers, relay):
        assert len(lines(process, "amqp.unreachable")) <= 4, "each connection logs the same trouble once"


def test_alarms_hold_up_publishing_and_nothing_else(shop: Shop, breakable_broker: RabbitMQNode, settings: Any) -> None:
    """F6, F7, F8. Consumers go on: they and the relay have connections of their own. Status tells; a call costs its
    timeout and no more."""
    shop.buy()
    eventually(everything_arrived, report=situation)
    [vhost] = settings.MESSAGING["AMQP_URLS"]
    reader = a_consumer()
    declare_queues(reader)
    for number, (alarm, (raised, cleared)) in enumerate(ALARMS.items(), start=1):
        send(vhost, reader.queue, a_message(alarm))
        breakable_broker.ctl(*raised)
        try:
            with running_worker(reader):
                eventually(lambda alarm=alarm: notes(alarm) == 1)
            assert queue_length(vhost, reader.queue) == 0
            InboxMessage.objects.filter(consumer=reader.name).delete()  # no order's
            with shop.shopping():
                eventually(lambda number=number: len(lines(shop.web, "amqp.blocked.*role=relay")) == number, 20)
                shop.bought(5)
            assert any(f"RabbitMQ blocks publishers: {alarm}" in each for each in status.look().wrong)
            with pytest.raises((rpc.RpcTimeout, rpc.NoBroker)):
                rpc.call("shipping.quote", timeout=0.5)
            waiting = OutboxMessage.objects.filter(state=OutboxMessage.State.PENDING)
            assert waiting.count() >= 5
            eventually(waiting.filter(last_error__contains="a memory or disk alarm blocks the broker").exists)
        finally:
            breakable_broker.ctl(*cleared)
        shop.assert_everything_arrives_once()
        assert len(lines(shop.web, "amqp.blocked.*role=relay")) == number
    client.close()
    assert not lines(shop.consumers[0], "amqp.lost")

    # A publish that was blocked may arrive later: its row is published again, and the copy is recognised.
    with shop.shopping(orders_per_second=10):
        for _ in repeats(short=3, full=30):
            with breakable_broker.memory_alarm():
                shop.bought(6)
            shop.bought(3)
    shop.assert_everything_arrives_once()
    shop.assert_unharmed()


def test_an_alarm_leaves_a_question_without_an_answer_and_keeps_the_connection(
    breakable_broker: RabbitMQNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relay asks when it declares its queues. On a new connection it would publish again what is not confirmed."""
    monkeypatch.setattr("messaging.broker.calls.CALL_TIMEOUT", 0.5)
    publisher = Publisher("test").start()
    connection = publisher.connection
    queue = {"queue": "tests.asked", "durable": True}
    try:
        assert publisher.reach()
        with breakable_broker.memory_alarm():
            publisher.publish([Publishing("", "", "tests.asked", Message(body=b"1"), mandatory=False)], 0.1)
            eventually(lambda: connection.blocked)
            with pytest.raises(BrokerSilent, match="alarm blocks it"):
                connection.call("queue_declare", **queue)
            assert connection.is_open
        eventually(lambda: not connection.blocked)
        assert connection.call("queue_declare", **queue).queue == "tests.asked"
        assert connection.generation == 1
    finally:
        publisher.stop()


def test_a_binding_removed_by_hand_is_made_again_and_what_was_missed_comes_again(
    vhost: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F14. While others take the event the broker confirms it: only declaring again helps, and the row knows who
    should have had it."""
    settings.MESSAGING = {**settings.MESSAGING, **IMPATIENT, "RECONCILE_AFTER": 0.1}
    monkeypatch.setattr(conf, "DECLARE_INTERVAL", 4.0)
    texts: list[str] = []
    sent_again = 0
    first, second = a_consumer(name="first"), a_consumer(name="second")
    with registered(first, second), running_relay(), running_worker(first, second):
        add(Noted(text="before"))
        eventually(lambda: notes("before") == 2)
        with plain_channel(vhost) as channel:
            channel.queue_unbind("tests.first", "orders.events", "test.noted")

        def arrives_at_both() -> bool:
            texts.append(text := f"after {time.monotonic()}")
            add(Noted(text=text))
            eventually(lambda: notes(text) >= 1)
            return notes(text) == 2

        def everything_arrives_at_both() -> bool:
            nonlocal sent_again
            sent_again += reconcile(repair=True, by="test").sent_again
            return all(notes(text) == 2 for text in texts)

        eventually(arrives_at_both)
        eventually(everything_arrives_at_both)
        assert sent_again >= 1
        assert notes("before") == 2


def test_a_queue_declared_otherwise_and_full_is_used_logged_once_and_holds_up_its_own_consumer(
    vhost: str, broker: RabbitMQNode, run_process: ProcessStarter, product: Product, settings: Any
) -> None:
    """F15, F16."""
    with plain_channel(vhost) as channel:
        full = {"x-max-length": 3, "x-overflow": "reject-publish"}
        channel.queue_declare("orders.sms", durable=True, arguments=full)
    red_packets = run_process("run_consumer", "red_packet", **environment())
    shop = Shop(run_process.web(**environment()), [red_packets], product.slug)
    refused = OutboxMessage.objects.filter(last_error="the broker could not store it")
    with shop.shopping():
        shop.bought(15)  # 3 s: the relay declares everything three times
        eventually(lambda: refused.count() >= 5, 40, report=situation)
    # The other consumer receives at once what the full queue refuses.
    settled = Order.objects.filter(red_packet_settled_at__isnull=False)
    eventually(lambda: settled.count() == Order.objects.count(), report=situation)
    assert not OutboxMessage.objects.filter(state=OutboxMessage.State.FAILED).exists()
    shop.consumers.append(run_process("run_consumer", "sms", **environment()))
    shop.assert_everything_arrives_once()
    shop.assert_unharmed()
    [line] = lines(shop.web, "topology.differs")
    assert "inequivalent arg" in line
    assert "orders.sms" in line
    assert_nothing_is_left(broker, settings)


def test_a_handler_slower_than_the_brokers_patience_is_not_run_twice(
    breakable_broker: RabbitMQNode, settings: Any
) -> None:
    """F17. RabbitMQ closes the channel of a consumer that acknowledges too late, and delivers the message again."""
    settings.MESSAGING = {**settings.MESSAGING, **IMPATIENT}
    begun, go_on = threading.Event(), threading.Event()

    def slow(event: Noted, delivery: Delivery) -> None:
        begun.set()
        assert go_on.wait(60)
        take_note(event, delivery)

    consumer = a_consumer(slow, timeout=timedelta(minutes=2))
    closed: list[Any] = []
    try:
        breakable_broker.ctl("eval", "application:set_env(rabbit, channel_tick_interval, 500).")
        breakable_broker.ctl("eval", "application:set_env(rabbit, consumer_timeout, 1000).")
        with registered(consumer), running_relay(), running_worker(consumer) as worker:
            ended = worker.consumers[0].subscription._on_ended
            worker.consumers[0].subscription._on_ended = lambda reason: (closed.append(reason), ended(reason))
            add(Noted(text="slow"))
            assert begun.wait(20)
            eventually(lambda: closed, 30)
            go_on.set()
            eventually(lambda: InboxMessage.objects.filter(state="handled").exists())
            eventually(lambda: worker.tally.counts["duplicate"] == 1, 30)
    finally:
        breakable_broker.ctl("eval", "application:unset_env(rabbit, consumer_timeout).")
        breakable_broker.ctl("eval", "application:set_env(rabbit, channel_tick_interval, 60000).")
    assert "timeout" in closed[0].lower()  # 4.3 cancels the consumer and gives no reason: ours names this one
    assert notes("slow") == 1


def test_closed_connections_and_a_refused_account_lose_nothing_and_the_broker_is_not_hammered(
    shop: Shop, breakable_broker: RabbitMQNode
) -> None:
    """F9, F18, F19. RabbitMQ gives no reason for a wrong password; counting log-ins may lock the account."""
    vhost = _vhost_of(breakable_broker)
    with shop.shopping(orders_per_second=10):
        for _ in repeats(short=4, full=60):
            breakable_broker.ctl("close_all_connections", "--global", "test")
            shop.bought(6)
    assert lines(shop.web, "amqp.lost")
    shop.assert_everything_arrives_once()

    breakable_broker.ctl("clear_permissions", "-p", vhost, USER)
    breakable_broker.ctl("close_all_connections", "--global", "test")
    for _ in range(3):
        shop.buy()
    shop.consumers[0].wait_for_line("amqp.unreachable.*refused access to the virtual host.*role=consumer", 20)
    assert_calm(*shop.processes)
    breakable_broker.ctl("set_permissions", "-p", vhost, USER, ".*", ".*", ".*")
    shop.assert_everything_arrives_once()

    password = breakable_broker.password
    before = refused_log_ins(breakable_broker)
    try:
        breakable_broker.ctl("change_password", USER, "another one")
        breakable_broker.ctl("close_all_connections", "--global", "test")
        changed = time.monotonic()
        # The consumer, its process's relay, that of the web process, and the web's RPC calls.
        eventually(lambda: refused_log_ins(breakable_broker) - before == 4, 20)
        for _ in range(3):
            shop.buy()
        assert_calm(*shop.processes)
        attempts = 1 + (time.monotonic() - changed) // REFUSED_PAUSE
        assert refused_log_ins(breakable_broker) - before <= 4 * attempts
    finally:
        breakable_broker.ctl("change_password", USER, password)
    shop.assert_everything_arrives_once()
    shop.assert_unharmed()
    said = [line for process in shop.processes for line in lines(process, "amqp.unreachable.*the password")]
    assert len(said) == 4
    assert all(password not in process.output for process in shop.processes)


def refused_log_ins(node: RabbitMQNode) -> int:
    """How many log-ins with a wrong password the node has logged so far."""
    logs = node.directory.glob("log/*.log")
    return sum(log.read_text(errors="replace").count("login refused") for log in logs)


def _vhost_of(node: RabbitMQNode) -> str:
    names = [name for name in node.ctl("list_vhosts", "--silent").split() if name.startswith("test-")]
    return names[-1]

"""The worker on a real broker: each message is handled once, whatever happens to broker, database and process."""

import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import pika
import pytest
from django.db import connection, connections
from structlog.testing import capture_logs

from messaging import conf, consumers, effects
from messaging.broker.connection import opened
from messaging.consumers import Consumer
from messaging.effects import Sending
from messaging.exceptions import Reject
from messaging.message import Delivery, Message
from messaging.models import InboxMessage, MinuteCount, OutboxMessage, counts
from messaging.topology import desired
from messaging.topology.declare import Declaration
from messaging.worker import consumer_threads, database_wait
from script.services.rabbitmq import RabbitMQNode
from tests.support.amqp import plain_channel, send, unacknowledged
from tests.support.consuming import (
    Noted,
    a_consumer,
    a_message,
    attempts,
    note,
    notes,
    outcomes_of_attempts,
    registered,
)
from tests.support.missing_table import missing_table
from tests.support.network import BrokerNetwork
from tests.support.processes import ProcessStarter
from tests.support.running import IMPATIENT, RunningWorker, add, declare_queues, running_relay, running_worker, take_all
from tests.support.waiting import eventually, seconds_pass

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def impatience(request: pytest.FixtureRequest, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("vhost", "network"):
        if name in request.fixturenames:
            request.getfixturevalue(name)
    settings.MESSAGING = {**settings.MESSAGING, **IMPATIENT}
    monkeypatch.setattr("messaging.worker.service.REOPEN_PAUSE", 0.2)
    monkeypatch.setattr(database_wait, "DATABASE_PAUSE", 0.1)
    monkeypatch.setattr(consumer_threads, "FAULT_PAUSE", 0.1)
    with registered():
        yield


def known(handler: Callable[..., None] | None = None, **changes: Any) -> Consumer:
    """A consumer that relays know, too."""
    consumer = a_consumer(handler, **changes) if handler else a_consumer(**changes)
    consumers.registry.put(consumer)
    return consumer


def waiting(consumer: Consumer, *messages: Message) -> Consumer:
    """The consumer, whose queue exists and holds these messages."""
    declare_queues(consumer)
    send(conf.get().amqp_urls[0], consumer.queue, *messages)
    return consumer


def numbered(count: int) -> list[Message]:
    return [a_message(f"m{number}") for number in range(count)]


class Slow:
    """A handler that has begun, and ends when it may."""

    def __init__(self) -> None:
        self.begun, self.may_end = threading.Event(), threading.Event()

    def __call__(self, event: Noted, delivery: Delivery) -> None:
        note(event.text)
        self.begun.set()
        self.may_end.wait(20)

    __module__ = __name__
    __qualname__ = "Slow"


def outcomes() -> Counter[str]:
    return Counter(InboxMessage.objects.values_list("state", flat=True))


@pytest.mark.both_databases
def test_committed_events_are_handled(vhost: str) -> None:
    texts = [f"m{number}" for number in range(40)]
    with capture_logs() as lines, running_relay(), running_worker(known()):
        add(*[Noted(text=text) for text in texts])
        eventually(lambda: outcomes() == {"handled": 40})
    assert all(notes(text) == 1 for text in texts)
    handled = [line for line in lines if line["event"] == "messages.handled"]
    assert sum(line["count"] for line in handled) == 40, "successes are summed, and what is left is told at the end"
    assert len(handled) < 40


def test_a_failing_message_is_retried_at_its_consumer_alone_until_it_is_dead(vhost: str) -> None:
    def fail(event: Noted, delivery: Delivery) -> None:
        note("failed")
        raise ValueError("never")

    with running_relay(), running_worker(known(fail), known(name="copies")):
        add(Noted(text="x"), subject="n-1")
        eventually(lambda: outcomes() == {"dead": 1, "handled": 1})
        eventually(lambda: not OutboxMessage.objects.exclude(state="published").exists())
    assert (notes("failed"), notes("x")) == (0, 1)
    assert outcomes_of_attempts(state="dead") == [(1, "failed"), (2, "failed"), (3, "failed")]
    assert outcomes_of_attempts(consumer="copies") == [(1, "handled")]
    assert list(OutboxMessage.objects.order_by("id").values_list("attempt", flat=True)) == [1, 2, 3]
    assert set(InboxMessage.objects.values_list("subject", flat=True)) == {"n-1"}
    assert take_all(vhost, "tests.notes") == []


def test_what_was_published_handled_and_failed_is_counted_minute_by_minute(
    vhost: str, monkeypatch: pytest.MonkeyPatch, isolated: Callable[..., None]
) -> None:
    isolated(effects)
    monkeypatch.setattr(counts, "WRITE_EVERY", 0.1)
    counts.counting._counts.clear()  # what tests before have left

    @effects.effect("bell")
    def ring(sending: Sending) -> None:
        if sending.payload["text"] == "quiet":
            raise Reject("no bell")

    def handle(event: Noted, delivery: Delivery) -> None:
        if event.text == "bad":
            raise Reject("no")
        delivery.effect("bell", {"text": event.text})

    with running_relay(), running_worker(known(handle)):
        add(*[Noted(text=text) for text in ("good", "better", "quiet", "bad")])
        expected = {
            ("published", conf.get().exchange): 4, ("handled", "notes"): 3, ("failed", "notes"): 1,
            ("effect done", "notes"): 2, ("effect failed", "notes"): 1,
        }  # fmt: skip
        eventually(lambda: Counter({(row.what, row.name): row.number for row in MinuteCount.objects.all()}) == expected)


class Milliseconds(datetime):
    """A time of a client that takes AMQP's seconds for milliseconds."""

    def utctimetuple(self) -> Any:
        return (9999, 1, 20_000_000, 0, 0, 0)


def test_headers_that_pika_cannot_read_stop_no_consumer(vhost: str) -> None:
    consumer = waiting(known())
    far = {"sent": Milliseconds(2026, 1, 1, tzinfo=UTC), "tenant": "t"}
    with plain_channel(vhost) as channel:
        properties = pika.BasicProperties(type="test.noted", message_id="m-1", headers=far)
        channel.basic_publish("", "tests.notes", Noted(text="strange").encode(), properties)
    send(vhost, "tests.notes", a_message("good"))
    with running_worker(consumer) as worker:
        eventually(lambda: outcomes() == {"handled": 2})
        assert worker._connection.generation == 1
    assert (notes("strange"), notes("good")) == (1, 1)


# --- Batches -----------------------------------------------------------------------------------------------


def test_a_batch_shares_a_transaction_and_only_its_failing_message_fails(vhost: str) -> None:
    calls: list[str] = []

    def choosy(event: Noted, delivery: Delivery) -> None:
        calls.append(event.text)
        note(event.text)
        if event.text == "m3":
            raise Reject("this one")

    with running_worker(waiting(known(choosy, batch=10), *numbered(6))):
        eventually(lambda: outcomes() == {"handled": 5, "dead": 1})
    assert notes() == 5
    assert calls.count("m0") == 2  # once in the batch, once alone


def test_a_redelivered_message_is_never_batched(vhost: str) -> None:
    consumer = waiting(known(batch=10), *numbered(5))
    with plain_channel(vhost) as channel:  # taken, and given back by the end of the connection
        for _ in range(3):
            channel.basic_get("tests.notes")
    with running_worker(consumer):
        eventually(lambda: outcomes() == {"handled": 5})
    assert InboxMessage.objects.filter(starts=1).count() == 3
    assert notes() == 5


# --- Stopping ----------------------------------------------------------------------------------------------


def test_a_burst_tries_every_address_and_ends_when_the_queues_are_empty(vhost: str, settings: Any) -> None:
    consumer = waiting(known(), *numbered(30))
    settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": ["amqp://127.0.0.1:1/", vhost]}
    assert RunningWorker([consumer], burst=True).join().counts == {"handled": 30}


def test_messages_that_a_limited_worker_leaves_count_once_towards_the_delivery_limit(vhost: str) -> None:
    consumer = waiting(known(), *numbered(30))
    assert RunningWorker([consumer], max_messages=3).join().counts == {"handled": 3}
    left = [properties.headers or {} for properties, _ in take_all(vhost, "tests.notes")]
    assert len(left) == 27
    assert max(headers.get("x-delivery-count", 0) for headers in left) <= 1


def test_a_burst_whose_queue_is_missing_and_may_not_be_declared_waits_for_it_and_says_so_once(
    broker: RabbitMQNode, vhost: str, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    consumer = known()
    name = vhost.rsplit("/", 1)[1]
    broker.api("PUT", f"/users/{name}", {"password": "reader", "tags": ""})
    broker.api("PUT", f"/permissions/{name}/{name}", {"configure": "", "write": ".*", "read": ".*"})
    try:
        settings.MESSAGING = {
            **settings.MESSAGING,
            "AMQP_URLS": [f"amqp://{name}:reader@127.0.0.1:{broker.port}/{name}"],
        }
        worker = RunningWorker([consumer], burst=True)
        eventually(lambda: worker.worker.consumers[0].subscription._opened > 3)
        said = [record.getMessage() for record in caplog.records]
        for event in ("consumer.ended", "topology.problem"):
            assert len([line for line in said if event in line and "tests.notes" in line]) == 1, said
        settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": [vhost]}
        waiting(consumer)
        assert worker.join().counts == {}
    finally:
        broker.api("DELETE", f"/users/{name}")


def test_a_stopping_worker_finishes_what_has_begun_and_requeues_the_rest(vhost: str) -> None:
    slow = Slow()
    worker = RunningWorker([waiting(known(slow), *numbered(5))])
    assert slow.begun.wait(10)
    worker.stop()
    eventually(worker.worker.consumers[0]._stopping.is_set)
    slow.may_end.set()
    summary = worker.join()
    assert (summary.counts, summary.abandoned) == ({"handled": 1}, 0)
    assert len(take_all(vhost, "tests.notes")) == 4


def test_an_idle_worker_does_not_use_the_time_that_it_may_take_to_stop(vhost: str, settings: Any) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "STOP_TIMEOUT": 110.0}
    worker = RunningWorker([known(), known(name="copies")], concurrency=4)
    eventually(lambda: all(each.subscription.active for each in worker.worker.consumers))
    worker.stop()
    worker.join(90)


def test_a_handler_that_never_ends_is_abandoned_and_its_message_redelivered(vhost: str, settings: Any) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "STOP_TIMEOUT": 0.2}
    begun, may_end = threading.Event(), threading.Event()

    def stuck(event: Noted, delivery: Delivery) -> None:
        begun.set()
        may_end.wait(20)
        raise Reject("far too late")

    worker = RunningWorker([waiting(known(stuck), a_message("x"))])
    assert begun.wait(10)
    worker.stop()
    assert worker.join().abandoned == 1
    assert len(take_all(vhost, "tests.notes")) == 1
    may_end.set()
    for thread in worker.worker.consumers[0].threads:
        thread.join(10)


def test_a_second_signal_ends_the_process_at_once(run_process: ProcessStarter) -> None:
    consumer = run_process("run_consumer", "sms", AMQP_URL="amqp://127.0.0.1:1/")
    consumer.wait_for_line("amqp.unreachable")
    consumer.send(signal.SIGSTOP)  # so that both are pending when it looks
    consumer.send(signal.SIGTERM)
    consumer.send(signal.SIGINT)
    consumer.send(signal.SIGCONT)
    assert consumer.wait(15) == 1


@pytest.mark.only_on("postgresql")
def test_several_threads_handle_at_the_same_time(vhost: str) -> None:
    together = threading.Barrier(3)

    def meet(event: Noted, delivery: Delivery) -> None:
        together.wait(10)

    with running_worker(waiting(known(meet), *numbered(3)), concurrency=3):
        eventually(lambda: outcomes() == {"handled": 3})


# --- When something breaks ---------------------------------------------------------------------------------


def test_a_queue_deleted_under_its_consumer_is_made_again_and_consumed(vhost: str) -> None:
    consumer = known()
    with running_relay(), running_worker(consumer):
        add(Noted(text="before"))
        eventually(lambda: notes("before") == 1)
        with plain_channel(vhost) as channel:
            channel.queue_delete("tests.notes")
        eventually(lambda: _exists(vhost, "tests.notes"))
        add(Noted(text="after"))
        eventually(lambda: notes("after") == 1)


def test_a_queue_that_a_relay_declares_as_soon_as_it_was_deleted_keeps_its_consumer(vhost: str) -> None:
    """RabbitMQ would not tell the consumer, and give it nothing for ever, if the queue were there again at once."""
    consumer = known()
    topology = desired.topology([consumer])
    with running_worker(waiting(consumer, a_message("before"))), opened("test") as connection:
        declaration = Declaration(connection)
        declaration.declare(topology)
        eventually(lambda: notes("before") == 1)
        with plain_channel(vhost) as channel:
            channel.queue_delete(consumer.queue)
            assert declaration.declare(topology) == {}
        send(vhost, consumer.queue, a_message("after"))
        eventually(lambda: notes("after") == 1)


def _exists(address: str, queue: str) -> bool:
    try:
        with plain_channel(address) as channel:
            channel.queue_declare(queue, passive=True)
    except pika.exceptions.ChannelClosedByBroker:
        return False
    return True


def test_a_message_that_is_redelivered_after_a_lost_connection_is_a_duplicate(
    network: BrokerNetwork, vhost: str
) -> None:
    slow = Slow()
    with running_worker(waiting(known(slow), a_message("x"))) as worker:
        assert slow.begun.wait(10)
        network.kill()
        network.start()
        eventually(lambda: worker._connection.generation == 2)
        slow.may_end.set()
        eventually(lambda: worker.tally.counts["duplicate"] == 1)
    assert notes("x") == 1
    assert take_all(vhost, "tests.notes") == []


def test_waiting_for_a_missing_table_costs_no_attempt_and_no_redelivery_and_is_logged_once(vhost: str) -> None:
    consumer = waiting(known(), a_message("x"))
    with capture_logs() as lines, ExitStack() as missing:
        missing.enter_context(missing_table(InboxMessage))
        with running_worker(consumer) as worker:
            eventually(lambda: worker.tally.busy == 1)
            seconds_pass(0.5)  # five looks
            missing.close()
            eventually(lambda: outcomes() == {"handled": 1})
    [attempt] = attempts()
    assert (attempt.number, attempt.redelivered) == (1, False)
    logged = [line["event"] for line in lines if line["event"].startswith("consumer.database")]
    assert logged == ["consumer.database_away", "consumer.database_back"]


@pytest.mark.only_on("postgresql")
def test_with_the_database_refusing_connections_nothing_is_acknowledged_and_no_attempt_counted(
    broker: RabbitMQNode, vhost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_worker(waiting(known(), a_message("before"))) as worker:
        eventually(lambda: notes("before") == worker.tally.counts["handled"] == 1)
        with monkeypatch.context() as away:
            for database in (connections.settings["default"], connection.settings_dict):
                away.setitem(database, "PORT", "1")
            with connection.cursor() as cursor:  # it was opened by `notes`
                cursor.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            send(vhost, "tests.notes", *numbered(5))
            eventually(lambda: worker.tally.busy == 1)
            eventually(lambda: unacknowledged(broker, vhost, "tests.notes") == 5)
            assert notes() == 1
            assert worker.tally.counts == {"handled": 1}
        eventually(lambda: outcomes() == {"handled": 6})
    assert {(each.number, each.redelivered) for each in attempts()} == {(1, False)}


def test_a_frozen_broker_delays_neither_handler_nor_stop(network: BrokerNetwork, settings: Any) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "STOP_TIMEOUT": 110.0}
    slow = Slow()
    consumer = waiting(known(slow), a_message("x"))
    worker = RunningWorker([consumer])
    assert slow.begun.wait(10)
    network.pause()
    slow.may_end.set()
    eventually(lambda: notes("x") == 1)
    worker.stop()
    worker.join(90)
    network.resume()
    with running_worker(consumer) as again:
        eventually(again.consumers[0].is_idle)
    assert notes("x") == 1

"""A queue that exists and never answers is named by everything that looks, and delays no other queue.

Each test makes queues unresponsive in the real broker. What a relay decides about them is in test_flow.py.
"""

import logging
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from io import StringIO
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.core.management import call_command
from django.db import OperationalError, transaction
from django.utils import timezone

from messaging import conf
from messaging.broker import calls, queue_answers, subscription
from messaging.broker.connection import opened
from messaging.broker.queue_answers import ask_queues
from messaging.consumers import Consumer
from messaging.message import new_id
from messaging.models import OutboxMessage
from messaging.monitoring import status
from messaging.mq import listen
from messaging.reconcile.reconcile import reconcile
from messaging.relay import flow, leases, streams
from messaging.relay.relay import Relay
from messaging.relay.streams import Flight
from messaging.topology import drift
from messaging.topology.findings import Kind
from script.services.ports import free_port
from script.services.rabbitmq import RabbitMQNode
from tests.support.amqp import messages_left, plain_channel, send
from tests.support.command_line import ctrl_c, mq
from tests.support.consuming import Erased, Noted, a_consumer, a_message, notes, registered
from tests.support.running import (
    IMPATIENT,
    InThread,
    add,
    declare_queues,
    running_relay,
    running_worker,
    take_all,
)
from tests.support.waiting import eventually

pytestmark = pytest.mark.django_db(transaction=True)

State = OutboxMessage.State
SILENT = frozenset({"tests.silent"})
#: By consumer: the type of its queue, what makes it silent, and what mends that.
BREAK, MEND = 1, 2
FAULTS = {
    "stuck_classic": ("classic", "sys:suspend(PID)", "sys:resume(PID)"),
    "stuck_leader": ("quorum", "sys:suspend(element(1, PID))", "sys:resume(element(1, PID))"),
    # Its vhost is deleted only once it has a leader again: else RabbitMQ 3.10's worker for dead letters crashes.
    "dead_leader": (
        "quorum",
        "ra:stop_server(quorum_queues, PID)",
        "ra:restart_server(quorum_queues, PID), {ok, _, _} = ra:members(PID)",
    ),
}


@pytest.fixture(autouse=True)
def impatience(vhost: str, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.MESSAGING = {**settings.MESSAGING, **IMPATIENT}
    # Shorter than in use, and long enough for what answers on a busy machine.
    monkeypatch.setattr(calls, "CALL_TIMEOUT", 2.0)
    monkeypatch.setattr(queue_answers, "CALL_TIMEOUT", 2.0)
    monkeypatch.setattr(subscription, "BEGIN_PATIENCE", 1.0)
    monkeypatch.setattr(conf, "CLAIM_BATCH", 5)


def test_silent_queues_are_named_with_their_cure_and_delay_no_other_consumer(
    vhost: str, broker: RabbitMQNode, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    consumers = {name: a_consumer(name=name, queue_type=kind) for name, (kind, *_) in FAULTS.items()}
    # Of another event: RabbitMQ may hold up a message for a minute that goes to a dead queue too.
    healthy = a_consumer(events=(Erased,))

    def do(which: int, *names: str) -> None:
        resource = f'rabbit_misc:r(<<"{urlsplit(vhost).path[1:]}">>, queue, Name)'
        pid = f"Pid = fun(Name) -> {{ok, Q}} = rabbit_amqqueue:lookup({resource}), amqqueue:get_pid(Q) end"
        steps = [FAULTS[name][which].replace("PID", f'Pid(<<"{consumers[name].queue}">>)') for name in names]
        broker.ctl("eval", f"{', '.join([pid, *steps])}.")

    with registered(*consumers.values(), healthy):
        assert mq("topology", "declare").code == 0
    do(BREAK, *consumers)
    queues = [each.queue for each in (healthy, *consumers.values())]
    try:
        with opened("test") as connection:
            answers = ask_queues(connection, queues, quorum=queues[1:])
        assert [bool(answers[queue].silent) for queue in queues] == [False, True, True, True]
    finally:
        # RabbitMQ holds up a connection that consumes from a stuck leader for 12 s, and then closes it.
        do(MEND, "stuck_leader")
    silent = [consumers["stuck_classic"], consumers["dead_leader"]]
    try:
        with registered(*silent, healthy):
            assert_named(silent, healthy, settings)
            with caplog.at_level(logging.INFO), running_relay(), running_worker(healthy, *silent):
                add(Erased(text="through"))
                eventually(lambda: notes("through") == 1, within=60)
                for each in silent:
                    eventually(lambda each=each: is_logged(each.queue, caplog))
    finally:
        do(MEND, *[each.name for each in silent])


def assert_named(silent: Sequence[Consumer], healthy: Consumer, settings: Any) -> None:
    """Status with and without the management API, drift and reconcile name the silent queues, and hide nothing."""
    wrong = status.look().wrong
    idle = f"queue {healthy.queue} has no consumer (waiting messages: 0): `manage.py run_consumer {healthy.name}`"
    assert idle in wrong
    report = reconcile(repair=True, by="test")
    findings = {each.name: each for each in drift.look() if each.is_wrong}
    settings.MESSAGING = {**settings.MESSAGING, "MANAGEMENT_URL": f"http://127.0.0.1:{free_port()}"}
    wrong_by_amqp = status.look().wrong
    for each in silent:
        for said in (wrong, wrong_by_amqp):
            [line] = [line for line in said if each.queue in line]
            assert "exists but does not answer" in line
            assert "restart the RabbitMQ node that holds it" in line
        assert "exists but does not answer" in report.undecided[each.name]
        assert findings[each.queue].kind is Kind.SILENT_QUEUE
        assert "rabbitmqctl delete_queue" in findings[each.queue].hint


def is_logged(queue: str, caplog: pytest.LogCaptureFixture, event: str = "consumer.queue_") -> bool:
    said = [record.getMessage() for record in caplog.records]
    return any(event in line and queue in line and "does not answer" in line for line in said)


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


def publish_all() -> None:
    """Publish by a new relay, to which every destination is sound, without the rests of rows."""
    OutboxMessage.objects.filter(state=State.PENDING).update(publish_at=timezone.now())
    with running_relay():
        eventually(lambda: count(state=State.PUBLISHED) == count(), within=60)


def test_who_looks_into_a_silent_queue_by_hand_is_told_its_cure(
    vhost: str, broker: RabbitMQNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listen, "CALL_TIMEOUT", 0.7)
    declare(vhost, "tests.silent")
    err = StringIO()
    with unresponsive(broker, vhost, "tests.silent"):
        for command in (["peek", "tests.silent"], ["purge", "tests.silent", "--yes"]):
            said = mq(*command)
            assert said.code == 7
            assert "Queue tests.silent exists but does not answer" in said.err
            assert "restart the RabbitMQ node that holds it" in said.err
        with ctrl_c(lambda: "restart the RabbitMQ node" in err.getvalue()):
            call_command("mq", "listen", "tests.silent", stderr=err)

    assert err.getvalue().count("No answer from queue tests.silent for 0.7 s.") == 1


def test_a_queue_that_never_confirms_delays_no_other_queue_and_its_new_events_rest_untried(
    vhost: str, broker: RabbitMQNode
) -> None:
    consumer, other = a_consumer(), a_consumer(name="other", events=(Erased,))
    with registered(consumer, other):
        with running_relay() as relay:
            add(Noted(text="at first"))
            eventually(lambda: count(state=State.PUBLISHED) == 1)
            with unresponsive(broker, vhost, consumer.queue):
                # In one batch: the channel waits for the first, and confirms nothing of the second.
                add(Noted(text="m"), Erased(text="e"), *[Noted(text="m") for _ in range(11)])
                eventually(lambda: rests(relay, frozenset({consumer.queue})), within=60)
                for _ in range(20):
                    add(Noted(text="m"), Erased(text="e"))
                eventually(lambda: count(type=Erased.event_type, state=State.PUBLISHED) == 21, within=60)
                assert count(type=Noted.event_type, state=State.PENDING) == 12 + 20
                untried = {"type": Noted.event_type, "publish_attempts": 0, "lease_token": None}
                soon = timezone.now() + timedelta(seconds=1)
                eventually(lambda: count(**untried, publish_at__gt=soon, last_error__startswith="not tried: ") >= 20)
        publish_all()
    assert len({properties.message_id for properties, _ in take_all(vhost, consumer.queue)}) == 1 + 12 + 20


def test_a_backlog_for_an_unresponsive_queue_delays_no_other_and_is_tried_with_one_message(
    vhost: str, broker: RabbitMQNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each batch with such a row costs the whole time that is allowed for a confirm."""
    monkeypatch.setattr(streams, "PAUSE", 0.5)
    monkeypatch.setattr(flow, "PAUSE", 0.5)
    declare(vhost, "tests.silent", "tests.well")
    for _ in range(30):
        a_row("tests.silent", publish_attempts=2)
    trials: list[int] = []
    with unresponsive(broker, vhost, "tests.silent"), running_relay() as relay:
        send = relay._publisher.send

        def noted(where: Any, flights: Sequence[Flight], **options: Any) -> None:
            if is_open(relay, where):
                trials.append(len(flights))
            send(where, flights, **options)

        monkeypatch.setattr(relay._publisher, "send", noted)
        eventually(lambda: relay._publisher.ready)
        new = a_row("tests.well")
        eventually(lambda: is_published(new))
        eventually(lambda: len(trials) >= 3, within=60)
    assert set(trials) == {1}
    publish_all()


def test_a_connection_that_is_given_up_ends_although_a_channel_waits_for_a_silent_queue(
    vhost: str, broker: RabbitMQNode
) -> None:
    """Else a process would have one more connection each time."""
    declare(vhost, "tests.silent")
    with unresponsive(broker, vhost, "tests.silent"), running_relay() as relay:
        a_row("tests.silent")
        eventually(lambda: any(each.unconfirmed for each in relay._publisher._channels.values()))
        connection: Any = relay._publisher.connection
        given_up = connection._pika
        connection.reset("for a test")
        eventually(lambda: given_up.is_closed)
    publish_all()


def is_open(relay: Relay, where: Any) -> bool:
    """Whether the relay has found that a destination confirms nothing."""
    stream = relay._flow._streams.get(where)
    return stream is not None and not stream.breaker.is_closed


def rests(relay: Relay, where: Any) -> bool:
    """Whether the relay tries nothing there for a while."""
    stream = relay._flow._streams.get(where)
    return stream is not None and stream.breaker.rest(time.monotonic()) > 0


@pytest.mark.parametrize("trouble", ["a long deadline for confirms", "a database that takes no rows back"])
def test_confirmed_rows_are_marked_before_an_unresponsive_queue_is_waited_for(
    trouble: str, vhost: str, broker: RabbitMQNode, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "LEASE": 200}
    declare(vhost, "tests.silent", "tests.well")

    def locked(*_: Any) -> None:
        raise OperationalError("database is locked")

    if trouble == "a long deadline for confirms":
        settings.MESSAGING = {**settings.MESSAGING, "PUBLISH_TIMEOUT": 60}
    with running_relay() as relay, unresponsive(broker, vhost, "tests.silent"):
        if trouble == "a database that takes no rows back":
            a_row("tests.silent")
            eventually(lambda: rests(relay, SILENT))
            monkeypatch.setattr(leases, "end", locked)
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
    queues = [f"tests.q{number}" for number in range(30)]
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
            eventually(lambda: count(pk__in=lost, state=State.PUBLISHED) == 30)
        finally:
            over.set()
            busy.join()


def test_a_worker_goes_on_with_its_other_queues_while_one_does_not_let_it_consume(
    vhost: str, broker: RabbitMQNode, caplog: pytest.LogCaptureFixture
) -> None:
    stuck, healthy = a_consumer(name="stuck", events=(Erased,)), a_consumer()
    with registered(stuck, healthy):
        declare_queues(stuck, healthy)
        with running_worker(stuck, healthy) as worker, unresponsive(broker, vhost, stuck.queue):
            eventually(lambda: all(each.subscription.consuming for each in worker.consumers))
            worker._connection.reset("the leader of one queue is stuck since")
            eventually(lambda: is_logged(stuck.queue, caplog, "consumer.queue_silent"))
            send(vhost, healthy.queue, a_message("through"))
            eventually(lambda: notes("through") == 1)
            eventually(lambda: healthy.queue not in messages_left(broker, vhost))

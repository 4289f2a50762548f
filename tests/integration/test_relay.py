"""The relay on a real broker: every committed row is published, or visibly waits for what it misses."""

import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pika
import pytest
from django.db import DatabaseError, InterfaceError, connection, transaction
from django.utils import timezone

from messaging import conf
from messaging.message import new_id
from messaging.models import OutboxMessage
from messaging.relay import leases, relay
from messaging.relay.relay import Relay
from messaging.topology import desired
from messaging.topology.declare import Declaration
from script.services.rabbitmq import RabbitMQNode
from script.services.tcp_proxy import TcpProxy
from tests.support.amqp import plain_channel
from tests.support.consuming import Erased, Noted, a_consumer, registered
from tests.support.network import BrokerNetwork
from tests.support.processes import ProcessStarter
from tests.support.running import IMPATIENT, InThread, add, running_relay, take_all
from tests.support.waiting import eventually

pytestmark = pytest.mark.django_db(transaction=True)

CONSUMER = a_consumer()
State = OutboxMessage.State


@pytest.fixture(autouse=True)
def impatience(request: pytest.FixtureRequest, settings: Any) -> Iterator[None]:
    for name in ("vhost", "network", "breakable_broker"):
        if name in request.fixturenames:
            request.getfixturevalue(name)
    settings.MESSAGING = {**settings.MESSAGING, **IMPATIENT}
    with registered(CONSUMER):
        yield


def url(settings: Any) -> str:
    address: str = settings.MESSAGING["AMQP_URLS"][0]
    return address


def a_row(**changes: Any) -> OutboxMessage:
    return OutboxMessage.objects.create(
        **{
            "message_id": new_id(), "type": "test.noted", "exchange": "orders.events", "routing_key": "test.noted",
            "body": b'{"text": "x"}', **changes,
        }
    )  # fmt: skip


def states() -> dict[str, int]:
    return dict(Counter(OutboxMessage.objects.values_list("state", flat=True)))


def all_published() -> bool:
    return not OutboxMessage.objects.exclude(state=State.PUBLISHED).exists()


def texts_in(address: str, queue: str = "tests.notes") -> Counter[str]:
    return Counter(Noted.model_validate_json(body).text for _, body in take_all(address, queue))


def test_rows_are_published_once_and_marked_with_those_who_should_have_them(vhost: str) -> None:
    texts = [f"m{number}" for number in range(700)]  # more than one claim
    add(*[Noted(text=text) for text in texts])
    with running_relay() as running:
        eventually(all_published)
    assert running.published == 700
    assert texts_in(vhost) == Counter(texts)
    row = OutboxMessage.objects.first()
    assert row
    assert (row.expected_consumers, row.publish_attempts, row.lease_token, row.last_error) == (["notes"], 1, None, "")
    assert row.published_at is not None


def test_an_event_without_a_consumer_is_unroutable_and_not_lost(vhost: str) -> None:
    add(Erased(text="x"))
    with running_relay():
        eventually(lambda: states() == {"unroutable": 1})
    row = OutboxMessage.objects.get()
    assert "312 NO_ROUTE" in row.last_error
    assert row.publish_at > timezone.now() - timedelta(seconds=1)
    assert row.lease_token is None


@pytest.mark.both_databases
def test_several_relays_publish_each_row_once(vhost: str, settings: Any) -> None:
    # However slow the machine is, no lease ends before its row is marked.
    settings.MESSAGING = {**settings.MESSAGING, "LEASE": 60.0}
    texts = [f"m{number}" for number in range(1500)]
    with running_relay() as one, running_relay() as two, running_relay() as three:
        for start in range(0, 1500, 100):
            add(*[Noted(text=text) for text in texts[start : start + 100]])
        eventually(all_published, within=30)
    assert one.published + two.published + three.published == 1500
    assert texts_in(vhost) == Counter(texts)


def test_a_relay_without_a_database_at_its_start_says_so_and_leaves(
    vhost: str, run_process: ProcessStarter, tmp_path: Path
) -> None:
    process = run_process("run_relay", DATABASE_URL=f"sqlite:///{tmp_path}/missing/db.sqlite3")
    assert process.wait() == 3
    assert "Database: unable to open database file" in process.output
    assert "Traceback" not in process.output


def _declare(address: str, queue: str, **arguments: Any) -> None:
    with plain_channel(address) as channel:
        channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum", **arguments})


def test_a_row_handed_over_in_memory_is_published_at_once_without_a_claim(
    vhost: str, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    monkeypatch.setattr(conf, "POLL_INTERVAL", 30.0)
    token = uuid.uuid4()
    with running_relay() as running:
        eventually(lambda: running._publisher.ready)
        eventually(lambda: running._claim_due > 0)  # its look at the table after connecting is over
        monkeypatch.setattr(leases, "claim", lambda *_: pytest.fail("claimed"))
        row = a_row(lease_token=token, lease_until=timezone.now() + timedelta(minutes=1))
        running.hand_over([row], _now())
        eventually(all_published, within=2)
    assert running.published == 1


def test_waiting_rows_are_published_as_soon_as_the_relay_is_connected(
    vhost: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conf, "POLL_INTERVAL", 30.0)
    add(Noted(text="x"))
    with running_relay():
        eventually(all_published, within=5)


def test_a_row_whose_lease_has_nearly_ended_is_freed_and_claimed_at_once(vhost: str) -> None:
    row = a_row(lease_token=uuid.uuid4(), lease_until=timezone.now() + timedelta(hours=1))
    with running_relay() as running:
        eventually(lambda: running._publisher.ready)
        running.hand_over([row], _now() - 2.5)
        eventually(all_published)
    assert len(take_all(vhost, "tests.notes")) == 1


def test_a_claim_takes_no_more_bytes_than_fit_and_the_next_takes_the_rest(
    vhost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "CLAIM_BYTES", 1000)
    rows = [a_row(body=b"x" * 400) for _ in range(5)]
    first = leases.claim(100, 30)
    assert [row.pk for row in first] == [row.pk for row in rows[:3]]
    assert leases.is_full(first, 100)
    second = leases.claim(100, 30)
    assert [row.pk for row in second] == [row.pk for row in rows[3:]]
    assert not leases.is_full(second, 100)


def test_a_row_both_handed_over_and_claimed_is_published_once(vhost: str) -> None:
    # The database's clock was set forward: the lease has ended there, and not here.
    row = a_row(lease_token=uuid.uuid4(), lease_until=timezone.now() - timedelta(minutes=1))
    relay_ = Relay()
    relay_.hand_over([row], _now())
    home = InThread(relay_.run, "relay")
    eventually(all_published)
    relay_.stop(2)
    home.join()
    assert len(take_all(vhost, "tests.notes")) == 1


def _now() -> float:
    return time.monotonic()


# --- Who gets it -------------------------------------------------------------------------------------------


def test_a_queue_deleted_by_hand_comes_back_and_what_was_unroutable_arrives(vhost: str) -> None:
    with running_relay():
        add(Noted(text="before"))
        eventually(all_published)
        with plain_channel(vhost) as channel:
            channel.queue_delete("tests.notes")
        add(Noted(text="after"))
        eventually(all_published)
    assert texts_in(vhost) == {"after": 1}
    assert OutboxMessage.objects.get(publish_attempts=2).last_error == ""


def test_an_exchange_deleted_by_hand_comes_back_and_nothing_is_lost(vhost: str) -> None:
    with running_relay():
        add(Noted(text="before"))
        eventually(all_published)
        with plain_channel(vhost) as channel:
            channel.exchange_delete("orders.events")
        add(*[Noted(text=f"m{number}") for number in range(20)])
        eventually(all_published)
    assert texts_in(vhost) == Counter(["before", *(f"m{number}" for number in range(20))])


def test_events_that_this_user_may_not_publish_are_published_once_it_may(
    broker: RabbitMQNode, vhost: str, settings: Any
) -> None:
    with running_relay():
        add(Noted(text="before"))
        eventually(all_published)
    with somebody(broker, vhost, settings, write="") as permit, running_relay():
        add(Noted(text="refused"))
        eventually(lambda: states() == {"published": 1, "unroutable": 1})
        assert "403 ACCESS_REFUSED" in OutboxMessage.objects.get(state=State.UNROUTABLE).last_error
        permit(write=".*")
        eventually(all_published)
    assert texts_in(vhost) == {"before": 1, "refused": 1}


def test_one_row_of_a_hundred_with_a_missing_exchange_fails_alone(vhost: str) -> None:
    with transaction.atomic():
        for number in range(100):
            a_row(exchange="nowhere" if number == 50 else "orders.events")
    with running_relay() as running:
        eventually(lambda: states() == {"published": 99, "unroutable": 1})
    guilty = OutboxMessage.objects.get(state=State.UNROUTABLE)
    assert guilty.exchange == "nowhere"
    assert "404" in guilty.last_error
    assert running.published == 99
    # What was sent before the guilty one may have arrived although its confirm did not: then it comes twice.
    ids = Counter(properties.message_id for properties, _ in take_all(vhost, "tests.notes"))
    assert len(ids) == 99
    assert max(ids.values()) <= 2


def test_of_two_rows_with_one_message_id_the_unroutable_one_is_marked(vhost: str) -> None:
    same = new_id()
    with transaction.atomic():
        bad = a_row(message_id=same, exchange="", routing_key="tests.gone", consumer="gone", attempt=2)
        good = a_row(message_id=same, exchange="", routing_key="tests.notes", consumer="notes", attempt=2)
    with running_relay():
        eventually(lambda: states() == {"published": 1, "unroutable": 1})
    bad.refresh_from_db()
    good.refresh_from_db()
    assert (bad.state, good.state) == ("unroutable", "published")


def test_a_retry_for_a_consumer_that_this_code_does_not_know_is_published_and_stops_no_relay(vhost: str) -> None:
    _declare(vhost, "tests.retired")
    a_row(exchange="", routing_key="tests.retired", consumer="retired", attempt=2)
    with running_relay():
        eventually(all_published)
        add(Noted(text="next"))
        eventually(all_published)
    assert len(take_all(vhost, "tests.retired")) == 1


def test_a_retry_reaches_its_queue_although_the_consumers_bindings_cannot_be_made(
    vhost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_bound(declaration: Declaration, _: desired.Topology) -> dict[str, str]:
        declaration.problems = {"tests.notes": "binding test.noted failed"}
        return declaration.problems

    monkeypatch.setattr(Declaration, "declare", not_bound)
    _declare(vhost, "tests.notes")
    row = a_row(exchange="", routing_key="tests.notes", consumer="notes", attempt=2)
    with running_relay():
        eventually(all_published)
    row.refresh_from_db()
    assert row.publish_attempts == 1


def test_a_binding_that_the_relay_may_not_make_is_waited_for(broker: RabbitMQNode, vhost: str, settings: Any) -> None:
    with running_relay():  # one that may declare everything has
        eventually(lambda: _exists(vhost, "tests.notes"))
    with plain_channel(vhost) as channel:
        channel.queue_unbind("tests.notes", "orders.events", "test.noted")
    with somebody(broker, vhost, settings, configure="", write="orders[.]events"), running_relay() as running:
        add(*[Noted(text=f"m{number}") for number in range(3)])
        eventually(lambda: states() == {"unroutable": 3})
        assert all("312 NO_ROUTE" in row.last_error for row in OutboxMessage.objects.all())
        with plain_channel(vhost) as channel:
            channel.queue_bind("tests.notes", "orders.events", "test.noted")
        eventually(all_published)
        assert running.published == 3
    assert texts_in(vhost) == {"m0": 1, "m1": 1, "m2": 1}


def test_one_missing_queue_among_several_is_noticed_and_named(broker: RabbitMQNode, vhost: str, settings: Any) -> None:
    with registered(CONSUMER, a_consumer(name="others")):
        with running_relay():
            eventually(lambda: _exists(vhost, "tests.others"))
        with plain_channel(vhost) as channel:
            channel.queue_delete("tests.others")
        with somebody(broker, vhost, settings, configure="", write="orders[.]events"), running_relay():
            add(Noted(text="x"))
            eventually(lambda: states() == {"unroutable": 1})
            row = OutboxMessage.objects.get()
            assert row.expected_consumers == ["notes", "others"]
            assert "not every queue took it: others: this user may not declare it" in row.last_error
            assert "notes" not in row.last_error
            with plain_channel(vhost) as channel:
                channel.queue_declare("tests.others", durable=True, arguments=desired.queue_arguments())
                channel.queue_bind("tests.others", "orders.events", "test.noted")
            eventually(all_published)
    # The queue that took it at once has it once more, with the same id: its inbox knows it.
    at_once = [properties.message_id for properties, _ in take_all(vhost, "tests.notes")]
    in_the_end = [properties.message_id for properties, _ in take_all(vhost, "tests.others")]
    assert set(at_once) == set(in_the_end) == {row.message_id}
    assert len(at_once) >= 2


def _exists(address: str, queue: str) -> bool:
    with plain_channel(address) as channel:
        try:
            channel.queue_declare(queue, passive=True)
        except pika.exceptions.ChannelClosedByBroker:
            return False
    return True


@contextmanager
def somebody(node: RabbitMQNode, address: str, settings: Any, **permissions: str) -> Iterator[Callable[..., None]]:
    """Inside, relays are a user that may do what these patterns match, and otherwise everything; yields a function
    that permits something else."""
    vhost = address.rpartition("/")[2]
    before = settings.MESSAGING

    def permit(**permissions: str) -> None:
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        node.api("PUT", f"/permissions/{vhost}/{vhost}", {**everything, **permissions})

    node.api("PUT", f"/users/{vhost}", {"password": "somebody", "tags": ""})
    try:
        permit(**permissions)
        settings.MESSAGING = {**before, "AMQP_URLS": [f"amqp://{vhost}:somebody@{address.partition('@')[2]}"]}
        yield permit
    finally:
        settings.MESSAGING = before
        node.api("DELETE", f"/users/{vhost}")


@pytest.mark.parametrize(
    "wrong",
    [
        {"routing_key": "k" * 255 + "é"},
        {"exchange": "é" * 200},
        {"headers": {"huge": 2**70}},
        {"headers": {"name" * 100: 1}},
        {"headers": {"big": "x" * 200_000}},
        {"message_id": "é" * 200},
    ],
    ids=["long key", "long exchange", "number", "long header name", "big headers", "long id"],
)
def test_a_row_that_cannot_be_sent_fails_alone(vhost: str, wrong: dict[str, Any]) -> None:
    if connection.vendor == "postgresql" and "routing_key" in wrong:
        wrong = {"routing_key": "é" * 200}
    with transaction.atomic():
        a_row()
        bad = a_row(**wrong)
        a_row()
    with running_relay():
        eventually(lambda: states() == {"published": 2, "failed": 1}, within=5)
    bad.refresh_from_db()
    assert bad.state == "failed"
    assert bad.last_error
    assert len(take_all(vhost, "tests.notes")) == 2


def test_a_body_over_the_brokers_limit_fails_alone(breakable_broker: RabbitMQNode, settings: Any) -> None:
    limit = "application:set_env(rabbit, max_message_size, {0}), persistent_term:put(max_message_size, {0})."
    usual = breakable_broker.ctl("eval", "{ok, Size} = application:get_env(rabbit, max_message_size), Size.").strip()
    breakable_broker.ctl("eval", limit.format(10_000))  # of channels opened from now on
    try:
        with transaction.atomic():
            for number in range(20):
                a_row(body=b"x" * (20_000 if number == 10 else 100))
        with running_relay() as running:
            eventually(lambda: states() == {"published": 19, "failed": 1})
            generation = running._publisher.connection.generation
    finally:
        breakable_broker.ctl("eval", limit.format(usual))
    guilty = OutboxMessage.objects.get(state=State.FAILED)
    assert len(guilty.body) == 20_000
    assert "406" in guilty.last_error
    assert "larger" in guilty.last_error
    assert generation == 1, "the broker closes a channel over it, not the connection"
    assert {len(body) for _, body in take_all(url(settings), "tests.notes")} == {100}


def test_a_full_queue_takes_its_message_later(vhost: str) -> None:
    _declare(vhost, "tests.small", **{"x-max-length": 1, "x-overflow": "reject-publish"})
    with plain_channel(vhost) as channel:
        channel.basic_publish("", "tests.small", b"")
        channel.basic_publish("", "tests.small", b"")
    row = a_row(exchange="", routing_key="tests.small", consumer="small")
    with running_relay():
        eventually(lambda: OutboxMessage.objects.filter(publish_attempts__gte=1))
        row.refresh_from_db()
        assert row.state == "pending"
        assert row.last_error
        take_all(vhost, "tests.small")
        eventually(all_published)


def test_a_row_that_makes_the_broker_close_the_connection_delays_no_other(vhost: str) -> None:
    """RabbitMQ 3.10 does so over a forged address of direct replies; 4 sends it back."""
    a_row(exchange="", routing_key="amq.rabbitmq.reply-to.%.!", consumer="forged")
    with running_relay():
        add(*[Noted(text=f"m{number}") for number in range(20)])
        events = OutboxMessage.objects.filter(type=Noted.event_type, consumer="")
        eventually(lambda: not events.exclude(state=State.PUBLISHED).exists(), within=60)


# --- The end -----------------------------------------------------------------------------------------------


def test_a_relay_told_to_stop_publishes_what_it_was_handed(vhost: str) -> None:
    with running_relay() as running:
        eventually(lambda: running._publisher.ready)
        token = uuid.uuid4()
        rows = [a_row(lease_token=token, lease_until=timezone.now() + timedelta(hours=1)) for _ in range(50)]
        running.hand_over(rows, _now())
        running.stop(2)
    assert all_published()


def test_a_relay_without_a_broker_gives_back_what_it_holds(settings: Any) -> None:
    token = uuid.uuid4()
    row = a_row(lease_token=token, lease_until=timezone.now() + timedelta(hours=1))
    began = _now()
    with running_relay(drain_timeout=0.3) as running:
        running.hand_over([row], _now())
    row.refresh_from_db()
    assert (row.state, row.lease_token) == ("pending", None)
    assert _now() - began < 4


def test_an_idle_relay_stops_at_once(vhost: str, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conf, "POLL_INTERVAL", 60.0)
    with running_relay() as running:
        eventually(lambda: running._publisher.ready)
        began = _now()
    assert _now() - began < 2


# --- When something breaks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [DatabaseError("gone"), InterfaceError("closed"), ValueError("a fault of our own")])
def test_a_claim_that_fails_neither_ends_the_relay_nor_drops_what_it_was_handed(
    vhost: str, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    real, failed = leases.claim, []

    def fail_once(*arguments: Any) -> Any:
        if not failed:
            failed.append(True)
            raise error
        return real(*arguments)

    monkeypatch.setattr(relay, "DATABASE_PAUSE", 0.1)
    monkeypatch.setattr(relay, "FAULT_PAUSE", 0.1)
    monkeypatch.setattr(leases, "claim", fail_once)
    row = a_row(lease_token=uuid.uuid4(), lease_until=timezone.now() + timedelta(hours=1))
    running = Relay()
    running.hand_over([row], _now())
    home = InThread(running.run, "relay")
    eventually(lambda: failed and all_published())
    running.stop(2)
    home.join()


@pytest.mark.only_on("postgresql")
def test_connections_that_the_database_ended_are_replaced(vhost: str) -> None:
    with running_relay() as running:
        for number in range(3):
            add(Noted(text=f"m{number}"))
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            eventually(all_published)
    assert running.published >= 3


def test_connections_that_the_broker_closed_are_replaced(vhost: str, broker: RabbitMQNode) -> None:
    with running_relay() as running:
        for number in range(3):
            eventually(lambda: running._publisher.ready)
            add(*[Noted(text=f"m{number}") for _ in range(50)])
            _close_connections(broker, vhost)
        eventually(all_published)
    assert texts_in(vhost).keys() == {"m0", "m1", "m2"}
    assert OutboxMessage.objects.filter(state=State.PUBLISHED).count() == 150


def _close_connections(node: RabbitMQNode, address: str) -> None:
    vhost = address.rpartition("/")[2]
    node.ctl("close_all_connections", "--vhost", vhost, "closed by a test")


def test_a_broker_lost_before_refused_rows_are_repeated_fails_none_of_them(
    vhost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with transaction.atomic():
        a_row(exchange="nowhere")
        for _ in range(5):
            a_row()
    running = Relay()
    monkeypatch.setattr(running, "_may_send", lambda: False)
    home = InThread(running.run, "relay")
    eventually(lambda: OutboxMessage.objects.filter(publish_attempts__gte=1).count() == 6)
    assert (
        OutboxMessage.objects.filter(exchange="orders.events").exclude(state__in=["pending", "published"]).count() == 0
    )
    monkeypatch.undo()
    eventually(lambda: states() == {"published": 5, "unroutable": 1})
    running.stop(2)
    home.join()


def test_a_frozen_broker_gets_all_rows_once_it_continues(
    network: BrokerNetwork, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However slow the machine is, the relay publishes to the frozen broker before it declares again.
    monkeypatch.setattr(conf, "DECLARE_INTERVAL", 3600.0)
    with running_relay():
        add(Noted(text="before"))
        eventually(all_published)
        network.pause()
        add(*[Noted(text=f"m{number}") for number in range(20)])
        eventually(lambda: OutboxMessage.objects.filter(state=State.PENDING, publish_attempts__gte=1).count() == 20)
        network.resume()
        eventually(all_published, within=30)
    assert texts_in(url(settings)).keys() == {"before", *(f"m{number}" for number in range(20))}


def test_without_its_confirm_no_row_is_marked_although_it_arrived(vhost: str, settings: Any) -> None:
    with TcpProxy(lambda: urlsplit(vhost).port or 0) as network:
        through = vhost.replace(f":{urlsplit(vhost).port}/", f":{network.port}/")
        settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": [through]}
        with running_relay() as running:
            eventually(lambda: running._publisher.ready and running._declared_generation == 1)
            network.stall("client")  # what the broker says is lost, what it is told arrives
            add(*[Noted(text=f"m{number}") for number in range(20)])
            eventually(lambda: OutboxMessage.objects.filter(publish_attempts__gte=1, state=State.PENDING).count() == 20)
            assert all("no confirm within 1 s" in row.last_error for row in OutboxMessage.objects.all())
            with plain_channel(vhost) as channel:
                eventually(lambda: channel.queue_declare("tests.notes", passive=True).method.message_count >= 20)
            network.heal()
            eventually(all_published)
    counts = Counter(properties.message_id for properties, _ in take_all(vhost, "tests.notes"))
    assert counts.keys() == set(OutboxMessage.objects.values_list("message_id", flat=True))
    assert min(counts.values()) >= 2, "each arrived at first too: the inbox knows the copy by its id"


def test_a_frozen_broker_does_not_delay_the_stop(network: BrokerNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("messaging.broker.calls.CALL_TIMEOUT", 0.5)
    with running_relay(drain_timeout=0.5) as running:
        eventually(lambda: running._publisher.ready)
        network.pause()
        row = a_row(lease_token=uuid.uuid4(), lease_until=timezone.now() + timedelta(hours=1))
        running.hand_over([row], _now())
        began = _now()
    assert _now() - began < 4
    row.refresh_from_db()
    assert (row.state, row.lease_token) == ("pending", None)


def test_an_alarmed_broker_is_waited_for_on_one_connection(breakable_broker: RabbitMQNode, settings: Any) -> None:
    with running_relay() as running:
        add(Noted(text="before"))
        eventually(all_published)
        generation = running._publisher.connection.generation
        with breakable_broker.memory_alarm():
            add(*[Noted(text=f"m{number}") for number in range(20)])
            # Long enough for several deadlines to pass.
            eventually(lambda: OutboxMessage.objects.filter(publish_attempts__gte=1, state=State.PENDING).count() == 20)
            until = _now() + 3
            eventually(lambda: _now() > until)
            assert running._publisher.connection.generation == generation
            assert states() == {"pending": 20, "published": 1}
            waiting = OutboxMessage.objects.filter(state=State.PENDING).values_list("last_error", flat=True)
            assert all("a memory or disk alarm blocks the broker" in reason for reason in waiting)
        eventually(all_published, within=30)
    counts = texts_in(url(settings))
    assert counts.keys() == {"before", *(f"m{number}" for number in range(20))}
    assert max(counts.values()) <= 2

"""The relay on a real broker: every committed row is published, or waits with its reason."""

import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.db import DatabaseError, InterfaceError, connection, transaction
from django.utils import timezone

from messaging import conf
from messaging.models import OutboxMessage
from messaging.relay import leases, relay
from messaging.relay.relay import Relay
from messaging.relay.streams import Flight
from messaging.topology import desired
from script.services.rabbitmq import RabbitMQNode
from script.services.tcp_proxy import TcpProxy
from tests.support.amqp import plain_channel
from tests.support.consuming import Noted, a_consumer, registered
from tests.support.network import BrokerNetwork
from tests.support.running import IMPATIENT, InThread, a_leased_row, a_row, add, running_relay, take_all
from tests.support.waiting import eventually

pytestmark = pytest.mark.django_db(transaction=True)

CONSUMER = a_consumer()
State = OutboxMessage.State


@pytest.fixture(autouse=True)
def deadlines(request: pytest.FixtureRequest, settings: Any) -> Iterator[None]:
    for name in ("vhost", "network"):
        if name in request.fixturenames:
            request.getfixturevalue(name)
    if "short_deadlines" in request.fixturenames:
        settings.MESSAGING = {**settings.MESSAGING, **IMPATIENT}
    with registered(CONSUMER):
        yield


@pytest.fixture
def short_deadlines() -> None:
    """Confirms and leases that do not come, or end, within a test's patience. Others have the product's deadlines: on
    a busy machine a confirm that comes late would make a copy."""


@pytest.fixture
def short_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that were not published rest shortly."""
    monkeypatch.setattr(leases, "LONGEST_REST", 0.2)


def states() -> dict[str, int]:
    return dict(Counter(OutboxMessage.objects.values_list("state", flat=True)))


def all_published() -> bool:
    return not OutboxMessage.objects.exclude(state=State.PUBLISHED).exists()


def texts_in(address: str, queue: str = "tests.notes") -> Counter[str]:
    return Counter(Noted.model_validate_json(body).text for _, body in take_all(address, queue))


@pytest.mark.both_databases
def test_several_relays_publish_each_row_once(vhost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conf, "CLAIM_BATCH", 20)
    texts = [f"m{number}" for number in range(300)]
    with running_relay() as one, running_relay() as two, running_relay() as three:
        for start in range(0, 300, 50):
            add(*[Noted(text=text) for text in texts[start : start + 50]])
        eventually(all_published, within=30)
    assert one.published + two.published + three.published == 300
    assert texts_in(vhost) == Counter(texts)
    row = OutboxMessage.objects.first()
    assert row
    assert (row.expected_consumers, row.publish_attempts, row.lease_token, row.last_error) == (["notes"], 1, None, "")
    assert row.published_at is not None


def _declare(address: str, queue: str, **arguments: Any) -> None:
    with plain_channel(address) as channel:
        channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum", **arguments})


def test_a_relay_publishes_what_it_is_handed_without_a_claim_and_drains_at_its_stop(
    vhost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conf, "POLL_INTERVAL", 30.0)
    add(Noted(text="waiting"))
    with running_relay() as running:
        eventually(all_published)
        eventually(lambda: running._claim_due > 0)  # its look at the table is over
        monkeypatch.setattr(leases, "claim", lambda *_: pytest.fail("claimed"))
        running.hand_over([a_leased_row()], _now())
        eventually(all_published)
        running.hand_over([a_leased_row() for _ in range(50)], _now())
        began = _now()
        running.stop(30)
    assert all_published()
    assert running.published == 52
    assert _now() - began < 15


def test_a_row_whose_lease_has_nearly_ended_is_freed_and_claimed_at_once(vhost: str) -> None:
    row = a_leased_row()
    with running_relay() as running:
        eventually(lambda: running._publisher.ready)
        running.hand_over([row], _now() - conf.get().lease + 0.5)
        eventually(all_published)
    assert len(take_all(vhost, "tests.notes")) == 1


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


# --- Routing -----------------------------------------------------------------------------------------------


def test_a_queue_or_exchange_deleted_by_hand_comes_back_and_nothing_is_lost(vhost: str, short_rests: None) -> None:
    with running_relay(), plain_channel(vhost) as channel:
        add(Noted(text="before"))
        eventually(all_published)
        channel.queue_delete("tests.notes")
        add(Noted(text="after"))
        eventually(all_published)
        assert OutboxMessage.objects.get(publish_attempts__gte=2).last_error == ""
        channel.exchange_delete("orders.events")
        add(*[Noted(text=f"m{number}") for number in range(20)])
        eventually(all_published)
    assert texts_in(vhost) == Counter(["after", *(f"m{number}" for number in range(20))])


#: Columns of rows that the broker does not take, their state then, and its reason.
NOT_TAKEN: list[tuple[dict[str, Any], str, str]] = [
    ({"type": "test.erased", "routing_key": "test.erased"}, "unroutable", "312 NO_ROUTE"),
    ({"exchange": "nowhere"}, "unroutable", "404"),
    ({"exchange": "", "routing_key": "tests.gone", "consumer": "gone", "attempt": 2}, "unroutable", "312 NO_ROUTE"),
    ({"body": b"x" * (17 << 20)}, "failed", "406"),
    ({"routing_key": "k" * 255 + "é"}, "failed", ""),
    ({"exchange": "é" * 200}, "failed", ""),
    ({"headers": {"huge": 2**70}}, "failed", ""),
    ({"headers": {"name" * 100: 1}}, "failed", ""),
    ({"headers": {"big": "x" * 200_000}}, "failed", ""),
    ({"message_id": "é" * 200}, "failed", ""),
]


def test_rows_that_the_broker_does_not_take_wait_or_fail_alone_with_their_reasons(vhost: str) -> None:
    _declare(vhost, "tests.retired")
    with transaction.atomic():
        good = [a_row() for _ in range(50)]
        not_taken = [a_row(**columns) for columns, _, _ in NOT_TAKEN]
        # The same message for two consumers, and one for a consumer that this code does not know.
        good.append(a_row(message_id=not_taken[2].message_id, exchange="", routing_key="tests.notes", consumer="notes"))
        a_row(exchange="", routing_key="tests.retired", consumer="retired", attempt=2)
        good += [a_row() for _ in range(50)]
    with running_relay() as running:
        eventually(lambda: states() == {"published": 102, "unroutable": 3, "failed": 7})
    assert running.published == 102
    assert running._publisher.connection.generation == 1, "the broker closes channels over them, not the connection"
    for row, (_, state, reason) in zip(not_taken, NOT_TAKEN, strict=True):
        row.refresh_from_db()
        assert (row.state, row.lease_token) == (state, None)
        assert row.last_error
        assert reason in row.last_error
    assert len(take_all(vhost, "tests.retired")) >= 1
    # A message sent before the broker closed the channel may have arrived without its confirm. Then it comes twice.
    ids = Counter(properties.message_id for properties, _ in take_all(vhost, "tests.notes"))
    assert ids.keys() == {row.message_id for row in good}
    assert max(ids.values()) <= 2


def test_a_relay_without_permissions_waits_and_names_what_is_missing(
    broker: RabbitMQNode, vhost: str, settings: Any, short_rests: None
) -> None:
    def waits(reason: str) -> None:
        eventually(lambda: "unroutable" in states())
        row = OutboxMessage.objects.get(state=State.UNROUTABLE)
        eventually(lambda: row.refresh_from_db() or reason in row.last_error, report=lambda: row.last_error)
        assert row.expected_consumers == ["notes", "others"]
        assert "notes:" not in row.last_error

    with registered(CONSUMER, a_consumer(name="others")), plain_channel(vhost) as channel:
        with running_relay():  # one that may declare everything
            add(Noted(text="before"))
            eventually(all_published)
        with restricted_user(broker, vhost, settings, configure="", write="") as permit:
            with running_relay():
                add(Noted(text="not permitted"))
                waits("403 ACCESS_REFUSED")
                permit(configure="", write="orders[.]events")
                eventually(all_published)
            channel.queue_delete("tests.others")
            with running_relay():
                add(Noted(text="no queue"))
                waits("not every queue took it: others: this user may not declare it")
                channel.queue_declare("tests.others", durable=True, arguments=desired.queue_arguments())
                channel.queue_bind("tests.others", "orders.events", "test.noted")
                eventually(all_published)

                for queue in ("tests.notes", "tests.others"):
                    channel.queue_unbind(queue, "orders.events", "test.noted")
                add(Noted(text="no binding"))
                waits("312 NO_ROUTE")
                for queue in ("tests.notes", "tests.others"):
                    channel.queue_bind(queue, "orders.events", "test.noted")
                eventually(all_published)
    # A queue that took it at once gets it once more, with the same id: the inbox knows the copy.
    others = set(messages_in(vhost, "tests.others"))
    assert sorted(Noted.model_validate_json(body).text for _, body in others) == ["no binding", "no queue"]
    notes = messages_in(vhost, "tests.notes")
    assert len(set(notes)) == 4
    assert len(notes) >= 5


def messages_in(vhost: str, queue: str) -> list[tuple[str, bytes]]:
    """The id and body of each message that is taken from a queue."""
    return [(properties.message_id, body) for properties, body in take_all(vhost, queue)]


@contextmanager
def restricted_user(
    node: RabbitMQNode, address: str, settings: Any, **permissions: str
) -> Iterator[Callable[..., None]]:
    """Inside, relays log in as a user with these permissions, and `.*` for those not named; yields a function that
    changes them."""
    vhost = address.rpartition("/")[2]
    before = settings.MESSAGING

    def permit(**permissions: str) -> None:
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        node.api("PUT", f"/permissions/{vhost}/{vhost}", {**everything, **permissions})

    node.api("PUT", f"/users/{vhost}", {"password": "secret", "tags": ""})
    try:
        permit(**permissions)
        settings.MESSAGING = {**before, "AMQP_URLS": [f"amqp://{vhost}:secret@{address.partition('@')[2]}"]}
        yield permit
    finally:
        settings.MESSAGING = before
        node.api("DELETE", f"/users/{vhost}")


def test_a_full_queue_takes_its_message_later(vhost: str, short_rests: None) -> None:
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


def test_a_relay_without_a_broker_gives_back_what_it_holds(settings: Any) -> None:
    token = uuid.uuid4()
    row = a_row(lease_token=token, lease_until=timezone.now() + timedelta(hours=1))
    began = _now()
    with running_relay(drain_timeout=0.3) as running:
        running.hand_over([row], _now())
    row.refresh_from_db()
    assert (row.state, row.lease_token) == ("pending", None)
    assert _now() - began < 10


# --- When something breaks ---------------------------------------------------------------------------------


def test_claims_that_fail_neither_end_the_relay_nor_drop_what_it_was_handed(
    vhost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, errors = leases.claim, [DatabaseError("gone"), InterfaceError("closed"), ValueError("a fault of our own")]

    def fail_first(*arguments: Any) -> Any:
        if errors:
            raise errors.pop()
        return real(*arguments)

    monkeypatch.setattr(relay, "DATABASE_PAUSE", 0.1)
    monkeypatch.setattr(relay, "FAULT_PAUSE", 0.1)
    monkeypatch.setattr(leases, "claim", fail_first)
    running = Relay()
    running.hand_over([a_leased_row()], _now())
    home = InThread(running.run, "relay")
    eventually(lambda: not errors and all_published())
    running.stop(2)
    home.join()


@pytest.mark.only_on("postgresql")
def test_connections_that_the_database_ended_are_replaced(vhost: str, short_deadlines: None) -> None:
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


def test_a_broker_lost_before_refused_rows_are_repeated_fails_none_of_them(
    vhost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with transaction.atomic():
        for _ in range(3):
            a_row(exchange="nowhere", type="test.nowhere")
    running = Relay()
    collect, lost = running._flow.collect, threading.Event()

    def lose_the_connection() -> list[Flight]:
        found = collect()
        if not lost.is_set() and any(stream.one_by_one for stream in running._flow._streams.values()):
            lost.set()
            running._publisher.connection.reset("for a test")
            eventually(lambda: not running._publisher.ready)
        return found

    monkeypatch.setattr(running._flow, "collect", lose_the_connection)
    home = InThread(running.run, "relay")
    eventually(lambda: states() == {"unroutable": 3})
    assert lost.is_set()
    assert not OutboxMessage.objects.exclude(last_error__contains="404").exists()
    running.stop(2)
    home.join()


def test_a_long_declaration_of_what_is_missing_delays_nothing_that_goes_elsewhere(
    vhost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A silent queue makes it take seconds."""
    begun, may_end = threading.Event(), threading.Event()

    def slowly(_: Any) -> dict[str, str]:
        begun.set()
        assert may_end.wait(60)
        return {}

    with running_relay() as running:
        add(Noted(text="before"))
        eventually(all_published)
        declaration = running._declaring._declaration
        monkeypatch.setattr(declaration, "problems", {"elsewhere": "it is missing"})
        monkeypatch.setattr(declaration, "declare", slowly)
        running._declaring.hasten()
        assert begun.wait(15)
        try:
            add(Noted(text="meanwhile"))
            eventually(all_published)
        finally:
            may_end.set()


def test_without_its_confirm_no_row_is_marked_although_it_arrived(
    vhost: str, short_deadlines: None, settings: Any
) -> None:
    with TcpProxy(lambda: urlsplit(vhost).port or 0) as network:
        through = vhost.replace(f":{urlsplit(vhost).port}/", f":{network.port}/")
        settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": [through]}
        with running_relay():
            add(Noted(text="before"))
            eventually(all_published)
            assert len(take_all(vhost, "tests.notes")) == 1
            OutboxMessage.objects.all().delete()
            network.stall("client")  # confirms are lost, publishes arrive
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


def test_a_frozen_broker_does_not_delay_the_stop(
    network: BrokerNetwork, short_deadlines: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("messaging.broker.calls.CALL_TIMEOUT", 0.5)
    with running_relay(drain_timeout=0.5) as running:
        eventually(lambda: running._publisher.ready)
        network.pause()
        row = a_leased_row()
        running.hand_over([row], _now())
        began = _now()
    assert _now() - began < 10
    row.refresh_from_db()
    assert (row.state, row.lease_token) == ("pending", None)

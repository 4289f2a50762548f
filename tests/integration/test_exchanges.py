"""Events on exchanges of every type, and consumers that say which of them they want."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import OperationalError, transaction

from messaging import consumers, events, outbox
from messaging.broker.connection import opened
from messaging.consumers import Consumer, consumer
from messaging.events import Event
from messaging.message import Delivery
from messaging.models import InboxMessage, OutboxMessage
from messaging.retry import RetryPolicy
from messaging.routing import Exchange
from messaging.topology import desired
from messaging.topology.declare import Declaration
from messaging.worker.worker import Worker
from script.services.rabbitmq import RabbitMQNode
from tests.support.accounts import accounts_at
from tests.support.amqp import plain_channel
from tests.support.command_line import manage
from tests.support.consuming import registered
from tests.support.running import IMPATIENT, add, running_relay, running_worker
from tests.support.waiting import eventually

pytestmark = pytest.mark.django_db(transaction=True)


class Announced(Event, type="test.announced", exchange=Exchange("test.announcements", "fanout")):
    """For everybody."""

    text: str


class Logged(Event, type="test.logged", exchange=Exchange("test.direct_logs", "direct"), key="{severity}"):
    """A line of a log."""

    severity: str
    text: str = ""


class Seen(Event, type="test.seen", exchange=Exchange("test.animals"), key="{speed}.{colour}.{species}"):
    """An animal."""

    speed: str
    colour: str
    species: str


class Printed(Event, type="test.printed", exchange=Exchange("test.papers", "headers"), headers=("format", "copies")):
    """A paper."""

    format: str
    copies: int | None = None


class Weighed(Event, type="test.weighed", exchange=Exchange("test.scales"), key="{{w}}.{kilos:.2f}.{colour}"):
    """Its key formats a field and escapes a brace."""

    kilos: float
    colour: str | None = None


class Measured(Event, type="test.measured", exchange=Exchange("test.measures", "headers"), headers=["ratio"]):
    """Its header is a float."""

    ratio: float


TWICE = RetryPolicy(max_attempts=2, first_delay=timedelta(milliseconds=1), max_delay=timedelta(milliseconds=2))


@pytest.fixture(autouse=True)
def impatient(settings: Any, vhost: str) -> None:
    settings.MESSAGING = {**settings.MESSAGING, **IMPATIENT}


@pytest.fixture(autouse=True)
def only_these() -> Iterator[None]:
    with events.registry.temporary(Announced, Logged, Seen, Printed, Weighed, Measured), registered():
        yield


class Heard:
    """What each consumer was given, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Event]] = []
        self._lock = threading.Lock()

    def consumer(self, name: str, *wanted: type[Event], **options: Any) -> Consumer:
        @consumer(name, *wanted, queue=None if options.get("broadcast") else f"tests.{name}", **options)
        def listen(event: Event, delivery: Delivery) -> None:
            with self._lock:
                self.events.append((delivery.consumer, event))

        return consumers.get(name)

    def by(self, name: str) -> list[Event]:
        return [event for each, event in self.events if each == name]


@pytest.fixture
def heard() -> Heard:
    return Heard()


def all_handled(unroutable: Sequence[OutboxMessage] = ()) -> bool:
    rows = [row for row in OutboxMessage.objects.all() if row not in unroutable]
    assert all(row.state == "published" for row in rows), [(row.state, row.last_error) for row in rows]
    expected = sum(len(row.expected_consumers) for row in rows)
    return expected == InboxMessage.objects.filter(state="handled").count()


def test_each_type_of_exchange_brings_what_its_consumers_ask_for(heard: Heard) -> None:
    severities = {each: Logged(severity=each) for each in ("info", "warning", "error")}
    animals = {
        key: Seen(**dict(zip(("speed", "colour", "species"), key.split("."), strict=True)))
        for key in ("quick.orange.rabbit", "lazy.orange.elephant", "quick.orange.fox", "lazy.pink.rabbit")
    }
    papers = [Printed(format="pdf", copies=2), Printed(format="pdf"), Printed(format="zip", copies=2)]
    weighed, measured, announced = Weighed(kilos=1.5), Measured(ratio=1.5), Announced(text="hello")
    two_of_pdf = {"format": "pdf", "copies": 2}
    expected: dict[Consumer, list[Event]] = {
        # fanout: everything to everybody
        heard.consumer("screen", Announced): [announced],
        heard.consumer("paper", Announced): [announced],
        # direct: by the very key
        heard.consumer("log", Logged, keys=["info", "warning", "error"]): list(severities.values()),
        heard.consumer("errors", Logged, keys=["error"]): [severities["error"]],
        # topic: by pattern, and once even if two patterns match; without keys every key of the event
        heard.consumer("orange", Seen, keys=["*.orange.*"]): list(animals.values())[:3],
        heard.consumer("rabbits", Seen, keys=["*.*.rabbit", "lazy.#"]): [
            animal for key, animal in animals.items() if key != "quick.orange.fox"
        ],
        heard.consumer("zoo", Seen): list(animals.values()),
        heard.consumer("scales", Weighed): [weighed],
        # headers: all or any
        heard.consumer("both", Printed, headers={"x-match": "all", **two_of_pdf}): papers[:1],
        heard.consumer("either", Printed, headers={"x-match": "any", **two_of_pdf}): papers,
        heard.consumer("wide", Measured, headers={"ratio": 1.5}): [measured],
    }
    with running_relay(), running_worker(*expected):
        add(announced, *severities.values(), *animals.values(), *papers, weighed, measured)
        unroutable = add(Measured(ratio=0.5))
        eventually(lambda: all_handled(unroutable))

    for one, events_of in expected.items():
        assert sorted(map(repr, heard.by(one.name))) == sorted(map(repr, events_of)), one.name
    of_logs = OutboxMessage.objects.filter(type="test.logged").order_by("pk")
    assert list(of_logs.values_list("routing_key", "expected_consumers")) == [
        ("info", ["log"]), ("warning", ["log"]), ("error", ["errors", "log"]),
    ]  # fmt: skip
    assert OutboxMessage.objects.get(type="test.weighed").routing_key == "{w}.1.50."


@pytest.mark.parametrize("broadcast", [False, True])
def test_an_event_whose_key_no_consumer_asks_for_is_unroutable_with_the_reason(heard: Heard, broadcast: bool) -> None:
    heard.consumer("errors", Logged, keys=["error"], broadcast=broadcast)
    with running_relay():
        [row] = add(Logged(severity="debug"))
        eventually(lambda: OutboxMessage.objects.get(pk=row.pk).state == "unroutable")

    assert "NO_ROUTE" in OutboxMessage.objects.get(pk=row.pk).last_error


# --- Broadcast ---------------------------------------------------------------------------------------------


@contextmanager
def listening(*wanted: Consumer) -> Iterator[Worker]:
    with running_worker(*wanted) as worker:
        eventually(lambda: all(each.subscription.consuming for each in worker.consumers))
        yield worker


def test_a_broadcast_reaches_every_process_by_a_queue_of_its_own(heard: Heard, vhost: str) -> None:
    cache = heard.consumer("cache", Announced, broadcast=True)
    with listening(cache) as first, listening(cache) as second, running_relay():
        names = {worker.consumers[0].subscription.queue for worker in (first, second)}
        assert len(names) == 2
        assert all(name.startswith("amq.gen-") for name in names)
        [row] = add(Announced(text="flush"))
        eventually(lambda: len(heard.events) == 2)
        eventually(lambda: OutboxMessage.objects.get(pk=row.pk).state == "published")

    assert not InboxMessage.objects.exists()
    with plain_channel(vhost) as channel:
        for name in names:
            with pytest.raises(Exception, match="404"):
                channel.connection.channel().queue_declare(name, passive=True)


def test_a_broadcast_without_a_listener_is_published_and_forgotten(heard: Heard) -> None:
    heard.consumer("cache", Announced, broadcast=True)
    with running_relay():
        [row] = add(Announced(text="flush"))
        eventually(lambda: OutboxMessage.objects.get(pk=row.pk).state == "published")

    assert OutboxMessage.objects.get(pk=row.pk).expected_consumers == []


def test_a_broadcast_that_finds_the_database_busy_tries_again(heard: Heard) -> None:
    tries: list[str] = []

    @consumer("cache", Announced, broadcast=True)
    def busy(event: Announced, delivery: Delivery) -> None:
        tries.append(event.text)
        if len(tries) < 3:
            raise OperationalError("deadlock detected")

    with listening(consumers.get("cache")) as worker, running_relay():
        add(Announced(text="flush"))
        eventually(lambda: worker.tally.counts["handled"] == 1)

    assert tries == ["flush"] * 3


def test_a_lasting_consumer_of_the_same_event_must_still_get_it(heard: Heard) -> None:
    lasting = heard.consumer("paper", Announced)
    cache = heard.consumer("cache", Announced, broadcast=True)
    with running_relay():
        add(Announced(text="flush"))
        eventually(lambda: OutboxMessage.objects.get().state == "published")
        with listening(cache), running_worker(lasting):
            eventually(all_handled)

    assert [name for name, _ in heard.events] == ["paper"]


def test_a_broadcast_that_fails_is_dropped_and_the_next_is_handled() -> None:
    seen: list[str] = []

    @consumer("cache", Announced, broadcast=True)
    def moody(event: Announced, delivery: Delivery) -> None:
        seen.append(event.text)
        if event.text == "bad":
            raise RuntimeError("no")
        if event.text == "effect":
            delivery.effect("text_message", {})

    with listening(consumers.get("cache")) as worker, running_relay():
        for text in ("bad", "effect", "good"):
            add(Announced(text=text))
        eventually(lambda: worker.tally.counts["dropped"] == 2)
        eventually(lambda: worker.tally.counts["handled"] == 1)

    assert sorted(seen) == ["bad", "effect", "good"]


def test_after_a_lost_connection_a_broadcast_goes_on_by_a_new_queue(heard: Heard) -> None:
    cache = heard.consumer("cache", Announced, broadcast=True)
    with listening(cache) as worker, running_relay():
        before = worker.consumers[0].subscription.queue
        worker._connection.reset("a test cuts it")
        eventually(
            lambda: worker.consumers[0].subscription.consuming and worker.consumers[0].subscription.queue != before
        )
        add(Announced(text="again"))
        eventually(lambda: len(heard.events) == 1)


@pytest.mark.parametrize("declared_anew", [True, False])
def test_a_broadcast_is_not_deaf_after_its_exchange_was_deleted(heard: Heard, vhost: str, declared_anew: bool) -> None:
    cache = heard.consumer("cache", Announced, broadcast=True)
    with listening(cache):
        with plain_channel(vhost) as channel:
            channel.exchange_delete("test.announcements")
            if declared_anew:
                channel.exchange_declare("test.announcements", "fanout", durable=True)
        with running_relay():
            eventually(lambda: add(Announced(text="again")) and heard.events)


@contextmanager
def as_user(settings: Any, url: str) -> Iterator[None]:
    before = settings.MESSAGING
    settings.MESSAGING = {**before, "AMQP_URLS": [url]}
    yield
    settings.MESSAGING = before


def test_least_rights_are_enough_for_computed_keys_and_broadcasts(
    heard: Heard, broker: RabbitMQNode, vhost: str, settings: Any, tmp_path: Path
) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "APP_ID": f"w{uuid.uuid4().hex[:8]}", "RELAY_THREAD": False}
    cache = heard.consumer("cache", Seen, broadcast=True, keys=["*.orange.*"])
    lasting = heard.consumer("paper", Seen, keys=["lazy.#"])
    with accounts_at(broker, vhost, tmp_path) as accounts:
        accounts.grant()
        with as_user(settings, accounts["operator"]):
            call_command("mq", "topology", "declare", stdout=StringIO())
        with ExitStack() as running:
            with as_user(settings, accounts["consumer-cache"]):
                running.enter_context(listening(cache))
            with as_user(settings, accounts["consumer-paper"]):
                running.enter_context(running_worker(lasting))
            with as_user(settings, accounts["relay"]):
                running.enter_context(running_relay())
            add(Seen(speed="lazy", colour="orange", species="elephant"))
            eventually(all_handled)
            eventually(lambda: sorted(name for name, _ in heard.events) == ["cache", "paper"])


# --- Queues ------------------------------------------------------------------------------------------------


def test_a_queue_has_the_kind_name_and_arguments_that_its_consumer_asks_for(heard: Heard, vhost: str) -> None:
    short = heard.consumer("short", Announced, queue_type="classic", arguments={"x-max-length": 10})
    with running_relay():
        add(Announced(text="hello"))
        eventually(lambda: OutboxMessage.objects.get().state == "published")

    assert desired.queue_arguments(short)["x-queue-type"] == "classic"
    with plain_channel(vhost) as channel:
        channel.queue_declare("tests.short", durable=True, arguments=desired.queue_arguments(short))


def test_a_queue_that_the_broker_will_not_make_is_a_problem_that_says_why_once(
    heard: Heard, vhost: str, caplog: pytest.LogCaptureFixture
) -> None:
    odd = heard.consumer("odd", Announced, queue_type="quorum", arguments={"x-queue-mode": 5})
    with opened("test") as connection:
        declaration = Declaration(connection)
        for _ in range(3):
            assert "x-queue-mode" in declaration.declare(desired.topology([odd]))["tests.odd"]
    told = [record.getMessage() for record in caplog.records if "'event': 'topology." in record.getMessage()]
    assert len(told) == 1


def test_an_urgent_event_passes_the_others_in_a_queue_with_priorities(heard: Heard, vhost: str) -> None:
    ranked = heard.consumer("ranked", Announced, queue_type="classic", max_priority=10)
    with running_relay():
        for text, priority in (("low", 1), ("none", None), ("high", 9)):
            add(Announced(text=text), priority=priority)
        eventually(lambda: OutboxMessage.objects.filter(state="published").count() == 3)
    with running_worker(ranked, prefetch=1):
        eventually(all_handled)

    assert [event.text for event in heard.by("ranked") if isinstance(event, Announced)] == ["high", "low", "none"]


def test_a_message_keeps_its_priority_when_it_is_tried_replayed_or_sent_again() -> None:
    @consumer("ranked", Announced, queue="tests.ranked", queue_type="classic", max_priority=10, retry=TWICE)
    def failing(event: Announced, delivery: Delivery) -> None:
        raise RuntimeError("no")

    ranked = consumers.get("ranked")
    with running_relay(), running_worker(ranked):
        [row] = add(Announced(text="urgent"), priority=9)
        eventually(lambda: InboxMessage.objects.filter(state="dead").exists())
        manage("messages", "replay", row.message_id)  # which notices whether it fails again, if it does so soon
        eventually(lambda: InboxMessage.objects.filter(state="dead", attempts_before=2).exists())

    sent = dict(OutboxMessage.objects.values_list("origin", "priority"))
    assert sent == {"event": 9, "retry": 9, "replay": 9}
    with transaction.atomic():
        [again] = outbox.resend(row, consumer="ranked", queue=ranked.queue, origin=OutboxMessage.Origin.RECONCILE)
    assert again.priority == 9

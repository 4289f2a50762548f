"""Events on exchanges of every type, and consumers that say which of them they want."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import OperationalError, transaction

from messaging import consumers, events, outbox
from messaging.broker.connection import opened
from messaging.consumers import Consumer, consumer
from messaging.encoding import routing_key_of
from messaging.events import Event
from messaging.exceptions import UnknownConsumer
from messaging.message import Delivery
from messaging.models import InboxMessage, OutboxMessage
from messaging.reconcile.reconcile import reconcile
from messaging.retry import RetryPolicy
from messaging.routing import Exchange
from messaging.topology import desired
from messaging.topology.declare import Declaration
from messaging.worker.worker import Worker
from script.services.rabbitmq import RabbitMQNode
from tests.support.accounts import accounts_at
from tests.support.amqp import plain_channel
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


TWICE = RetryPolicy(max_attempts=2, first_delay=timedelta(milliseconds=1), max_delay=timedelta(milliseconds=2))


@pytest.fixture(autouse=True)
def impatient(settings: Any, vhost: str) -> None:
    settings.MESSAGING = {**settings.MESSAGING, **IMPATIENT}


@pytest.fixture(autouse=True)
def only_these() -> Iterator[None]:
    with events.registry.temporary(Announced, Logged, Seen, Printed), registered():
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


def all_handled() -> bool:
    rows = list(OutboxMessage.objects.all())
    assert all(row.state == "published" for row in rows), [(row.state, row.last_error) for row in rows]
    expected = sum(len(row.expected_consumers) for row in rows)
    return expected == InboxMessage.objects.filter(state="handled").count()


def test_a_fanout_exchange_brings_each_event_to_every_consumer(heard: Heard) -> None:
    both = [heard.consumer("screen", Announced), heard.consumer("paper", Announced)]
    with running_relay(), running_worker(*both):
        add(Announced(text="hello"))
        eventually(all_handled)

    assert sorted(name for name, _ in heard.events) == ["paper", "screen"]


def test_a_direct_exchange_brings_the_severities_that_a_consumer_asks_for(heard: Heard) -> None:
    everything = heard.consumer("screen", Logged, keys=["info", "warning", "error"])
    errors = heard.consumer("paper", Logged, keys=["error"])
    with running_relay(), running_worker(everything, errors):
        add(*(Logged(severity=each) for each in ("info", "warning", "error")))
        eventually(all_handled)

    assert heard.by("paper") == [Logged(severity="error")]
    assert len(heard.by("screen")) == 3
    rows = OutboxMessage.objects.order_by("pk").values_list("routing_key", "expected_consumers")
    assert list(rows) == [("info", ["screen"]), ("warning", ["screen"]), ("error", ["paper", "screen"])]


def test_a_topic_exchange_brings_what_the_patterns_take_and_a_double_match_once(heard: Heard) -> None:
    first = heard.consumer("orange", Seen, keys=["*.orange.*"])
    second = heard.consumer("rabbits", Seen, keys=["*.*.rabbit", "lazy.#"])
    seen = {
        key: Seen(speed=key.split(".")[0], colour=key.split(".")[1], species=key.split(".")[2])
        for key in ("quick.orange.rabbit", "lazy.orange.elephant", "quick.orange.fox", "lazy.pink.rabbit")
    }
    with running_relay(), running_worker(first, second):
        add(*seen.values())
        eventually(all_handled)

    assert {routing_key_of(event) for event in heard.by("orange")} == set(seen) - {"lazy.pink.rabbit"}
    assert sorted(map(routing_key_of, heard.by("rabbits"))) == sorted(set(seen) - {"quick.orange.fox"})


def test_without_keys_a_consumer_gets_every_key_of_its_event(heard: Heard) -> None:
    with running_relay(), running_worker(heard.consumer("all", Seen)):
        add(Seen(speed="very.quick", colour="", species="fox"), Seen(speed="slow", colour="brown", species="bear"))
        eventually(all_handled)

    assert len(heard.by("all")) == 2


def test_what_was_added_by_a_former_key_is_for_whoever_wants_all_of_its_event(heard: Heard) -> None:
    everything, some = heard.consumer("all", Seen), heard.consumer("some", Seen, keys=["*.orange.*"])
    assert everything.receives("test.seen", "test.animals", "seen", {})
    assert not some.receives("test.seen", "test.animals", "seen", {})


def test_a_key_may_format_its_fields_and_escape_a_brace(heard: Heard) -> None:
    class Weighed(Event, type="test.weighed", exchange=Exchange("test.animals"), key="{{w}}.{kilos:.2f}.{colour}"):
        kilos: float
        colour: str | None = None

    with running_relay(), running_worker(heard.consumer("scales", Weighed)):
        [row] = add(Weighed(kilos=1.5))
        eventually(all_handled)

    assert row.routing_key == "{w}.1.50."
    assert heard.by("scales") == [Weighed(kilos=1.5)]


def test_a_headers_exchange_routes_by_floats_too(heard: Heard) -> None:
    class Measured(Event, type="test.measured", exchange=Exchange("test.papers", "headers"), headers=["ratio"]):
        ratio: float

    wide = heard.consumer("wide", Measured, headers={"ratio": 1.5})
    with running_relay(), running_worker(wide, heard.consumer("any", Measured)):
        add(Measured(ratio=1.5), Measured(ratio=0.5))
        eventually(all_handled)

    assert heard.by("wide") == [Measured(ratio=1.5)]
    assert len(heard.by("any")) == 2
    with transaction.atomic(), pytest.raises(ValueError, match="no number"):
        outbox.add(Measured(ratio=float("inf")))


def test_a_headers_exchange_brings_what_the_headers_say_all_or_any(heard: Heard) -> None:
    both = heard.consumer("both", Printed, headers={"x-match": "all", "format": "pdf", "copies": 2})
    either = heard.consumer("either", Printed, headers={"x-match": "any", "format": "pdf", "copies": 2})
    with running_relay(), running_worker(both, either):
        add(Printed(format="pdf", copies=2), Printed(format="pdf"), Printed(format="zip", copies=2))
        eventually(all_handled)

    assert heard.by("both") == [Printed(format="pdf", copies=2)]
    assert len(heard.by("either")) == 3


def test_an_event_whose_key_nobody_wants_is_unroutable_and_is_told_so(heard: Heard) -> None:
    heard.consumer("errors", Logged, keys=["error"])
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


def test_a_broadcast_that_nobody_listens_to_is_published_and_forgotten(heard: Heard) -> None:
    heard.consumer("cache", Announced, broadcast=True)
    with running_relay():
        [row] = add(Announced(text="flush"))
        eventually(lambda: OutboxMessage.objects.get(pk=row.pk).state == "published")

    assert OutboxMessage.objects.get(pk=row.pk).expected_consumers == []


def test_what_no_broadcast_would_take_is_unroutable(heard: Heard) -> None:
    heard.consumer("cache", Logged, broadcast=True, keys=["error"])
    with running_relay():
        [row] = add(Logged(severity="debug"))
        eventually(lambda: OutboxMessage.objects.get(pk=row.pk).state == "unroutable")


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


def test_reconcile_does_not_look_for_broadcasts(heard: Heard) -> None:
    heard.consumer("cache", Announced, broadcast=True)
    with pytest.raises(UnknownConsumer, match="broadcast"):
        reconcile(repair=False, by="a test", names=["cache"])


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
        call_command("messages", "replay", row.message_id, stdout=StringIO())
        eventually(lambda: InboxMessage.objects.filter(state="dead", attempts_before=2).exists())

    sent = dict(OutboxMessage.objects.values_list("origin", "priority"))
    assert sent == {"event": 9, "retry": 9, "replay": 9}
    with transaction.atomic():
        [again] = outbox.resend(row, consumer="ranked", queue=ranked.queue, origin=OutboxMessage.Origin.RECONCILE)
    assert again.priority == 9


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"max_priority": 10}, "classic"),
        ({"max_priority": 0, "queue_type": "classic"}, "max_priority"),
        ({"broadcast": True, "queue_type": "classic"}, "broadcast"),
        ({"broadcast": True, "batch": 2}, "broadcast"),
        ({"keys": ["error"]}, "fanout"),
        ({"keys": "error"}, "list"),
        ({"headers": {"format": "pdf"}}, "headers exchange"),
        ({"arguments": {"x-queue-type": "classic"}}, "queue_type"),
        ({"arguments": {"x-max-priority": 3}}, "max_priority"),
        ({"arguments": {"x-expires": 1000}}, "no process consumes"),
        ({"arguments": {"x-max-length": {1, 2}}}, "x-max-length"),
        ({"arguments": {"x-max-length": 2**63}}, "64 bits"),
        ({"queue_type": "Classic"}, "quorum or classic"),
    ],
)
def test_what_does_not_go_together_is_refused_when_it_is_declared(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=why):
        consumer("odd", Announced, **options)(lambda event, delivery: None)


@pytest.mark.parametrize("headers", [{"format": ("pdf",)}, {5: "pdf"}, {"x" * 256: None}])
def test_headers_that_amqp_cannot_hold_are_refused_for_no_relay_could_bind_by_them(headers: dict[Any, Any]) -> None:
    with pytest.raises(ImproperlyConfigured, match="headers hold"):
        consumer("odd", Printed, headers=headers)(lambda event, delivery: None)


def test_a_direct_exchange_needs_to_be_told_which_keys() -> None:
    with pytest.raises(ImproperlyConfigured, match="letter by letter"):
        consumer("odd", Logged)(lambda event, delivery: None)


@pytest.mark.parametrize(
    ("keywords", "why"),
    [
        ({"key": "{nothing}"}, "nothing"),
        ({"key": "{"}, "cannot be read"),
        ({"key": "{text:{width}}"}, "braces inside"),
        ({"headers": ["nothing"]}, "nothing"),
        ({"exchange": Exchange("test.announcements", "topic")}, "fanout to"),
        ({"exchange": "x" * 300}, "255"),
    ],
)
def test_an_event_that_cannot_be_published_is_refused_when_it_is_declared(keywords: dict[str, Any], why: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=why):
        type(
            "Odd",
            (Event,),
            {"__module__": __name__, "__annotations__": {"text": str}},
            **{"type": "test.odd", **keywords},
        )
    assert "test.odd" not in [event.event_type for event in events.registered()]


def test_a_key_or_a_priority_that_amqp_has_no_room_for_is_refused_where_the_event_is_added() -> None:
    with transaction.atomic():
        with pytest.raises(ValueError, match="routing key has 256 bytes"):
            outbox.add(Logged(severity="x" * 256))
        with pytest.raises(ValueError, match="priority"):
            outbox.add(Announced(text="x"), priority=256)

"""Exchanges, keys, headers and queues as events and consumers declare them: what cannot be is refused."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction

from messaging import events, outbox
from messaging.consumers import consumer
from messaging.events import Event
from messaging.exceptions import UnknownConsumer
from messaging.reconcile.reconcile import reconcile
from messaging.routing import Exchange
from tests.support.consuming import a_consumer, registered, take_note

with events.registry.temporary():

    class Announced(Event, type="test.announced", exchange=Exchange("test.announcements", "fanout")):
        text: str

    class Logged(Event, type="test.logged", exchange=Exchange("test.direct_logs", "direct"), key="{severity}"):
        severity: str

    class Seen(Event, type="test.seen", exchange=Exchange("test.animals"), key="{speed}.{colour}.{species}"):
        speed: str
        colour: str
        species: str

    class Measured(Event, type="test.measured", exchange=Exchange("test.papers", "headers"), headers=["ratio"]):
        ratio: float

    class Weighed(Event, type="test.weighed", key="{grams:d}"):
        grams: Decimal


@pytest.fixture(autouse=True)
def only_these() -> Iterator[None]:
    with events.registry.temporary(Announced, Logged, Seen, Measured, Weighed), registered():
        yield


def test_a_message_of_a_former_key_is_for_consumers_that_want_all_of_its_event() -> None:
    everything, some = a_consumer(events=(Seen,)), a_consumer(events=(Seen,), keys=("*.orange.*",))
    assert everything.receives("test.seen", "test.animals", "seen", {})
    assert not some.receives("test.seen", "test.animals", "seen", {})


def test_reconcile_does_not_look_for_broadcasts() -> None:
    consumer("cache", Announced, broadcast=True)(take_note)
    with pytest.raises(UnknownConsumer, match="broadcast"):
        reconcile(repair=False, by="a test", names=["cache"])


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
        # No relay could declare the queue, nor publish anything.
        ({"arguments": {"x-odd": float("inf")}}, "arguments hold texts"),
        ({"arguments": {"x-odd": "\ud800"}}, "arguments hold texts"),
        ({"arguments": {"x-max-length": {1, 2}}}, "x-max-length"),
        ({"arguments": {"x-max-length": 2**63}}, "64 bits"),
        ({"queue_type": "Classic"}, "quorum or classic"),
        ({"max_priority": 2.5, "queue_type": "classic"}, "max_priority is a whole number from 1 to 255"),
        ({"batch": 65_536}, "batch is a whole number from 1 to 65535"),
        ({"batch": "5"}, "batch is a whole number"),
        ({"whole_batch": True}, "how many deliveries"),
        ({"fenced": "no"}, "fenced is True or False, not 'no'"),
        ({"broadcast": 0}, "broadcast is True or False"),
        ({"whole_batch": "false", "batch": 5}, "whole_batch is True or False"),
        ({"prefetch": 65_536}, "prefetch is a whole number"),
        ({"prefetch": -1}, "prefetch is a whole number"),
        ({"queue": "amq.orders"}, "keeps names"),
    ],
)
def test_what_does_not_go_together_is_refused_when_it_is_declared(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=why):
        consumer("odd", Announced, **options)(take_note)


def test_the_handler_of_a_whole_batch_is_a_function_of_two_lists_that_runs() -> None:
    def stream(events: Any, deliveries: Any) -> Iterator[None]:
        yield

    for handler, why in ((lambda events: None, r"events, deliveries"), (stream, "generator")):
        with pytest.raises(ImproperlyConfigured, match=why):
            consumer("odd", Announced, batch=5, whole_batch=True)(handler)  # type: ignore[type-var]


@pytest.mark.parametrize("headers", [{"format": ("pdf",)}, {5: "pdf"}, {"x" * 256: None}])
def test_headers_that_amqp_cannot_hold_are_refused_for_no_relay_could_bind_by_them(headers: dict[Any, Any]) -> None:
    with pytest.raises(ImproperlyConfigured, match="headers hold"):
        consumer("odd", Measured, headers=headers)(take_note)


def test_a_direct_exchange_needs_to_be_told_which_keys() -> None:
    with pytest.raises(ImproperlyConfigured, match="letter by letter"):
        consumer("odd", Logged)(take_note)


@pytest.mark.parametrize(
    ("keywords", "why"),
    [
        ({"key": "{nothing}"}, "nothing"),
        ({"key": "{"}, "cannot be read"),
        ({"key": "{text:{width}}"}, "braces inside"),
        ({"headers": ["nothing"]}, "nothing"),
        ({"exchange": Exchange("test.announcements", "topic")}, "fanout to"),
        ({"exchange": "x" * 300}, "255"),
        ({"exchange": "amq.events"}, "RabbitMQ keeps names"),
        ({"exchange": "amq.fanout"}, "RabbitMQ keeps names"),  # a topic exchange is meant
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


@pytest.mark.django_db
def test_a_key_a_header_or_a_priority_that_amqp_has_no_room_for_is_refused_where_the_event_is_added() -> None:
    with transaction.atomic():
        with pytest.raises(ValueError, match="routing key has 256 bytes"):
            outbox.add(Logged(severity="x" * 256))
        with pytest.raises(ValueError, match="no number"):
            outbox.add(Measured(ratio=float("inf")))
        with pytest.raises(ValueError, match="more than 64 bits"):  # PostgreSQL would return a whole number
            outbox.add(Measured(ratio=1e22))
        with pytest.raises(ValueError, match=r"test.weighed: its key '\{grams:d\}' cannot be made of its fields"):
            outbox.add(Weighed(grams=Decimal(5)))
        with pytest.raises(ValueError, match="priority"):
            outbox.add(Announced(text="x"), priority=256)

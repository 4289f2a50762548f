"""Declaring consumers: what is refused, and what is made of it."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from messaging import conf, consumers
from messaging.consumers import consumer
from messaging.events import Event
from messaging.message import Delivery
from messaging.routing import Binding, Exchange
from messaging.topology import desired
from tests.support.consuming import Noted, a_consumer, registered


@pytest.fixture(autouse=True)
def no_other_consumers() -> Iterator[None]:
    with registered():
        yield


def handler(module: str = "orders.consumers", name: str = "notes") -> Callable[..., None]:
    def handle(event: Noted, delivery: Delivery) -> None:
        pass

    handle.__module__, handle.__qualname__ = module, name
    return handle


def test_a_consumer_has_a_queue_named_after_its_app_and_itself() -> None:
    consumer("notes", Noted)(handler())
    declared = consumers.get("notes")
    assert declared.queue == "orders.notes"
    assert declared.bindings == [Binding(conf.get().exchange, "orders.notes", "test.noted")]
    assert declared.wants("test.noted")
    assert not declared.wants("test.erased")


def test_outside_any_app_the_module_gives_the_name() -> None:
    consumer("notes", Noted)(handler("elsewhere.listening"))
    assert consumers.get("notes").queue == "elsewhere.notes"


class Parted(Event, type="test.parted", exchange=Exchange("test.parts"), key="{a}.{b}.x.{c}"):
    """Its key has fields side by side."""

    a: str
    b: str
    c: str


class Scattered(Parted, type="test.scattered", exchange=Exchange("test.parts"), key="{a}.x.{b}.y.{c}"):
    """Its key has more of them than RabbitMQ 4.3 takes wildcards."""


def test_adjacent_fields_become_one_wildcard_because_a_broker_takes_two_at_most() -> None:
    consumer("parts", Parted)(handler())
    assert [each.key for each in consumers.get("parts").bindings] == ["#.x.#"]


@pytest.mark.parametrize("wishes", [{}, {"keys": ["a.#", "#.a.#.b.#"]}])
def test_more_wildcards_than_a_broker_takes_are_refused_at_the_declaration(wishes: dict[str, Any]) -> None:
    with pytest.raises(ImproperlyConfigured, match="at most 2 '#'"):
        consumer("parts", Scattered, **wishes)(handler())
    consumer("parts", Scattered, keys=["#.y.*", "#.x.#"])(handler())


@pytest.mark.parametrize(
    ("name", "events", "options", "message"),
    [
        *((name, [Noted], {}, "name") for name in ("", "Notes", "1notes", "no tes", "notes\n", "no.tes", "ünd")),
        ("notes", [Noted], {"batch": 0}, "batch"),
        ("notes", [], {}, "no events"),
        ("notes", [Noted], {"queue": "ü" * 128}, "255 bytes"),
    ],
)
def test_a_declaration_that_makes_no_sense_is_refused(
    name: str, events: list[Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ImproperlyConfigured, match=message):
        consumer(name, *events, **options)(handler())


def test_two_consumers_may_not_share_a_queue() -> None:
    consumer("notes", Noted, queue="shared")(handler())
    with pytest.raises(ImproperlyConfigured, match="shared"):
        consumer("copies", Noted, queue="shared")(handler(name="copies"))


def test_every_quorum_queue_has_an_explicit_positive_delivery_limit() -> None:
    wanted = desired.topology([a_consumer()])
    for queue in wanted.queues:
        assert queue.arguments["x-queue-type"] == "quorum"
        assert queue.arguments["x-delivery-limit"] > 0


def test_the_dead_letter_queue_never_reaches_its_delivery_limit() -> None:
    # It has nowhere to pass it on to: at its limit the broker would drop the message.
    dead_letters, ordinary = desired.topology([a_consumer()]).queues
    assert dead_letters.name == desired.dead_letter_queue()
    assert dead_letters.arguments["x-delivery-limit"] > 1_000_000 > ordinary.arguments["x-delivery-limit"]


def test_classic_queues_are_declared_without_arguments_of_quorum_queues(settings: Any) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "QUEUE_TYPE": "classic"}
    for queue in desired.topology([a_consumer()]).queues:
        assert queue.arguments["x-queue-type"] == "classic"
        assert "x-delivery-limit" not in queue.arguments

"""`manage.py check --tag messaging` reports what starts well and does harm later."""

from typing import Any

import pytest
from django.core.checks import CheckMessage, run_checks
from django.db import connection

from messaging import events
from messaging.checks import broker
from messaging.consumers import consumer
from messaging.events import Event
from messaging.routing import Exchange
from messaging.topology import desired
from tests.support.consuming import Noted, a_consumer, registered


def found(*, deploy: bool = False) -> set[str | None]:
    return {message.id for message in messages(deploy=deploy)}


def messages(*, deploy: bool = False) -> list[CheckMessage]:
    """What is found, without the findings that tests/integration/test_drift.py tests: events of the shop that no
    consumer handles in a test, and a broker that is unreachable."""
    found = run_checks(tags=["messaging"], include_deployment_checks=deploy)
    return [message for message in found if message.id not in {"messaging.W006", "messaging.W016"}]


def with_messaging(settings: Any, **changes: Any) -> None:
    settings.MESSAGING = {**settings.MESSAGING, **changes}


@pytest.fixture(autouse=True)
def forget_new_events(isolated: Any) -> None:
    isolated(events, keep=True)


@pytest.mark.django_db
def test_the_project_itself_passes_every_check() -> None:
    assert not found()


# --- Declarations ------------------------------------------------------------------------------------------


def is_reported(id: str, *words: str) -> bool:
    """Whether there is one such error with all of these words. Events of other tests may cause more."""
    return len([each for each in messages() if each.id == id and all(word in each.msg for word in words)]) == 1


@pytest.mark.parametrize("taken", [{"name": "dead_letters"}, {"queue": desired.dead_letter_queue()}], ids=list)
def test_a_consumer_may_not_replace_the_built_in_one(taken: dict[str, str]) -> None:
    with registered(a_consumer(**taken), a_consumer(name="others")):
        assert found() == {"messaging.E001"}
        assert is_reported("messaging.E001", repr(taken.get("name", "notes")))


def test_a_consumer_of_the_logs_would_receive_its_own_lines(settings: Any) -> None:
    class Line(Event, type="test.line", exchange="warren.logs"):
        pass

    for broadcast in (False, True):
        with registered():
            consumer("lines", Line, broadcast=broadcast)(lambda event, delivery: None)
            with_messaging(settings, LOG_TO_BROKER=False)
            assert not is_reported("messaging.E004")
            with_messaging(settings, LOG_TO_BROKER=True)
            assert is_reported("messaging.E004")


def test_a_consumer_of_an_event_without_a_type_would_wait_for_ever() -> None:
    class Untyped(Event):
        pass

    with registered():
        consumer("waiting", Noted, Untyped)(lambda event, delivery: None)
        assert is_reported("messaging.E002", "'waiting'", "Untyped")


def test_an_event_with_a_field_of_an_unknown_type_is_reported() -> None:
    class Unresolved(Event, type="test.unresolved"):
        missing: "NeverImported"  # type: ignore[name-defined]  # noqa: F821

    assert is_reported("messaging.E006", "NeverImported")


def test_a_pattern_that_matches_more_than_the_consumer_handles_is_reported() -> None:
    with registered():
        consumer("notes", Noted, keys=["test.*"])(lambda event, delivery: None)
        assert is_reported("messaging.E003", "'test.*'", "Erased")


@pytest.mark.parametrize("exchange", [Exchange("test.all", "fanout"), Exchange("test.all", "headers")])
def test_a_consumer_bound_to_a_whole_exchange_also_receives_other_events(exchange: Exchange) -> None:
    class Mine(Event, type="test.mine", exchange=exchange):
        pass

    class Theirs(Event, type="test.theirs", exchange=exchange):
        pass

    with registered():
        consumer("mine", Mine)(lambda event, delivery: None)
        assert is_reported("messaging.E003", "Theirs", "everything")


@pytest.mark.parametrize("name", ["orders.events", "warren.logs"])
def test_no_event_may_declare_the_projects_own_exchanges_as_another_type(name: str) -> None:
    class Odd(Event, type="test.odd", exchange=Exchange(name, "fanout")):
        pass

    with registered():
        assert is_reported("messaging.E005", "Odd", name)


# --- SQLite ------------------------------------------------------------------------------------------------


@pytest.mark.only_on("sqlite")
@pytest.mark.django_db
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"messaging.W001", "messaging.W002"}),
        ({"transaction_mode": "exclusive"}, {"messaging.W002"}),
        ({"init_command": "pragma journal_mode = 'wal'", "transaction_mode": "deferred"}, {"messaging.W001"}),
        ({"init_command": "PRAGMA journal_mode=DELETE;", "transaction_mode": "IMMEDIATE"}, {"messaging.W002"}),
        ({"init_command": "PRAGMA JOURNAL_MODE=wal", "transaction_mode": "immediate"}, set()),
    ],
)
def test_options_of_sqlite_that_block_other_processes_are_reported(
    options: dict[str, str], expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connection.settings_dict, "OPTIONS", options)

    assert found() == expected


# --- Delivery limit ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "queue_type", "expected"),
    [(9, "quorum", {"messaging.W003"}), (10, "quorum", set()), (1, "classic", set())],
)
def test_a_low_delivery_limit_is_reported(settings: Any, limit: int, queue_type: str, expected: set[str]) -> None:
    with_messaging(settings, DELIVERY_LIMIT=limit, QUEUE_TYPE=queue_type)

    assert found() == expected


# --- The broker's account ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("amqps://mq.example", ["messaging.W004", "messaging.W005"]),
        ("amqps://gu%65st:x@mq.example/shop", ["messaging.W004"]),
        ("amqps://shop:secret@mq.example/%2f", ["messaging.W005"]),
        ("amqps://shop:secret@mq.example/shop", []),
    ],
)
def test_the_default_account_and_vhost_are_reported_in_production(settings: Any, url: str, expected: list[str]) -> None:
    with_messaging(settings, AMQP_URLS=["amqps://shop:secret@first.example/shop", url])

    reported = broker.check_broker_account()
    assert [message.id for message in reported] == expected
    assert "secret" not in str(reported)
    settings.DEBUG = True
    assert not broker.check_broker_account()


# --- All ---------------------------------------------------------------------------------------------------


def test_each_finding_has_a_hint_and_can_be_silenced(settings: Any) -> None:
    with_messaging(settings, DELIVERY_LIMIT=1, AMQP_URLS=["amqp://mq.example"])
    everything = messages(deploy=True)
    settings.SILENCED_SYSTEM_CHECKS = ["messaging.W003", "messaging.W004", "messaging.W005"]

    assert len(everything) == 3
    assert all(message.hint and message.is_silenced() for message in everything)

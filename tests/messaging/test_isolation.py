"""The isolation level is the project's: handlers have it, and what `messaging` does itself does not fail over it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.db import connection, connections
from psycopg import IsolationLevel

from messaging import database
from messaging.message import Delivery
from messaging.models import DeliveryAttempt, OutboxMessage
from messaging.relay import leases
from messaging.worker import handling
from tests.support.consuming import Noted, a_consumer, a_delivery, a_message, notes

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.only_on("postgresql")]
SEVERAL = 4


@pytest.fixture(
    params=[
        {"isolation_level": IsolationLevel.REPEATABLE_READ},
        {"isolation_level": IsolationLevel.SERIALIZABLE},
        {"options": "-c default_transaction_isolation=serializable"},
        {"server_side_binding": True},
    ],
    ids=["repeatable read", "serializable", "serializable by the server", "server-side binding"],
)
def options(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """As with these OPTIONS of the database."""
    connection.close()
    for name, value in request.param.items():
        monkeypatch.setitem(connection.settings_dict["OPTIONS"], name, value)
    yield request.param
    connection.close()


#: The other laws are shown with the strictest options.
STRICTEST = pytest.mark.parametrize(
    "options", [{"options": "-c default_transaction_isolation=serializable"}], indirect=True, ids=["serializable"]
)


def level() -> str:
    with connection.cursor() as cursor:
        cursor.execute("SHOW transaction_isolation")
        return cursor.fetchone()[0]


def at_once(function: Any, *arguments: Any) -> list[Any]:
    """What `function` returns for each argument, each on a thread of its own."""

    def run(argument: Any) -> Any:
        try:
            return function(argument)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(len(arguments)) as pool:
        return list(pool.map(run, arguments))


def test_our_own_transactions_are_read_committed_and_a_handlers_are_the_projects(options: dict[str, Any]) -> None:
    seen: list[str] = []
    consumer = a_consumer(lambda event, delivery: seen.append(level()))
    for _ in range(2):  # on a fresh connection, and on one that was asked before
        with database.atomic():
            seen.append(level())
        assert handling.handle(consumer, a_delivery()) == "handled"
        assert handling.handle_together(consumer, [a_delivery()]) == ["handled"]
    stricter = {IsolationLevel.REPEATABLE_READ: "repeatable read"}.get(options.get("isolation_level"), "serializable")  # type: ignore[call-overload]
    theirs = "read committed" if "server_side_binding" in options else stricter
    assert seen == ["read committed", theirs, theirs] * 2


@STRICTEST
def test_simultaneous_copies_of_a_message_are_handled_once(options: dict[str, Any]) -> None:
    gate = Barrier(SEVERAL)
    message = a_message()

    def deliver(_: int) -> Any:
        gate.wait(30)
        return handling.handle(a_consumer(), a_delivery(message))

    verdicts = at_once(deliver, *range(SEVERAL))
    assert sorted(verdicts) == ["duplicate"] * (SEVERAL - 1) + ["handled"]
    assert notes("hello") == 1


@STRICTEST
def test_conflicting_handlers_run_again_and_none_is_counted_as_failed(options: dict[str, Any]) -> None:
    counter = Group.objects.create(name="0")

    def count(event: Noted, delivery: Delivery) -> None:
        row = Group.objects.select_for_update().get(pk=counter.pk)
        row.name = str(int(row.name) + 1)
        row.save()

    gate = Barrier(SEVERAL)

    def deliver(_: int) -> Any:
        gate.wait(30)
        return [handling.handle(a_consumer(count), a_delivery()) for _ in range(3)]

    assert at_once(deliver, *range(SEVERAL)) == [["handled"] * 3] * SEVERAL
    counter.refresh_from_db()
    assert counter.name == str(3 * SEVERAL)
    assert not DeliveryAttempt.objects.exists()


@STRICTEST
def test_relays_that_claim_at_once_share_the_rows(options: dict[str, Any]) -> None:
    for number in range(40):
        OutboxMessage.objects.create(message_id=f"m-{number}", type="t", routing_key="t", body=b"{}")
    gate = Barrier(SEVERAL)

    def claim(_: int) -> list[int]:
        gate.wait(30)
        return [row.pk for _ in range(8) for row in leases.claim(5, 60)]

    claimed = [pk for each in at_once(claim, *range(SEVERAL)) for pk in each]
    assert len(claimed) == len(set(claimed)) == 40

"""Which queues a row must reach, and what a confirm means for them."""

from typing import Any

import pytest

from messaging.broker.publisher import Outcome, Status
from messaging.consumers import Consumer
from messaging.events import Event
from messaging.models import OutboxMessage
from messaging.relay import destinations
from messaging.relay.destinations import expected_queues, route, true_outcome
from messaging.routing import Exchange
from tests.support.consuming import Erased, a_consumer, registered


class Shelved(Event, type="test.shelved", exchange=Exchange("test.shelves", "direct"), key="{unit}"):
    unit: str


class Stamped(Event, type="test.stamped", exchange=Exchange("test.stamps", "headers"), headers=["format"]):
    format: str


def a_row(**columns: Any) -> OutboxMessage:
    return OutboxMessage(type="test.noted", exchange="orders.events", routing_key="test.noted", **columns)


@pytest.mark.parametrize(
    ("type", "how", "queues"),
    [
        ("test.shelved", {"exchange": "test.shelves", "routing_key": "kg"}, {"heavy": "tests.heavy"}),
        ("test.shelved", {"exchange": "test.shelves", "routing_key": "g"}, {}),
        # The event's exchange was another one then.
        ("test.shelved", {"exchange": "test.former", "routing_key": "g"}, {"heavy": "tests.heavy"}),
        ("test.stamped", {"exchange": "test.stamps", "headers": {"format": "pdf"}}, {"readers": "tests.readers"}),
        ("test.stamped", {"exchange": "test.stamps", "headers": {"format": "txt"}}, {}),
    ],
)
def test_a_row_must_reach_the_queues_that_ask_for_its_key_or_headers(
    type: str, how: dict[str, Any], queues: dict[str, str]
) -> None:
    row = OutboxMessage(type=type, **how)
    heavy = a_consumer(name="heavy", events=(Shelved,), keys=["kg"])
    readers = a_consumer(name="readers", events=(Stamped,), headers={"format": "pdf"})
    with registered(heavy, readers):
        assert expected_queues(row) == queues
        assert route(row)[1] == (frozenset(queues.values()) or row.exchange)


def test_rows_that_differ_in_their_headers_alone_may_have_to_reach_different_queues(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(destinations, "_latest", None)  # as in a process that begins
    readers = a_consumer(name="readers", events=(Stamped,), headers={"format": "pdf"})
    with registered(readers):
        for format, queues in (
            ("pdf", {"readers": "tests.readers"}),
            ("txt", {}),
            ("pdf", {"readers": "tests.readers"}),
        ):
            row = OutboxMessage(type="test.stamped", exchange="test.stamps", headers={"format": format})
            assert expected_queues(row) == queues


LASTING, BROADCAST = a_consumer(), a_consumer(name="cache", broadcast=True)
OTHER_BROADCAST = a_consumer(name="erasures", events=(Erased,), broadcast=True)
MISSING = {"tests.notes": "the queue is missing"}


@pytest.mark.parametrize(
    ("answer", "problems", "consumers", "status"),
    [
        (Status.CONFIRMED, {}, [LASTING], Status.CONFIRMED),
        (Status.CONFIRMED, MISSING, [LASTING], Status.RETURNED),
        (Status.CONFIRMED, {"tests.other": "the queue is missing"}, [LASTING], Status.CONFIRMED),
        (Status.NACKED, MISSING, [LASTING], Status.NACKED),
        (Status.RETURNED, {}, [LASTING, BROADCAST], Status.RETURNED),
        (Status.RETURNED, {}, [OTHER_BROADCAST], Status.RETURNED),
        # None of its processes runs, which is no loss.
        (Status.RETURNED, {}, [BROADCAST], Status.CONFIRMED),
        (Status.NACKED, {}, [BROADCAST], Status.NACKED),
    ],
)
def test_an_event_is_published_once_every_lasting_queue_has_it(
    answer: Status, problems: dict[str, str], consumers: list[Consumer], status: Status
) -> None:
    with registered(*consumers):
        row = a_row()
        outcome = true_outcome(row, Outcome(answer), expected_queues(row), problems)
    assert outcome.status is status
    assert ("notes: the queue is missing" in outcome.reason) is (answer is not status is Status.RETURNED)


def test_a_retry_to_one_queue_is_published_although_the_event_would_not_reach_it() -> None:
    with registered(LASTING):
        row = a_row(consumer="notes")
        outcome = true_outcome(row, Outcome(Status.CONFIRMED), expected_queues(row), MISSING)
    assert outcome.status is Status.CONFIRMED

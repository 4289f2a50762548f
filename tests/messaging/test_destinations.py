"""Which queues a row must reach, and what a relay remembers of destinations that confirm nothing."""

from typing import Any

import pytest

from messaging.broker.publisher import Outcome, Status
from messaging.consumers import Consumer
from messaging.events import Event
from messaging.models import OutboxMessage
from messaging.relay.destinations import MEMORY, PAUSE, Destinations, destination, expected_queues, true_outcome
from messaging.relay.leases import Held
from messaging.routing import Exchange
from tests.support.consuming import Erased, a_consumer, registered

NOTES, OTHERS, WELL = frozenset({"tests.notes"}), frozenset({"tests.others"}), frozenset({"tests.well"})


class Shelved(Event, type="test.shelved", exchange=Exchange("test.shelves", "direct"), key="{unit}"):
    unit: str


class Stamped(Event, type="test.stamped", exchange=Exchange("test.stamps", "headers"), headers=["format"]):
    format: str


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def known(clock: Clock) -> Destinations:
    return Destinations(clock)


def held(type: str = "test.noted", **columns: Any) -> Held:
    return Held(OutboxMessage(type=type, exchange="orders.events", routing_key=type, **columns), 1e9)


def test_a_destination_in_doubt_is_published_alone_at_once(known: Destinations) -> None:
    known.doubt(NOTES)
    assert (known.in_doubt(NOTES), known.unresponsive(NOTES), known.rest(NOTES)) == (True, False, 0)
    assert not known.in_doubt(OTHERS)


def test_an_unresponsive_destination_rests_until_the_next_trial(known: Destinations, clock: Clock) -> None:
    known.failed_alone(NOTES)
    assert (known.unresponsive(NOTES), known.rest(NOTES)) == (True, PAUSE)
    assert (known.unresponsive(WELL), known.rest(WELL)) == (False, 0)
    clock.now += PAUSE
    assert (known.unresponsive(NOTES), known.rest(NOTES)) == (True, 0)


def test_one_unresponsive_destination_is_tried_in_each_pause(known: Destinations, clock: Clock) -> None:
    known.failed_alone(NOTES)
    clock.now += PAUSE
    known.failed_alone(OTHERS)
    assert known.rest(NOTES) == known.rest(OTHERS) == PAUSE


def test_once_an_unresponsive_destination_answers_the_others_are_tried_at_once(known: Destinations) -> None:
    known.failed_alone(NOTES)
    known.failed_alone(OTHERS)
    known.answered(NOTES)
    assert not known.in_doubt(NOTES)
    assert (known.unresponsive(OTHERS), known.rest(OTHERS)) == (True, 0)


def test_the_answer_of_a_destination_in_doubt_ends_no_rest_of_others(known: Destinations) -> None:
    known.failed_alone(NOTES)
    known.doubt(WELL)
    known.answered(WELL)
    assert not known.in_doubt(WELL)
    assert known.rest(NOTES) == PAUSE


def test_destinations_that_answered_are_tried_first_and_unresponsive_ones_last(known: Destinations) -> None:
    known.answered(WELL)
    known.doubt(WELL)
    known.failed_alone(NOTES)
    new = [("orders.events", f"order.{number}") for number in range(20)]
    orders = [[where for where, _ in known.in_order([(each, []) for each in (NOTES, *new, WELL)])] for _ in range(5)]
    assert all(order[0] == WELL and order[-1] == NOTES and set(order[1:-1]) == set(new) for order in orders)
    assert len({tuple(order) for order in orders}) > 1, "the others by chance"


def test_a_destination_without_news_is_forgotten(known: Destinations, clock: Clock) -> None:
    """Routing keys may contain ids, and never occur again."""
    known.failed_alone(NOTES)
    clock.now += 0.9 * MEMORY
    known.doubt(OTHERS)
    known.plan([])
    assert known.in_doubt(NOTES)
    clock.now += 0.2 * MEMORY
    known.plan([])
    assert (known.in_doubt(NOTES), known.in_doubt(OTHERS)) == (False, True)
    clock.now += MEMORY
    known.plan([])
    assert not known.in_doubt(OTHERS)


def test_the_next_trial_of_an_unresponsive_destination_is_a_single_message(known: Destinations, clock: Clock) -> None:
    rows = [held(), held(), held()]
    with registered(a_consumer()):
        assert known.plan(rows).together == rows
        known.failed_alone(NOTES)
        plan = known.plan(rows)
        assert (plan.together, plan.alone, plan.resting, plan.rest) == ([], [], [each.row for each in rows], PAUSE)
        clock.now += PAUSE
        assert known.plan(rows).alone == [(NOTES, rows[:1]), (NOTES, rows[1:])]


def test_only_rows_for_a_destination_in_doubt_or_twice_without_an_answer_are_published_alone(
    known: Destinations,
) -> None:
    once, unroutable = held(publish_attempts=1), held(publish_attempts=9, state="unroutable")
    twice, often = held(publish_attempts=2), held(publish_attempts=9)
    other, erased = held("test.other", publish_attempts=2), held("test.erased")
    with registered(a_consumer()):
        known.doubt(("orders.events", "test.erased"))
        plan = known.plan([once, twice, erased, other, unroutable, often])
    assert plan.together == [once, unroutable]
    assert dict(plan.alone) == {
        NOTES: [twice, often],
        ("orders.events", "test.other"): [other],
        ("orders.events", "test.erased"): [erased],
    }


def test_answers_decide_what_is_known_of_a_destination(known: Destinations) -> None:
    def learned(*statuses: Status, alone: Any = None, late: bool = True) -> tuple[bool, bool, bool]:
        outcomes = [Outcome(status, late=late and status is Status.UNKNOWN) for status in statuses]
        all_answered = known.learn([held(), held("test.erased")], outcomes, alone, excused=False)
        return all_answered, known.in_doubt(NOTES), known.unresponsive(NOTES)

    with registered(a_consumer()):
        assert learned(Status.UNKNOWN, Status.CONFIRMED) == (False, True, False)
        assert not known.in_doubt(("orders.events", "test.erased"))
        assert learned(Status.UNKNOWN, Status.UNKNOWN, alone=NOTES, late=False) == (False, True, False)
        assert learned(Status.UNKNOWN, Status.UNKNOWN, alone=NOTES) == (False, True, True)
        assert learned(Status.RETURNED, Status.UNKNOWN, alone=NOTES) == (False, True, False)
        assert learned(Status.RETURNED, Status.CONFIRMED, alone=NOTES) == (True, False, False)


@pytest.mark.parametrize("alone", [NOTES, None])
def test_a_blocked_broker_or_a_stopping_relay_puts_no_destination_in_doubt(known: Destinations, alone: Any) -> None:
    unknown = [Outcome(Status.UNKNOWN, "no confirm", late=True)]
    assert not known.learn([held()], unknown, alone, excused=True)
    assert not any(map(known.in_doubt, known._known))
    assert not known.learn([held()], unknown, alone, excused=False)
    assert all(map(known.in_doubt, known._known))


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
        assert destination(row) == (frozenset(queues.values()) or (row.exchange, row.routing_key))


LASTING, BROADCAST = a_consumer(), a_consumer(name="cache", broadcast=True)
OTHER_BROADCAST = a_consumer(name="erasures", events=(Erased,), broadcast=True)
MISSING = {"tests.notes": "the queue is missing"}


@pytest.mark.parametrize(
    ("answer", "problems", "consumers", "status"),
    [
        (Status.CONFIRMED, {}, [LASTING], Status.CONFIRMED),
        (Status.CONFIRMED, MISSING, [LASTING], Status.RETURNED),
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
        row = held().row
        outcome = true_outcome(row, Outcome(answer), expected_queues(row), problems)
    assert outcome.status is status
    assert ("notes: the queue is missing" in outcome.reason) is (answer is not status is Status.RETURNED)


def test_a_retry_to_one_queue_is_published_although_the_event_would_not_reach_it() -> None:
    with registered(LASTING):
        row = held(consumer="notes").row
        outcome = true_outcome(row, Outcome(Status.CONFIRMED), expected_queues(row), MISSING)
    assert outcome.status is Status.CONFIRMED

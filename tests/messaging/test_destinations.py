"""What a relay remembers of destinations that confirm nothing."""

from typing import Any

import pytest

from messaging.broker.publisher import Outcome, Status
from messaging.models import OutboxMessage
from messaging.relay.destinations import MEMORY, PAUSE, Destinations, expected_queues, true_outcome
from messaging.relay.leases import Held
from tests.support.consuming import a_consumer, registered

NOTES, OTHERS, WELL = frozenset({"tests.notes"}), frozenset({"tests.others"}), frozenset({"tests.well"})


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


def test_a_destination_in_doubt_is_published_alone_at_once(known: Destinations) -> None:
    known.doubt(NOTES)
    assert (known.in_doubt(NOTES), known.unresponsive(NOTES), known.rest(NOTES)) == (True, False, 0)
    assert not known.in_doubt(OTHERS)


def test_an_unresponsive_destination_rests_until_the_next_trial(known: Destinations, clock: Clock) -> None:
    known.failed_alone(NOTES)
    assert (known.unresponsive(NOTES), known.rest(NOTES)) == (True, PAUSE)
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
    row = OutboxMessage(type="test.noted", exchange="orders.events", routing_key="test.noted")
    held = [Held(row, 1e9) for _ in range(3)]
    with registered(a_consumer()):
        assert known.plan(held).together == held
        known.failed_alone(NOTES)
        plan = known.plan(held)
        assert (plan.together, plan.alone, len(plan.resting), plan.rest) == ([], [], 3, PAUSE)
        clock.now += PAUSE
        assert known.plan(held).alone == [(NOTES, held[:1]), (NOTES, held[1:])]


@pytest.mark.parametrize("alone", [NOTES, None])
def test_a_blocked_broker_or_a_stopping_relay_puts_no_destination_in_doubt(known: Destinations, alone: Any) -> None:
    held = [Held(OutboxMessage(type="test.noted", exchange="orders.events"), 1e9)]
    unknown = [Outcome(Status.UNKNOWN, "no confirm", late=True)]
    assert not known.learn(held, unknown, alone, excused=True)
    assert not any(map(known.in_doubt, known._known))
    assert not known.learn(held, unknown, alone, excused=False)
    assert all(map(known.in_doubt, known._known))


@pytest.mark.parametrize(("consumer", "status"), [("", Status.RETURNED), ("notes", Status.CONFIRMED)])
def test_an_event_that_not_every_queue_took_is_unroutable_and_a_retry_to_one_queue_is_not(
    consumer: str, status: Status
) -> None:
    row = OutboxMessage(type="test.noted", exchange="orders.events", routing_key="test.noted", consumer=consumer)
    with registered(a_consumer()):
        queues, problems = expected_queues(row), {"tests.notes": "binding test.noted failed"}
    outcome = true_outcome(row, Outcome(Status.CONFIRMED), queues, problems)
    assert outcome.status is status
    assert ("notes: binding test.noted failed" in outcome.reason) is (status is Status.RETURNED)

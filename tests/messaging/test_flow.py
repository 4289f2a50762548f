"""What a relay publishes when: windows, circuit breakers, refused rows, and what rests. The test is the broker."""

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest

from messaging import conf
from messaging.broker.publisher import CONFIRMED, Outcome, Status
from messaging.models import OutboxMessage
from messaging.relay import flow as flows
from messaging.relay.destinations import publishing_of
from messaging.relay.flow import ANY_ANSWER, LOOK_EVERY, MEMORY, NO_ROOM, NOT_TRIED, Flow
from messaging.relay.leases import Held
from messaging.relay.streams import PAUSE, SLOW_AFTER, SLOW_REST, WINDOW
from tests.support.channels import FakeChannels
from tests.support.consuming import Erased, Noted, a_consumer, registered
from tests.support.running import InThread

LOST = Outcome(Status.UNKNOWN, "the connection is lost")
REFUSED = Outcome(Status.REFUSED, "406")
NOTES, OTHERS = frozenset({"tests.notes"}), frozenset({"tests.other"})
ids = itertools.count(1)


def a_row(event: Any, **columns: Any) -> OutboxMessage:
    usual = {"exchange": "orders.events", "routing_key": event.event_type, "type": event.event_type, "body": b"1"}
    return OutboxMessage(pk=next(ids), message_id="m", **{**usual, **columns})


class Stage:
    """A flow, its broker and the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(flows, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.broker = FakeChannels(lambda: self.now)
        channels: Any = self.broker
        self.held_up: set[str] = set()
        self.flow = Flow(channels, lambda: None, held_up=lambda: self.held_up)
        self.timeout = conf.get().publish_timeout
        self.rows: list[OutboxMessage] = []

    def add(self, count: int = 1, event: Any = Noted, **columns: Any) -> list[Held]:
        """Take rows, and send what may be sent."""
        rows = [a_row(event, **columns) for _ in range(count)]
        held = [Held(row, self.now + 20) for row in rows]
        self.rows += rows
        self.flow.add(held)
        self.flow.send({})
        return held

    def in_flight(self, where: Any = NOTES) -> int:
        """How many messages the broker has and has not answered."""
        return len(self.broker.sent.get(where, []))

    def outcomes(self) -> list[Outcome | None]:
        """What is settled for good; what may follow is sent."""
        found = [each.outcome for each in self.flow.collect()]
        self.flow.send({})
        return found

    def pass_time(self, seconds: float) -> None:
        """Time passes, and the flow looks at its deadlines."""
        self.now += seconds
        self.flow.expire(stopping=False)

    def resting(self) -> dict[tuple[float, str], int]:
        """How many rows are given back, by their rest and its reason."""
        resting = self.flow.take_resting()
        assert all(row in self.rows for rows in resting.values() for row in rows)
        return {rest: len(rows) for rest, rows in resting.items()}

    def falls_silent(self) -> None:
        """The destination of the notes is found to confirm nothing."""
        for _ in range(2):
            self.add()
            assert self.in_flight() == 1
            self.pass_time(self.timeout)
            assert [outcome.late for outcome in self.outcomes() if outcome] == [True]
            self.pass_time(0)
            assert self.resting() == {}


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Any:
    with registered(a_consumer(), a_consumer(name="other", events=(Erased,))):
        yield Stage(monkeypatch)


def test_each_destination_has_a_window_of_its_own(stage: Stage) -> None:
    stage.add(100)
    stage.add(WINDOW)
    stage.add(5, Erased)
    assert (stage.in_flight(NOTES), stage.in_flight(OTHERS)) == (WINDOW, 5)
    assert not any(stage.broker.may_wait), "the relay has collected them"
    stage.broker.answer(NOTES, CONFIRMED, WINDOW)
    assert stage.outcomes() == [CONFIRMED] * WINDOW
    assert stage.in_flight(NOTES) == 100


def test_what_waits_can_be_sent_once_outcomes_were_collected(stage: Stage) -> None:
    stage.add(2 * WINDOW)
    assert not stage.flow.can_send()
    stage.broker.answer(NOTES, CONFIRMED, WINDOW // 2 - 1)
    stage.flow.collect()
    assert not stage.flow.can_send(), "many at once cost less"
    stage.broker.answer(NOTES, CONFIRMED, 1)
    stage.flow.collect()
    assert stage.flow.can_send()


def test_an_outcome_is_told_at_once_if_it_is_awaited_or_no_confirm_or_rows_wait_for_its_place(
    stage: Stage,
) -> None:
    told: list[bool] = []
    awaited = False
    channels: Any = stage.broker
    stage.flow = Flow(channels, lambda: told.append(True), lambda: awaited)
    stage.add(2)
    stage.broker.answer(NOTES, CONFIRMED, 1)
    assert (told, stage.flow.has_outcomes) == ([], False)
    stage.broker.answer(NOTES, Outcome(Status.RETURNED), 1)
    assert (told, stage.flow.has_outcomes) == ([True], True)
    stage.flow.collect()
    stage.add(WINDOW + 1)
    stage.broker.answer(NOTES, CONFIRMED, WINDOW // 2 - 1)
    assert told == [True], "many at once cost less"
    stage.broker.answer(NOTES, CONFIRMED, 1)
    assert told == [True] * 2
    stage.broker.answer(NOTES, CONFIRMED, 1)
    assert told == [True] * 2, "once for both"
    stage.flow.collect()
    awaited = True
    stage.broker.answer(NOTES, CONFIRMED, WINDOW // 2 - 1)
    assert told == [True] * 3


def test_a_few_rows_are_published_at_once_by_the_thread_that_offers_them(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conf, "CLAIM_BATCH", flows.FEW)
    few = [Held(a_row(Noted), stage.now + 20) for _ in range(flows.FEW)]
    assert stage.flow.offer(few, {"tests.notes": "missing"})
    assert [each.publishing for each in stage.broker.sent[NOTES]] == [publishing_of(each.row) for each in few]
    assert stage.broker.may_wait == [True], "for those of other transactions"
    stage.broker.answer(NOTES, CONFIRMED)
    found = stage.flow.collect()
    assert [flight.held for flight in found] == few
    assert {repr((flight.queues, flight.problems)) for flight in found} == {
        repr(({"notes": "tests.notes"}, {"tests.notes": "missing"}))
    }
    assert not stage.flow.offer([*few, *few], {}), "too many"
    with stage.flow._lock:
        assert InThread(lambda: stage.flow.offer(few[:1], {}), "other").join() is False, "the relay is at work"


def test_a_destination_that_confirms_nothing_rests_and_delays_no_other(stage: Stage) -> None:
    stage.falls_silent()
    stage.add(3)
    stage.add(2, Erased)
    assert stage.resting() == {(PAUSE, NOT_TRIED): 3}
    assert (stage.in_flight(NOTES), stage.in_flight(OTHERS)) == (0, 2)
    assert not stage.broker.resets


def test_it_is_known_when_the_oldest_message_should_have_been_confirmed(stage: Stage) -> None:
    assert stage.flow.due() == math.inf
    stage.add()
    stage.now += 1
    stage.add()
    stage.add(1, Erased)
    assert stage.flow.due() == stage.now - 1 + stage.timeout


def test_a_destination_that_confirms_some_messages_is_not_blamed_for_the_others(stage: Stage) -> None:
    stage.broker.answers = False
    stage.add(2)
    stage.pass_time(1)
    stage.broker.answer(NOTES, CONFIRMED, 1)
    stage.outcomes()
    stage.pass_time(stage.timeout)
    assert [outcome.late for outcome in stage.outcomes() if outcome] == [True]
    stage.add(2)
    assert stage.in_flight() == 2


def test_while_the_relay_is_stopping_no_destination_is_blamed(stage: Stage) -> None:
    stage.broker.answers = False
    stage.add()
    stage.now += stage.timeout
    stage.flow.expire(stopping=True)
    assert [outcome.late for outcome in stage.outcomes() if outcome] == [True]
    stage.add(2)
    assert stage.in_flight() == 2


@pytest.mark.parametrize(("part", "is_silent"), [(0.6, True), (0.4, False)])
def test_a_destination_is_blamed_at_once_if_the_broker_has_answered_others_in_the_second_half_of_its_time(
    part: float, is_silent: bool, stage: Stage
) -> None:
    """Else the network or the broker may have stood still since."""
    stage.broker.answers = False
    stage.add()
    stage.add(1, Erased)
    stage.pass_time(part * stage.timeout)
    stage.broker.answer(OTHERS, CONFIRMED)
    stage.outcomes()
    stage.pass_time((1 - part) * stage.timeout)
    stage.outcomes()
    stage.add(2)
    assert stage.in_flight() == is_silent, "tried with one message, or in doubt"


def test_a_destination_that_misses_its_confirms_is_tried_with_one_message_before_its_rows_rest(stage: Stage) -> None:
    stage.add(WINDOW + 10)
    stage.pass_time(stage.timeout)
    assert len(stage.outcomes()) == WINDOW
    stage.pass_time(0)
    stage.flow.send({})
    assert (stage.in_flight(), stage.resting()) == (1, {})
    stage.pass_time(stage.timeout)
    stage.outcomes()
    stage.pass_time(0)
    assert stage.resting() == {(PAUSE, NOT_TRIED): 9}


def test_it_is_tried_again_with_one_message(stage: Stage) -> None:
    stage.falls_silent()
    stage.now += PAUSE
    stage.add(3)
    assert stage.in_flight() == 1
    stage.broker.answer(NOTES, CONFIRMED)
    assert stage.outcomes() == [CONFIRMED]
    assert stage.in_flight() == 2


def test_a_trial_without_a_confirm_is_followed_by_another_pause(stage: Stage) -> None:
    stage.falls_silent()
    stage.now += PAUSE
    stage.add(3)
    stage.pass_time(stage.timeout)
    stage.outcomes()
    stage.pass_time(0)
    assert stage.resting() == {(PAUSE, NOT_TRIED): 2}


def test_once_one_has_answered_again_the_others_are_tried_at_once(stage: Stage) -> None:
    stage.falls_silent()
    for _ in range(2):
        stage.add(1, Erased)
        stage.pass_time(stage.timeout)
        stage.outcomes()
        stage.pass_time(0)
    stage.now += PAUSE - 2 * stage.timeout
    stage.add(1)
    stage.add(1, Erased)
    assert (stage.in_flight(NOTES), stage.in_flight(OTHERS)) == (1, 0)
    stage.broker.answer(NOTES, Outcome(Status.RETURNED))
    stage.outcomes()
    stage.add(1, Erased)
    assert stage.in_flight(OTHERS) == 1


def test_a_broker_that_answers_nothing_at_all_is_given_up_and_no_destination_blamed(stage: Stage) -> None:
    stage.broker.answers = False
    stage.add(2)
    stage.pass_time(stage.timeout)
    assert len(stage.outcomes()) == 2
    stage.add(1)
    assert stage.in_flight() == 0, "in doubt"
    stage.pass_time(ANY_ANSWER)
    [reason] = stage.broker.resets
    assert "no answer to anything else" in reason
    stage.flow.send({})
    assert stage.in_flight() == 1
    assert stage.resting() == {}


def test_while_destinations_are_in_doubt_there_is_a_pause_between_two_looks(stage: Stage) -> None:
    stage.broker.answers = False
    stage.add()
    stage.pass_time(stage.timeout)
    stage.outcomes()
    stage.pass_time(ANY_ANSWER / 2)
    assert stage.flow.due() == stage.now + LOOK_EVERY


def test_a_blocked_broker_is_neither_given_up_nor_a_destination_blamed(stage: Stage) -> None:
    stage.add()
    stage.broker.connection.blocked = True
    stage.pass_time(stage.timeout)
    [outcome] = stage.outcomes()
    assert outcome is not None
    assert outcome.late
    assert "alarm" in outcome.reason
    stage.pass_time(ANY_ANSWER)
    assert not stage.broker.resets
    stage.broker.connection.blocked = False
    stage.add()
    assert stage.in_flight() == 1


def test_a_lost_connection_blames_no_destination(stage: Stage) -> None:
    stage.add(3)
    stage.broker.answer(NOTES, LOST)
    assert stage.outcomes() == [LOST] * 3
    stage.add(3)
    assert stage.in_flight() == 3


def test_rows_that_are_refused_together_are_published_again_one_by_one(stage: Stage) -> None:
    stage.add(3)
    stage.add(1, Erased)
    stage.broker.answer(NOTES, REFUSED)
    assert stage.outcomes() == []
    stage.add(2)
    assert stage.in_flight() == 1
    alone = Outcome(Status.REFUSED, "406", alone=True)
    for outcome in (CONFIRMED, alone, CONFIRMED):
        assert stage.in_flight() == 1
        stage.broker.answer(NOTES, outcome)
        assert stage.outcomes() == [outcome]
    assert (stage.in_flight(NOTES), stage.in_flight(OTHERS)) == (2, 1)


def test_a_slow_destination_holds_a_bounded_number_of_rows_and_takes_no_room_from_others(stage: Stage) -> None:
    stage.add(2 * WINDOW)
    assert stage.flow.room() == conf.CLAIM_BATCH - WINDOW
    stage.now += SLOW_AFTER + 0.1
    assert stage.flow.room() == conf.CLAIM_BATCH
    stage.add(3)
    assert stage.resting() == {(SLOW_REST, NO_ROOM): 3}
    assert len(stage.flow) == 2 * WINDOW


def test_while_a_destination_is_tried_its_further_rows_rest_until_that_is_decided(stage: Stage) -> None:
    """A large backlog is else claimed and given back all the while."""
    stage.falls_silent()
    stage.now += PAUSE
    stage.add(WINDOW)
    stage.pass_time(1)
    stage.add(3)
    assert stage.resting() == {(stage.timeout - 1, NO_ROOM): 2}


def test_a_row_whose_lease_is_about_to_end_is_freed(stage: Stage) -> None:
    stage.add(WINDOW + 2)
    stage.now += 21
    stage.broker.answer(NOTES, CONFIRMED)
    stage.outcomes()
    assert stage.in_flight() == 0
    assert stage.resting() == {(0.0, ""): 2}


def test_of_a_row_that_comes_twice_the_newer_lease_counts(stage: Stage) -> None:
    [held] = stage.add()
    newer, another = Held(held.row, stage.now + 30), Held(a_row(Noted), stage.now + 30)
    stage.flow.add([newer, another])
    stage.flow.send({})
    assert stage.in_flight() == 2
    stage.broker.answer(NOTES, CONFIRMED)
    assert [flight.held for flight in stage.flow.collect()] == [newer, another]


@pytest.mark.parametrize(("limit", "rest"), [(21, {(SLOW_REST, NO_ROOM): 1}), (22, {})])
def test_many_slow_destinations_together_hold_a_bounded_number_of_bytes(
    limit: int, rest: dict[Any, int], stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows, "SLOW_BYTES", limit)
    stage.add(3, body=b"x" * 10)
    stage.broker.answer(NOTES, CONFIRMED)
    stage.outcomes()
    stage.add(2, body=b"x" * 10)
    stage.add(1, Erased)
    stage.now += SLOW_AFTER + 0.1
    stage.add(1, Erased)
    assert stage.resting() == rest


def test_there_is_room_until_as_many_rows_wait_or_as_many_bytes_are_held_as_a_claim_takes(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conf, "CLAIM_BATCH", 5)
    stage.add(WINDOW + 4)
    assert stage.flow.room() == 1
    stage.add(2)
    assert stage.flow.room() == 0
    stage.broker.answer(NOTES, CONFIRMED)
    stage.outcomes()
    monkeypatch.setattr(flows.leases, "CLAIM_BYTES", 27)
    stage.add(2, Erased, body=b"x" * 10)
    assert stage.flow.room() == 5
    stage.add(1, Erased)
    assert stage.flow.room() == 0


def test_each_publish_remembers_what_was_missing_when_it_was_sent(stage: Stage) -> None:
    stage.add()
    stage.flow.add([Held(a_row(Noted), stage.now + 20)])
    stage.flow.send({"tests.other": "missing"})
    stage.flow.send({})
    stage.broker.answer(NOTES, CONFIRMED)
    assert [flight.problems for flight in stage.flow.collect()] == [{}, {"tests.other": "missing"}]


def test_what_is_left_at_the_end_is_told_apart(stage: Stage) -> None:
    stage.add(WINDOW + 3)
    sent, unsent = stage.flow.take_all()
    assert (len(sent), len(unsent), len(stage.flow)) == (WINDOW, 3, 0)


def test_what_goes_to_a_missing_queue_waits_while_it_is_declared_and_takes_no_room_from_others(stage: Stage) -> None:
    stage.held_up = {"tests.notes", "elsewhere"}
    stage.add(3)
    stage.add(2, Erased)
    stage.add(1, Erased, exchange="elsewhere")
    stage.add(1, exchange="elsewhere", type="unknown")
    assert (stage.in_flight(NOTES), stage.in_flight(OTHERS), stage.in_flight("elsewhere")) == (0, 3, 0)
    assert stage.flow.room() == conf.CLAIM_BATCH
    stage.held_up = set()
    stage.flow.send({})
    assert (stage.in_flight(NOTES), stage.in_flight("elsewhere")) == (3, 1)


def test_after_its_end_nothing_is_taken(stage: Stage) -> None:
    stage.flow.take_all()
    assert not stage.flow.offer([Held(a_row(Noted), stage.now + 20)], {})


def test_a_destination_without_rows_is_forgotten(stage: Stage) -> None:
    stage.falls_silent()
    stage.pass_time(PAUSE + MEMORY + 1)
    assert not stage.flow._streams

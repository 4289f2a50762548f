"""What one step of a relay does with rows in the database and in memory. The test is the broker and the clock."""

import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from django.db import DatabaseError, InterfaceError
from django.utils import timezone
from structlog.testing import capture_logs

from messaging import conf
from messaging.broker.publisher import CONFIRMED, Outcome, Status
from messaging.exceptions import BrokerUnavailable, NotFound
from messaging.models import OutboxMessage
from messaging.relay import flow as flows
from messaging.relay import leases
from messaging.relay import relay as module
from messaging.relay.relay import BROKER_PAUSE, DATABASE_PAUSE, FAULT_PAUSE, MARK_INTERVAL, Relay
from tests.support.channels import FakeChannels
from tests.support.consuming import a_consumer, registered
from tests.support.running import InThread, a_leased_row, a_row
from tests.support.waiting import eventually

pytestmark = pytest.mark.django_db(transaction=True)

NOTES = frozenset({"tests.notes"})
State = OutboxMessage.State


class FakeDeclaring:
    """Says what the test says about what is declared."""

    def __init__(self) -> None:
        self.is_done = True
        self.is_waited_for = False
        self.problems: Mapping[str, str] = {}
        self.stale_problems: tuple[str, ...] = ()
        self.run, self.hasten = Mock(), Mock()


class Stage:
    """A relay that is moved step by step, its broker and the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = time.monotonic() - 1000
        clock = SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr(module, "time", clock)
        monkeypatch.setattr(flows, "time", clock)
        self.broker = FakeChannels(lambda: self.now)
        self.declaring = FakeDeclaring()
        monkeypatch.setattr(module, "Channels", self._channels)
        monkeypatch.setattr(module, "Declaring", self._declaring)
        #: For each wait: whether there was work, and the seconds that it would have waited.
        self.waits: list[tuple[bool, float]] = []
        self.real_wait = Relay._wait
        monkeypatch.setattr(Relay, "_wait", self._wait)
        self.relay = Relay()

    def _channels(self, role: str, on_change: Callable[[], None]) -> FakeChannels:
        self.on_change = on_change
        return self.broker

    def _declaring(self, connection: Any, on_done: Callable[[], None]) -> FakeDeclaring:
        assert connection is self.broker.connection
        self.on_declared = on_done
        return self.declaring

    def _wait(self, condition: Callable[[], bool], seconds: float) -> None:
        self.waits.append((condition(), seconds))

    def step(self) -> None:
        self.relay._step()

    def answer(self, outcome: Outcome = CONFIRMED) -> None:
        """The broker answers for everything, and the relay notes that."""
        self.broker.answer(NOTES, outcome)
        self.now += MARK_INTERVAL
        self.step()

    def in_flight(self) -> int:
        return len(self.broker.sent.get(NOTES, []))


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Any:
    with registered(a_consumer()):
        yield Stage(monkeypatch)


def state_of(row: OutboxMessage) -> tuple[str, bool, str]:
    """A row's state, whether a relay holds it, and its error."""
    row.refresh_from_db()
    return row.state, row.lease_token is not None, row.last_error


def test_a_claimed_row_is_published_and_marked_once_it_is_confirmed(stage: Stage) -> None:
    row = a_row()
    stage.step()
    assert (stage.in_flight(), state_of(row)) == (1, ("pending", True, ""))
    stage.broker.answer(NOTES, CONFIRMED)
    stage.step()
    assert state_of(row) == ("published", False, "")
    assert (row.expected_consumers, stage.relay.published) == (["notes"], 1)
    assert row.published_at is not None
    assert row.published_at < timezone.now() - timedelta(seconds=0.9), "the time of its confirm, long ago in this test"
    assert stage.broker.connection.succeeded.call_count == 1
    stage.now += 1
    stage.step()
    assert (stage.relay.published, stage.broker.connection.succeeded.call_count) == (1, 1)
    assert stage.broker.start.call_count == 1


def test_marks_are_written_in_batches(stage: Stage) -> None:
    first, second, _ = a_row(), a_row(), a_row()
    stage.step()
    stage.broker.answer(NOTES, CONFIRMED, 1)
    stage.step()
    stage.broker.answer(NOTES, CONFIRMED, 1)
    stage.step()
    assert (state_of(first)[0], state_of(second)[0]) == ("published", "pending")
    stage.broker.answer(NOTES, CONFIRMED, 1)
    stage.step()
    assert stage.waits[-1] == (False, pytest.approx(MARK_INTERVAL)), "the third is noted with the second"
    stage.now += MARK_INTERVAL
    stage.step()
    assert state_of(second)[0] == "published"
    assert stage.relay.published == 3


MISSING = NotFound("no exchange", 404)


@pytest.mark.parametrize(
    ("outcome", "state", "is_missing"),
    [
        (Outcome(Status.RETURNED, "312 NO_ROUTE"), "unroutable", True),
        (Outcome(Status.REFUSED, "404", MISSING, alone=True), "unroutable", True),
        (Outcome(Status.REFUSED, "406", alone=True), "failed", False),
        (Outcome(Status.NACKED, "full"), "pending", False),
    ],
)
def test_a_row_that_is_not_confirmed_has_its_reason_and_what_was_missing_is_declared_soon(
    outcome: Outcome, state: str, is_missing: bool, stage: Stage
) -> None:
    row = a_row(subject="order:1")
    stage.step()
    with capture_logs() as lines:
        stage.answer(outcome)
    [line] = [line for line in lines if line["event"] == f"message.{outcome.status.value}"]
    assert line.items() >= {
        "message_id": row.message_id, "type": row.type, "subject": "order:1", "attempt": 1, "to": "orders.events",
        "reason": outcome.reason,
    }.items()  # fmt: skip
    assert state_of(row) == (state, False, outcome.reason)
    assert (stage.declaring.hasten.called, stage.relay.published) == (is_missing, 0)
    assert not stage.broker.connection.succeeded.called


@pytest.mark.parametrize("when", ["as it was sent", "as it was confirmed"])
def test_a_confirmed_row_is_not_published_if_a_queue_was_missing(when: str, stage: Stage) -> None:
    row, missing = a_row(), {"tests.notes": "it is missing"}
    stage.declaring.problems = missing if when == "as it was sent" else {}
    stage.step()
    stage.declaring.problems = missing if when == "as it was confirmed" else {}
    stage.answer()
    assert state_of(row) == ("unroutable", False, "not every queue took it: notes: it is missing")
    assert stage.declaring.hasten.called


@pytest.mark.parametrize("lacks", ["a connection", "a declaration"])
def test_nothing_is_claimed_or_sent_before_all_is_ready(lacks: str, stage: Stage) -> None:
    free, mine = a_row(), a_leased_row()
    stage.broker.connection.blocked = lacks == "a connection"
    stage.declaring.is_done = lacks == "a connection"
    stage.relay._handed.open = True
    assert stage.relay.hand_over([mine], stage.now) == 1
    stage.step()
    assert (stage.in_flight(), state_of(free), state_of(mine)) == (0, ("pending", False, ""), ("pending", True, ""))
    assert (stage.waits[-1][0], stage.declaring.run.called) == (False, lacks == "a declaration")
    stage.declaring.is_waited_for = True
    stage.step()
    assert stage.waits[-1][0] is (lacks == "a declaration"), "it may declare"
    stage.broker.connection.blocked, stage.declaring.is_done = False, True
    stage.step()
    assert stage.in_flight() == 2


def test_a_row_that_is_handed_over_is_sent_at_once_with_what_is_missing(stage: Stage) -> None:
    stage.step()
    stage.declaring.problems = {"tests.notes": "it is missing"}
    row = a_leased_row()
    assert stage.relay.hand_over([row], stage.now) == 1
    assert stage.in_flight() == 1
    stage.declaring.problems = {}
    stage.answer()
    assert state_of(row)[0] == "unroutable"


def test_many_rows_that_are_handed_over_are_sent_by_the_relays_thread(stage: Stage) -> None:
    stage.step()
    rows = [a_leased_row() for _ in range(flows.FEW + 1)]
    assert stage.relay.hand_over(rows, stage.now) == len(rows)
    assert stage.in_flight() == 0
    stage.step()
    assert (stage.waits[-1][0], stage.in_flight()) == (True, len(rows))


def test_a_row_whose_lease_is_about_to_end_is_freed_and_claimed_anew(stage: Stage) -> None:
    stage.step()
    row, settings = a_leased_row(), conf.get()
    stage.relay.hand_over([row], stage.now - settings.lease + settings.publish_timeout)
    stage.step()
    assert (stage.in_flight(), state_of(row)) == (0, ("pending", False, ""))
    stage.step()
    assert stage.in_flight() == 1
    another = a_leased_row()
    stage.relay.hand_over([another], stage.now - settings.lease + settings.publish_timeout + 0.1)
    assert stage.in_flight() == 2


def test_a_row_that_rests_is_given_back_with_its_reason(stage: Stage) -> None:
    row = a_leased_row()
    stage.step()
    due = stage.relay._claim_due
    stage.relay._flow._rest(row, 30.0, "not tried")
    stage.step()
    assert state_of(row) == ("pending", False, "not tried")
    assert row.publish_at > timezone.now() + timedelta(seconds=20)
    assert stage.relay._claim_due == due > stage.now


def test_the_table_is_read_again_at_once_while_it_has_more_and_then_at_intervals(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conf, "CLAIM_BATCH", 2)
    for _ in range(3):
        a_row()
    stage.step()
    assert stage.in_flight() == 2
    stage.step()
    assert (stage.waits[-1][0], stage.in_flight()) == (True, 3)
    stage.answer()
    a_row()
    stage.step()
    assert stage.in_flight() == 0
    assert stage.waits[-1][0] is False
    stage.now += conf.POLL_INTERVAL
    stage.step()
    assert (stage.waits[-1][0], stage.in_flight()) == (True, 1)


@pytest.mark.parametrize("when", ["before a claim", "during a claim"])
def test_woken_it_claims_at_once(when: str, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.on_change()
    stage.step()
    if when == "during a claim":
        stage.now += conf.POLL_INTERVAL
        claim = leases.claim

        def claims(limit: int, seconds: float) -> Any:
            found = claim(limit, seconds)
            stage.relay.wake()
            return found

        with monkeypatch.context() as patch:
            patch.setattr(leases, "claim", claims)
            stage.step()
    else:
        stage.on_change()
    a_row()
    stage.step()
    assert (stage.waits[-1][0], stage.in_flight()) == (True, 1)


def test_without_work_it_waits_until_the_next_claim_and_no_longer_than_for_a_confirm(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conf, "POLL_INTERVAL", 30.0)
    stage.step()
    stage.step()
    assert stage.waits[-1] == (False, pytest.approx(conf.POLL_INTERVAL))
    a_row()
    stage.now += conf.POLL_INTERVAL
    stage.step()
    timeout = conf.get().publish_timeout
    stage.now += timeout - 0.5
    stage.step()
    assert stage.waits[-1] == (False, pytest.approx(0.5))


def test_with_a_full_flow_it_claims_nothing(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.step()
    monkeypatch.setattr(stage.relay._flow, "room", lambda: 0)
    stage.now += conf.POLL_INTERVAL
    row = a_row()
    stage.step()
    assert stage.waits[-1] == (False, pytest.approx(conf.POLL_INTERVAL))
    assert state_of(row) == ("pending", False, "")


def test_a_relay_that_stops_claims_nothing_more_and_writes_what_it_knows(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    confirmed, sent = a_row(), a_row()
    stage.step()
    stage.broker.answer(NOTES, CONFIRMED, 1)
    free, unsent, handed = a_row(), a_leased_row(), a_leased_row()
    stage.relay._claim_due = 0.0
    stage.relay.stop(1.0)
    stage.step()
    assert stage.waits[-1] == (True, pytest.approx(MARK_INTERVAL))
    assert state_of(free) == ("pending", False, "")
    monkeypatch.setattr(stage.broker, "send", lambda *_: None)
    assert stage.relay.hand_over([handed], stage.now) == 1, "it takes them until it has ended"
    stage.relay._flow._hold(stage.relay._held([unsent], stage.now)[0], stage.relay._flow._streams[NOTES], {})
    stage.now += 1.0
    stage.relay.run()
    assert state_of(confirmed) == ("published", False, "")
    assert state_of(sent) == ("pending", False, "the relay was stopped before the confirm")
    assert [state_of(row) for row in (unsent, handed)] == [("pending", False, "")] * 2
    assert stage.broker.stop.called
    assert stage.relay.room() == (0, 0)
    assert stage.relay.hand_over([free], stage.now) == 0


def test_a_relay_ends_early_once_nothing_is_left(stage: Stage) -> None:
    row = a_row()
    stage.step()
    stage.relay.stop(10.0)
    assert not stage.relay._finished()
    stage.broker.answer(NOTES, CONFIRMED)
    stage.now += MARK_INTERVAL
    stage.relay.run()
    assert state_of(row)[0] == "published"
    assert stage.now < stage.relay._drain_until


def test_a_database_that_fails_at_the_end_is_no_error(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    a_row()
    stage.step()
    monkeypatch.setattr(leases, "write", Mock(side_effect=DatabaseError("gone")))
    stage.relay.stop(0.0)
    stage.relay.run()
    assert stage.broker.stop.called


def test_whatever_fails_the_relay_rests_and_goes_on(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = [DatabaseError("gone"), InterfaceError("closed"), BrokerUnavailable("gone"), SystemExit()]

    def step() -> None:
        if errors:
            raise errors.pop(0)
        stage.relay.stop(0.0)

    monkeypatch.setattr(stage.relay, "_step", step)
    stage.relay.run()
    assert stage.waits == [(False, pause) for pause in (DATABASE_PAUSE, DATABASE_PAUSE, BROKER_PAUSE, FAULT_PAUSE)]


@pytest.mark.parametrize(
    ("refused", "generation", "reason"), [(True, 0, "no such user"), (True, 1, ""), (False, 0, "")]
)
def test_only_a_refusal_at_the_first_attempt_is_one(refused: bool, generation: int, reason: str, stage: Stage) -> None:
    connection = stage.broker.connection
    connection.refused, connection.generation, connection.last_error = refused, generation, "no such user"
    assert stage.relay.refusal == reason


def test_what_goes_to_a_missing_queue_waits_while_that_is_declared(stage: Stage) -> None:
    stage.declaring.stale_problems = ("tests.notes",)
    a_row()
    stage.step()
    assert stage.in_flight() == 0
    stage.declaring.stale_problems = ()
    stage.step()
    assert (stage.waits[-1][0], stage.in_flight()) == (True, 1)


@pytest.mark.parametrize("by", ["a declaration", "an answer", "a connection", "rows that are handed over", "its end"])
def test_a_relay_that_waits_is_woken(by: str, stage: Stage) -> None:
    a_row()
    stage.step()
    looks: list[bool] = []
    waiting = InThread(
        lambda: stage.real_wait(stage.relay, lambda: bool(looks.append(True)) or len(looks) > 1, 3600), by
    )
    eventually(lambda: looks)
    match by:
        case "a declaration":
            stage.on_declared()
        case "an answer":
            stage.broker.answer(NOTES, Outcome(Status.RETURNED))
        case "a connection":
            stage.on_change()
        case "rows that are handed over":
            stage.declaring.is_done = False
            stage.relay.hand_over([a_leased_row()], stage.now)
        case _:
            stage.relay.stop(1.0)
    waiting.join()
    assert len(looks) == 2


@pytest.mark.parametrize("seconds", [0.01, -1.0])
def test_a_relay_waits_no_longer_than_it_should(seconds: float, stage: Stage) -> None:
    InThread(lambda: stage.real_wait(stage.relay, lambda: False, seconds), "relay").join()


@pytest.mark.parametrize("is_stopping", [True, False])
def test_its_flow_is_told_whether_it_is_stopping(
    is_stopping: bool, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    expire = Mock()
    monkeypatch.setattr(stage.relay._flow, "expire", expire)
    if is_stopping:
        stage.relay.stop(1.0)
    stage.step()
    expire.assert_called_once_with(stopping=is_stopping)

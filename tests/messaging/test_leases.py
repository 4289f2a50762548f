"""What leases keep apart, what the outcome of a publish makes of its row, and when a row is tried again."""

import threading
import uuid
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import DatabaseError, transaction

from messaging import database
from messaging.broker.publisher import Outcome, Status
from messaging.exceptions import AccessRefused, NotFound, PreconditionFailed
from messaging.message import new_id
from messaging.models import OutboxMessage
from messaging.relay import leases
from messaging.relay.leases import Mark
from tests.support.running import InThread

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize(
    ("outcome", "state", "rest"),
    [
        (Outcome(Status.CONFIRMED), "published", 0),
        (Outcome(Status.RETURNED, "312 NO_ROUTE"), "unroutable", 4),
        (Outcome(Status.REFUSED, "404 no exchange", NotFound("no exchange", 404)), "unroutable", 4),
        (Outcome(Status.REFUSED, "403 no right", AccessRefused("no right", 403)), "unroutable", 4),
        (Outcome(Status.REFUSED, "406 too large", PreconditionFailed("too large", 406)), "failed", 0),
        (Outcome(Status.UNSENDABLE, "too long"), "failed", 0),
        (Outcome(Status.NACKED, "the queue is full"), "pending", 4),
        (Outcome(Status.UNKNOWN, "no confirm", late=True), "pending", 2),
    ],
    ids=str,
)
def test_an_outcome_frees_its_row_and_decides_its_state_and_next_attempt(
    outcome: Outcome, state: str, rest: int
) -> None:
    row = a_leased_row(publish_attempts=2, last_error="an earlier one", publish_at=database.now())
    leases.write([Mark(row, outcome, ("notes",))])
    row.refresh_from_db()
    assert (row.state, row.publish_attempts, row.expected_consumers) == (state, 3, ["notes"])
    assert (row.last_error, row.lease_token, row.lease_until) == (outcome.reason, None, None)
    due_in = (row.publish_at - database.now()).total_seconds()
    assert due_in <= rest
    assert outcome.late or due_in > rest - 2


def due_after(attempts: int, *, late: bool) -> datetime:
    """When a row is tried again after so many attempts and another one without an answer."""
    row = a_row(publish_attempts=attempts)
    leases.write([Mark(row, Outcome(Status.UNKNOWN, "for a test", late=late), ())])
    row.refresh_from_db()
    return row.publish_at


def rest_after(attempts: int, *, late: bool = False) -> float:
    """Seconds from now to `due_after`."""
    return max(timedelta(0), due_after(attempts, late=late) - database.now()).total_seconds()


@pytest.mark.parametrize(("attempts", "late"), [(0, False), (2, False), (0, True)])
def test_a_row_without_an_answer_is_tried_again_at_once(attempts: int, late: bool) -> None:
    assert rest_after(attempts, late=late) == 0


@pytest.mark.parametrize(("attempts", "least", "most"), [(3, 0, 1), (6, 3.5, 8), (9, 29, 60), (500, 29, 60)])
def test_rows_that_always_lose_their_connection_part(attempts: int, least: float, most: float) -> None:
    rests = {rest_after(attempts) for _ in range(20)}
    assert max(rests) - min(rests) > (most - least) / 10
    assert least <= min(rests) <= max(rests) <= most


@pytest.mark.parametrize(("attempts", "most"), [(1, 1), (4, 8), (7, 60), (500, 60)])
def test_rows_that_always_miss_their_confirm_come_due_together(attempts: int, most: float) -> None:
    due = [due_after(attempts, late=True) for _ in range(5)]
    assert {round(each.timestamp()) % most for each in due} == {0}, "at a full multiple of the rest"
    assert all((each - database.now()).total_seconds() <= most for each in due)


def test_rows_that_are_marked_together_keep_the_times_of_their_confirms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "time", SimpleNamespace(monotonic=lambda: 100.0))
    rows = [a_leased_row() for _ in range(4)]
    moments = (99.5, 99.0, 90.0, 100.0)
    leases.write([
        Mark(row, Outcome(Status.CONFIRMED), ("notes",), at) for row, at in zip(rows, moments, strict=True)
    ])  # fmt: skip
    *earlier, last = (OutboxMessage.objects.get(pk=row.pk).published_at for row in rows)
    # Of a confirm that came too long ago, only so much.
    assert [round((last - each).total_seconds(), 4) for each in earlier] == [0.5, 1.0, leases.LONGEST_BACK]


def test_rows_that_are_given_back_untried_rest_and_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "GIVEN_BACK_AT_ONCE", 2)
    rows = [a_leased_row() for _ in range(5)]
    assert leases.give_back(rows, rest=300, why="not tried")
    for row in OutboxMessage.objects.all():
        assert (row.lease_token, row.lease_until, row.publish_attempts) == (None, None, 0)
        assert row.last_error == "not tried"
        assert row.publish_at > database.now() + timedelta(seconds=100)


def test_a_row_that_is_given_back_at_once_keeps_its_place_and_its_error() -> None:
    due = database.now() - timedelta(hours=1)
    row = a_leased_row(publish_at=due, last_error="no confirm")
    assert leases.give_back([row])
    row.refresh_from_db()
    assert (row.lease_token, row.lease_until, row.publish_at, row.last_error) == (None, None, due, "no confirm")


def test_leases_that_a_failing_database_does_not_end_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise DatabaseError

    row = a_leased_row()
    monkeypatch.setattr(leases, "end", fail)
    assert not leases.give_back([row])
    row.refresh_from_db()
    assert row.lease_until


def test_a_claim_takes_what_is_due_first_and_of_rows_due_at_once_the_first_written() -> None:
    due = database.now() - timedelta(seconds=1)
    first, second = a_row(publish_at=due), a_row(publish_at=due)
    oldest = a_row(publish_at=due - timedelta(seconds=1))
    claims = [leases.claim(2, 30), leases.claim(2, 30)]
    assert [[row.pk for row in rows] for rows in claims] == [[oldest.pk, first.pk], [second.pk]]
    assert [leases.is_full(rows, 2) for rows in claims] == [True, False]


def test_rows_that_a_relay_does_not_take_need_no_room() -> None:
    handed = leases.HandedOver()
    handed.open = False
    assert handed.room() == (0, 0)


@pytest.mark.django_db(transaction=True)
@pytest.mark.only_on("postgresql")  # SQLite has one writer
def test_a_claim_does_not_wait_for_rows_that_another_relay_is_claiming() -> None:
    locked, free = a_row(), a_row()
    begun, go_on = threading.Event(), threading.Event()

    def claim_slowly() -> None:
        with transaction.atomic():
            assert OutboxMessage.objects.select_for_update().get(pk=locked.pk)
            begun.set()
            assert go_on.wait(15)

    other = InThread(claim_slowly, "other relay")
    assert begun.wait(15)
    assert [row.pk for row in leases.claim(10, 30)] == [free.pk]
    go_on.set()
    other.join()


def test_a_claim_takes_no_more_bytes_than_fit_and_the_next_takes_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "CLAIM_BYTES", 1200)
    rows = [a_row(body=b"x" * 400) for _ in range(5)]
    first, second = leases.claim(100, 30), leases.claim(100, 30)
    assert [row.pk for row in [*first, *second]] == [row.pk for row in rows]
    assert (len(first), leases.is_full(first, 100), leases.is_full(second, 100)) == (3, True, False)


@pytest.mark.django_db(transaction=True)
def test_a_claim_and_the_marks_of_what_was_confirmed_are_one_statement_each_which_commits_by_itself(
    django_assert_num_queries: Any,
) -> None:
    for _ in range(3):
        a_row()
    database.connection().close()
    leases.claim(1, 30)  # on PostgreSQL the first of a connection asks for its isolation level
    with django_assert_num_queries(1):
        claimed = leases.claim(10, 30)
    with django_assert_num_queries(1):
        leases.write([Mark(row, Outcome(Status.CONFIRMED), ()) for row in claimed])
    database.connection().close()
    assert [row.state for row in OutboxMessage.objects.order_by("pk")] == ["pending", "published", "published"]


def a_row(**changes: Any) -> OutboxMessage:
    facts = {"message_id": new_id(), "type": "test.noted", "exchange": "orders.events", "routing_key": "test.noted"}
    return OutboxMessage.objects.create(**{**facts, "body": b"{}", **changes})


def a_leased_row(**changes: Any) -> OutboxMessage:
    return a_row(lease_token=uuid.UUID(int=1), lease_until=database.in_future(30), **changes)

"""When a row that was not published is tried again."""

import uuid
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from messaging import database
from messaging.broker.publisher import Outcome, Status
from messaging.message import new_id
from messaging.models import OutboxMessage
from messaging.relay import leases
from messaging.relay.leases import Mark

pytestmark = pytest.mark.django_db


def rest_after(attempts: int, status: Status, *, late: bool = False) -> float:
    """Seconds until the next attempt of a row after so many attempts and another one with this outcome."""
    row = a_row(publish_attempts=attempts)
    leases.write([Mark(row, Outcome(status, "for a test", late=late), ())])
    row.refresh_from_db()
    assert (row.state, row.publish_attempts) == (OutboxMessage.State.PENDING, attempts + 1)
    return max(timedelta(0), row.publish_at - database.now()).total_seconds()


@pytest.mark.parametrize(("attempts", "late"), [(0, False), (2, False), (0, True)])
def test_a_row_without_an_answer_is_tried_again_at_once(attempts: int, late: bool) -> None:
    assert rest_after(attempts, Status.UNKNOWN, late=late) == 0


@pytest.mark.parametrize(("attempts", "least", "most"), [(3, 0, 1.5), (6, 3.5, 12), (9, 29, 90), (500, 29, 90)])
def test_rows_that_always_lose_their_connection_part(attempts: int, least: float, most: float) -> None:
    rests = {rest_after(attempts, Status.UNKNOWN) for _ in range(20)}
    assert max(rests) - min(rests) > (most - least) / 10
    assert least <= min(rests) <= max(rests) <= most


@pytest.mark.parametrize(("attempts", "most"), [(1, 1), (4, 8), (7, 60), (500, 60)])
def test_rows_that_always_miss_their_confirm_come_due_together(attempts: int, most: float) -> None:
    now = database.now
    due = [now() + timedelta(seconds=rest_after(attempts, Status.UNKNOWN, late=True)) for _ in range(5)]
    ends = {round(each.timestamp()) % most for each in due}
    # A run over the end of a rest has two of them.
    assert len(ends) <= 2
    assert all((each - now()).total_seconds() <= most for each in due)


def test_rows_that_are_marked_together_keep_the_times_of_their_confirms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "time", SimpleNamespace(monotonic=lambda: 100.0))
    rows = [a_row() for _ in range(3)]
    moments = (99.5, 99.1, 100.0)
    leases.write([
        Mark(row, Outcome(Status.CONFIRMED), ("notes",), at) for row, at in zip(rows, moments, strict=True)
    ])  # fmt: skip
    first, second, third = (OutboxMessage.objects.get(pk=row.pk).published_at for row in rows)
    assert [round((third - each).total_seconds(), 2) for each in (first, second)] == [0.5, 0.9]


def test_rows_that_are_given_back_untried_rest_and_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "GIVEN_BACK_AT_ONCE", 2)
    token = uuid.uuid4()
    rows = [a_row(lease_token=token, lease_until=database.in_future(30)) for _ in range(5)]
    leases.give_back(rows, rest=300, why="not tried")
    for row in OutboxMessage.objects.all():
        assert (row.lease_token, row.lease_until, row.publish_attempts) == (None, None, 0)
        assert row.last_error == "not tried"
        assert row.publish_at > database.now() + timedelta(seconds=100)


def test_a_claim_takes_no_more_bytes_than_fit_and_the_next_takes_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "CLAIM_BYTES", 1000)
    rows = [a_row(body=b"x" * 400) for _ in range(5)]
    first, second = leases.claim(100, 30), leases.claim(100, 30)
    assert [row.pk for row in [*first, *second]] == [row.pk for row in rows]
    assert (len(first), leases.is_full(first, 100), leases.is_full(second, 100)) == (3, True, False)


def a_row(**changes: Any) -> OutboxMessage:
    facts = {"message_id": new_id(), "type": "test.noted", "exchange": "orders.events", "routing_key": "test.noted"}
    return OutboxMessage.objects.create(**{**facts, "body": b"{}", **changes})

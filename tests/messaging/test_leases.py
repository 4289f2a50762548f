"""What becomes of a row that was not published: when it is tried again."""

from datetime import timedelta

import pytest

from messaging import database, leases
from messaging.broker.publisher import Fate, Outcome
from messaging.leases import Mark
from messaging.message import new_id
from messaging.models import OutboxMessage

pytestmark = pytest.mark.django_db


def rest_after(attempts: int, fate: Fate, *, late: bool = False) -> float:
    """Seconds until a row that was tried so often before, and now ended like this, is tried again."""
    row = OutboxMessage.objects.create(
        message_id=new_id(), type="test.noted", exchange="orders.events", routing_key="test.noted", body=b"{}",
        publish_attempts=attempts,
    )  # fmt: skip
    leases.write([Mark(row, Outcome(fate, "as it were", late=late), ())])
    row.refresh_from_db()
    assert (row.state, row.publish_attempts) == (OutboxMessage.State.PENDING, attempts + 1)
    return max(timedelta(0), row.publish_at - database.now()).total_seconds()


@pytest.mark.parametrize(("attempts", "late"), [(0, False), (2, False), (0, True)])
def test_a_row_that_was_unlucky_is_tried_again_at_once(attempts: int, late: bool) -> None:
    assert rest_after(attempts, Fate.UNKNOWN, late=late) == 0


@pytest.mark.parametrize(("attempts", "least", "most"), [(3, 0, 1.5), (6, 3.5, 12), (9, 29, 90), (500, 29, 90)])
def test_a_row_that_always_loses_its_connection_parts_from_those_sent_with_it(
    attempts: int, least: float, most: float
) -> None:
    rests = {rest_after(attempts, Fate.UNKNOWN) for _ in range(20)}
    assert max(rests) - min(rests) > (most - least) / 10
    assert least <= min(rests) <= max(rests) <= most


@pytest.mark.parametrize(("attempts", "most"), [(1, 1), (4, 8), (7, 60), (500, 60)])
def test_rows_that_never_get_their_confirm_come_due_together_however_old_they_are(attempts: int, most: float) -> None:
    now = database.now
    due = [now() + timedelta(seconds=rest_after(attempts, Fate.UNKNOWN, late=True)) for _ in range(5)]
    ends = {round(each.timestamp()) % most for each in due}
    # A run over the end of a rest has two of them.
    assert len(ends) <= 2
    assert all((each - now()).total_seconds() <= most for each in due)

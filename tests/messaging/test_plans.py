"""What runs every second, or for every message, is led by an index, however many rows there are."""

from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.models import Q
from django.utils.timezone import now

from messaging.actions.selection import Selection
from messaging.admin.searching import begins_with, is_whole
from messaging.history import listing
from messaging.models import InboxMessage, OutboxMessage
from messaging.monitoring import status
from messaging.relay import leases, statements
from messaging.worker import ledger, ordering
from tests.support.consuming import Noted, a_consumer, a_delivery, look_after
from tests.support.running import add

pytestmark = pytest.mark.django_db

CONSUMER = a_consumer()
WAITING = InboxMessage(consumer="notes", message_id="waits", ordering_key="W-1", position=2**31, state="waiting")


def claim() -> None:
    leases.claim(500, 30)


def claim_effects() -> None:
    ledger.claim(Q(consumer__in=["notes"]), 8)


def claim_effects_of_a_message() -> None:
    ledger.claim(Q(consumer="notes", message_id__in=["message"]), 8)


def look_for_predecessors() -> None:
    with transaction.atomic():
        ordering.has_predecessors(CONSUMER, WAITING)


def release_the_next() -> None:
    with transaction.atomic():
        ordering.release_next(CONSUMER, "W-1")


def upkeep_once() -> None:
    look_after([CONSUMER])


def look_at_the_boxes() -> None:
    status.boxes()


EVERY_SECOND = [claim, claim_effects, upkeep_once, look_at_the_boxes]
EVERY_MESSAGE = [claim_effects_of_a_message, look_for_predecessors, release_the_next]


@pytest.mark.parametrize("run", [*EVERY_SECOND, *EVERY_MESSAGE])
def test_no_table_is_read_from_end_to_end(run: Callable[[], None]) -> None:
    (row,) = add(Noted(text="x"), ordering_key="W-1")
    assert row.pk
    InboxMessage.objects.create(consumer="notes", message_id=a_delivery().message_id, state="handled")

    looked = [each for each in plans(run) if "messaging_" in each]

    assert looked
    assert [plan for plan in looked if reads_a_whole_table(plan)] == []


def test_a_claim_takes_its_batch_from_the_index_however_many_rows_wait() -> None:
    """Else each of many batches would read, and sort, all that wait."""
    (plan,) = [each for each in plans(claim) if "messaging_" in each]
    assert "outbox_waiting" in plan
    # The rows that it has chosen, a batch at most, are sorted once more.
    assert "TEMP B-TREE" not in plan.partition("SCAN due")[0]


@pytest.mark.only_on("postgresql")
def test_a_confirmed_row_is_not_compared_with_all_others_of_its_batch_when_it_is_marked() -> None:
    """Of tokens PostgreSQL's statistics know nothing: it may expect a single row with one, where there are 500."""
    rows = [OutboxMessage(message_id=f"m-{each}", type="test.noted", body=b"x" * 500) for each in range(3000)]
    OutboxMessage.objects.bulk_create(rows)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE messaging_outboxmessage")
    for _ in range(5):
        claimed = leases.claim(500, 30)
        marked = [(row.pk, 0) for row in claimed], claimed[0].lease_token, ["notes"]

        plan = plans(lambda: statements.mark_published(*marked), whole_tables=True)  # noqa: B023 (called at once)

        assert "Join Filter" not in "".join(plan)


def search_by_beginning() -> None:
    matches = begins_with("W-1")
    OutboxMessage.objects.filter(matches("subject") | matches("message_id")).exists()
    InboxMessage.objects.filter(matches("subject") | matches("message_id")).exists()


def search_as_a_whole() -> None:
    matches = is_whole("W-1")
    OutboxMessage.objects.filter(matches("subject") | matches("message_id")).exists()
    InboxMessage.objects.filter(matches("subject") | matches("message_id")).exists()


def received_lately() -> None:
    list(InboxMessage.objects.filter(received_at__gte=now()).order_by().values_list("pk", flat=True)[:10])


def list_a_subject() -> None:
    listing.newest(Selection(subject="W-1"), 50)


@pytest.mark.parametrize(
    ("run", "indexes"),
    [
        (search_by_beginning, ["outbox_subject_begins", "outbox_message_id_begins", "inbox_subject_begins"]),
        (search_as_a_whole, ["outbox_subject_begins", "outbox_message_id_begins", "inbox_subject_begins"]),
        (received_lately, ["inbox_received"]),
        (list_a_subject, ["outbox_subject_begins", "inbox_subject_begins"]),
    ],
)
def test_what_a_list_looks_for_is_found_by_an_index(run: Callable[[], None], indexes: list[str]) -> None:
    found = plans(run)

    assert [each for each in indexes if each not in "".join(found)] == []
    assert [plan for plan in found if reads_a_whole_table(plan)] == []


def list_messages() -> None:
    listing.newest(Selection(message_ids=["m-1", "m-2"]), 50)


@pytest.mark.parametrize("run", [list_a_subject, list_messages])
def test_a_list_of_few_messages_does_not_read_all_of_a_state(run: Callable[[], None]) -> None:
    assert [plan for plan in plans(run) if "state_created" in plan or "state_changed" in plan] == []


def plans(run: Callable[[], None], *, whole_tables: bool = False) -> list[str]:
    """What the database would do for each statement, were its tables large. With `whole_tables` it may read one."""
    statements: list[tuple[str, Any]] = []

    def remember(execute: Callable[..., Any], sql: str, parameters: Any, many: bool, context: Any) -> Any:
        statements.append((sql, parameters))
        return execute(sql, parameters, many, context)

    with connection.execute_wrapper(remember):
        run()
    explain = "EXPLAIN QUERY PLAN" if connection.vendor == "sqlite" else "EXPLAIN"
    found = []
    with transaction.atomic(), connection.cursor() as cursor:
        if connection.vendor == "postgresql" and not whole_tables:
            cursor.execute("SET LOCAL enable_seqscan = off")  # it would read tables as small as these
        for sql, parameters in statements:
            if sql.split()[0] in {"SELECT", "UPDATE", "WITH"}:
                cursor.execute(f"{explain} {sql}", parameters)
                found.append("\n".join(str(line[-1]) for line in cursor.fetchall()))
    return found


def reads_a_whole_table(plan: str) -> bool:
    """SQLite says SCAN, unless it stays within a partial index; a range of row ids is most of a table, too."""
    if connection.vendor == "postgresql":
        return "Seq Scan" in plan
    lines = plan.splitlines()
    return any(
        ("SCAN messaging_" in line and "USING" not in line) or "INTEGER PRIMARY KEY (rowid<?)" in line for line in lines
    )


def test_an_upkeep_that_finds_nothing_due_is_a_single_statement(django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(1):
        look_after([CONSUMER])

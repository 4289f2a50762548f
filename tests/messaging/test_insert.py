"""The outbox's own INSERT stores exactly what Django's would, and names only what differs from its default."""

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.db import IntegrityError, connection, transaction
from django.db.transaction import TransactionManagementError
from django.test.utils import CaptureQueriesContext

from messaging import database
from messaging.models import OutboxMessage
from messaging.models.columns import UTCDateTimeField
from messaging.models.insert import insert

pytestmark = pytest.mark.django_db(transaction=True)

NEEDED: dict[str, Any] = {"type": "test.noted", "routing_key": "test.noted", "body": b'{"text": "\xc3\xa9\x00"}'}
EVERY_COLUMN: dict[str, Any] = {
    **NEEDED, "version": 3, "subject": "W-1 %s ü", "correlation_id": "c", "exchange": "orders", "ordering_key": "k",
    "position": 7, "priority": 0, "attempt": 2, "consumer": "sms", "origin": OutboxMessage.Origin.RETRY,
    "headers": {"x": ["ü", 1, 1.5, None, True, {"": "\\"}]}, "lease_token": uuid4(),
}  # fmt: skip
TIMES = {field.column for field in OutboxMessage._meta.fields if isinstance(field, UTCDateTimeField)}
LATER = timedelta(seconds=1234.5)


@pytest.fixture
def server_side_binding(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As with this of psycopg's options: the server puts the parameters in."""
    connection.close()
    monkeypatch.setitem(connection.settings_dict["OPTIONS"], "server_side_binding", True)
    yield
    connection.close()


def a_row(**columns: Any) -> OutboxMessage:
    return OutboxMessage(**{"message_id": "m-1", **NEEDED, **columns})


def inserted(*rows: OutboxMessage, **from_now: timedelta) -> list[OutboxMessage]:
    with transaction.atomic():
        insert(rows, connection, **from_now)
    return list(rows)


def stored(key: int) -> dict[str, Any]:
    """The columns of a row as the database shows them, with their types. Of a time its form, without digits."""
    columns = sorted(field.column for field in OutboxMessage._meta.fields if field.column != "id")
    shown = "quote({})" if connection.vendor == "sqlite" else "{}::text"
    listed = ", ".join(shown.format(column) for column in columns)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {listed} FROM messaging_outboxmessage WHERE id = %s", [key])
        row = dict(zip(columns, cursor.fetchone(), strict=True))
    return {name: re.sub(r"\.\d+|\d", "", text) if name in TIMES and text else text for name, text in row.items()}


def assert_stored_as_by_django() -> None:
    for columns in (NEEDED, EVERY_COLUMN):
        ours, leased, delayed = (
            *inserted(a_row(**columns)),
            *inserted(a_row(**columns), lease_until=LATER),
            *inserted(a_row(**columns), publish_at=LATER),
        )
        by_django = OutboxMessage.objects.bulk_create(
            a_row(**columns, **given)
            for given in (
                {},
                {"lease_until": database.in_future(LATER.total_seconds())},
                {"publish_at": database.in_future(LATER.total_seconds())},
            )
        )
        assert [stored(row.pk) for row in (ours, leased, delayed)] == [stored(row.pk) for row in by_django]


def test_a_row_is_stored_as_django_stores_it() -> None:
    assert_stored_as_by_django()


@pytest.mark.only_on("postgresql")
def test_a_row_is_stored_as_django_stores_it_with_server_side_binding(server_side_binding: None) -> None:
    assert_stored_as_by_django()


@pytest.mark.parametrize("use_tz", [True, False])
def test_the_rows_have_their_keys_and_times(settings: Any, use_tz: bool) -> None:
    settings.USE_TZ, settings.TIME_ZONE = use_tz, "Asia/Shanghai"
    rows = inserted(*(a_row(subject=f"n-{number}") for number in range(3)))
    rows += inserted(a_row(), publish_at=LATER) + inserted(a_row(), lease_until=LATER)
    for row in rows:
        there = OutboxMessage.objects.get(pk=row.pk)
        with CaptureQueriesContext(connection) as asked:
            assert (row.subject, row.created_at, row.publish_at) == (there.subject, there.created_at, there.publish_at)
            assert not row._state.adding
        assert not asked.captured_queries
        assert row.lease_until == there.lease_until
    assert [row.pk for row in rows] == sorted(row.pk for row in rows)
    assert abs(rows[3].publish_at - rows[3].created_at - LATER) < timedelta(milliseconds=2)
    assert abs(rows[4].lease_until - rows[4].created_at - LATER) < timedelta(milliseconds=2)


def test_the_statement_names_only_what_differs_from_its_default() -> None:
    with CaptureQueriesContext(connection) as asked:
        inserted(a_row(), a_row(subject="n-2"))
    [statement] = [each["sql"] for each in asked if each["sql"].startswith("INSERT")]
    assert [name in statement for name in ("subject", "attempt", "headers", "state", "lease_token")] == [True] + [
        False
    ] * 4
    assert list(OutboxMessage.objects.order_by("pk").values_list("subject", flat=True)) == ["", "n-2"]


def test_a_process_of_another_version_may_leave_out_every_column_with_a_default() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO messaging_outboxmessage (message_id, type, routing_key, body) VALUES (%s, %s, %s, %s)",
            ["m-1", *NEEDED.values()],
        )
    [row] = OutboxMessage.objects.all()
    assert stored(row.pk) == stored(inserted(a_row())[0].pk)
    assert (row.state, row.headers, row.expected_consumers, row.subject) == ("pending", {}, [], "")


def test_more_rows_than_a_statement_has_room_for_become_several_statements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection.features, "max_query_params", 100)
    with CaptureQueriesContext(connection) as asked:
        rows = inserted(*(a_row(subject=f"n-{number}") for number in range(101)))
        inserted(*(a_row(message_id="m-2", subject=f"n-{number}") for number in range(101)), publish_at=LATER)
    # Five columns, and a sixth parameter for the time: 20 rows a statement, then 16.
    assert sum(each["sql"].startswith("INSERT") for each in asked) == 6 + 7
    OutboxMessage.objects.filter(message_id="m-2").delete()
    assert {row.pk: row.subject for row in rows} == dict(OutboxMessage.objects.values_list("pk", "subject"))
    assert len({row.pk for row in rows}) == 101


def test_an_error_leaves_nothing_to_commit_even_where_it_is_caught() -> None:
    with transaction.atomic():
        inserted(a_row())
        with pytest.raises(IntegrityError):
            insert([a_row(type=None)], connection)
        with pytest.raises(TransactionManagementError):
            OutboxMessage.objects.exists()
    assert not OutboxMessage.objects.exists()

"""Counts of each minute: what processes count, and what pages show of it."""

import os
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import DatabaseError, connection, transaction
from django.test import Client
from django.utils.timezone import now

from messaging.actions.prune import prune
from messaging.models import MinuteCount
from messaging.models import counts as counts_module
from messaging.models.counts import Counting
from messaging.monitoring.activity import activity

What = MinuteCount.What
pytestmark = pytest.mark.django_db


def written() -> Counter[tuple[str, str]]:
    """What is in the table; a test may cross from one minute to the next."""
    found: Counter[tuple[str, str]] = Counter()
    for row in MinuteCount.objects.all():
        found[row.what, row.name] += row.number
    return found


def test_what_is_counted_is_added_to_what_other_processes_have_written() -> None:
    for _ in range(2):
        process = Counting()
        process.add(What.HANDLED, "sms", 3)
        process.add(What.HANDLED, "sms")
        process.add(What.FAILED, "sms")
        process.write(connection)
        process.write(connection)
    assert written() == {("handled", "sms"): 8, ("failed", "sms"): 2}
    assert MinuteCount.objects.count() in {2, 4}
    assert all(row.minute.second == row.minute.microsecond == 0 for row in MinuteCount.objects.all())


def test_counts_are_due_once_there_are_some_and_then_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(counts_module.time, "monotonic", lambda: clock[0])
    process = Counting()
    assert not process.is_due
    process.add(What.HANDLED, "sms")
    assert process.is_due
    process.write(connection)
    process.add(What.HANDLED, "sms")
    assert not process.is_due
    clock[0] += counts_module.WRITE_EVERY
    assert process.is_due


def test_counts_that_could_not_be_written_are_written_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Counting()
    process.add(What.PUBLISHED, "orders.events", 2)
    with monkeypatch.context() as patch:
        patch.setattr(connection, "cursor", lambda: _raise(DatabaseError("no table")))
        with pytest.raises(DatabaseError):
            process.write(connection)
    process.add(What.PUBLISHED, "orders.events")
    process.write(connection)
    assert written() == {("published", "orders.events"): 3}


def _raise(error: Exception) -> Any:
    raise error


def test_a_child_process_does_not_write_what_its_parent_has_counted_nor_wait_for_its_lock() -> None:
    process = Counting()
    process.add(What.HANDLED, "sms", 5)
    with process._lock:
        process.reset()
        process.add(What.HANDLED, "sms")
    process.write(connection)
    assert written() == {("handled", "sms"): 1}


def test_each_child_process_begins_anew() -> None:
    counts_module.counting.add(What.HANDLED, "parent")
    reading, writing = os.pipe()
    if not (child := os.fork()):
        os.write(writing, str(len(counts_module.counting._counts)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 10) == b"0"
    assert counts_module.counting._counts["handled", "parent"] == 1
    counts_module.counting.reset()
    os.close(reading)
    os.close(writing)


def test_a_name_of_any_length_is_counted() -> None:
    process = Counting()
    process.add(What.HANDLED, "x" * 1000)
    process.write(connection)
    assert written() == {("handled", "x" * 255): 1}


def test_old_counts_are_pruned() -> None:
    young = count(now() - timedelta(days=7))
    count(now() - timedelta(days=9))
    prune.run()
    assert list(MinuteCount.objects.all()) == [young]


def count(minute: datetime, what: What = What.HANDLED, name: str = "sms", number: int = 1) -> MinuteCount:
    minute = minute.replace(second=0, microsecond=0)
    return MinuteCount.objects.create(minute=minute, what=what, name=name, number=number)


# --- What is shown -----------------------------------------------------------------------------------------

NOON = datetime(2026, 3, 1, 12, 7, 30, tzinfo=UTC)


def test_an_hour_is_shown_minute_by_minute_up_to_the_last_that_is_over() -> None:
    for minutes, what, name, number in (
        (61, What.HANDLED, "sms", 1000),
        (60, What.HANDLED, "sms", 1),
        (1, What.HANDLED, "sms", 2),
        (1, What.HANDLED, "red_packet", 3),
        (1, What.EFFECT_FAILED, "sms", 4),
        (2, What.FAILED, "sms", 5),
        (2, What.EFFECT_DONE, "sms", 1000),
        (0, What.PUBLISHED, "orders.events", 1000),
    ):
        count(NOON - timedelta(minutes=minutes), what, name, number)
    shown = activity(NOON, 1)
    assert (shown.until, shown.until - shown.since) == (NOON.replace(second=0), timedelta(hours=1))
    assert shown.lines["handled"] == [1, *[0] * 58, 5]
    assert shown.lines["failed"] == [*[0] * 58, 5, 4]
    assert shown.lines["published"] == [0] * 60
    assert shown.most == 5


def test_a_day_is_shown_in_steps_of_ten_minutes() -> None:
    for minutes in (8, 17, 18, 24 * 60 + 7):
        count(NOON - timedelta(minutes=minutes))
    shown = activity(NOON, 24)
    assert (shown.until, len(shown.lines["handled"])) == (NOON.replace(minute=0, second=0), 144)
    assert shown.lines["handled"] == [1, *[0] * 141, 1, 2]


def test_the_overview_draws_the_last_hour_or_day_and_says_it_in_words(admin_client: Client) -> None:
    address = "/admin/messaging/"
    assert "<polyline" not in admin_client.get(address).content.decode()
    count(now() - timedelta(minutes=2), number=30)
    count(now() - timedelta(hours=5), What.FAILED, number=7)
    for hours, failed, most in ((1, 0, "30"), (24, 7, "3")):
        response = admin_client.get(f"{address}?hours={hours}")
        chart = response.context["overview"].chart
        assert [(line.name, line.total) for line in chart.lines] == [
            ("published", 0), ("handled", 30 if _is_over(response) else 0), ("failed", failed),
        ]  # fmt: skip
        assert chart.most in {most, "0.7"}
        page = response.content.decode()
        assert page.count("<polyline") == 3
        assert f"{failed} failed" in page


def _is_over(response: Any) -> bool:
    """Whether the step of the newest count is over, and shown."""
    chart = response.context["overview"].chart
    newest = MinuteCount.objects.latest("minute").minute
    return bool(newest < chart.until)


@pytest.mark.only_on("postgresql")
@pytest.mark.django_db(transaction=True)
def test_a_row_that_another_session_holds_is_not_waited_for() -> None:
    process = Counting()
    process.add(What.HANDLED, "sms")
    holder = connection.copy()
    try:
        holder.set_autocommit(False)
        with holder.cursor() as cursor:
            cursor.execute(f"LOCK TABLE {MinuteCount._meta.db_table}")
        with pytest.raises(DatabaseError, match="lock timeout"), transaction.atomic():
            process.write(connection)
    finally:
        holder.rollback()
        holder.close()
    process.write(connection)
    assert written() == {("handled", "sms"): 1}

"""The outbox: events commit with what they report, or not at all."""

import os
import threading
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import structlog
from django.db import DatabaseError, connections, router, transaction
from django.test import TestCase
from django.utils import timezone

from messaging import conf, outbox
from messaging.broker.publisher import Outcome, Status
from messaging.exceptions import BodyTooLarge, OutsideTransaction
from messaging.models import OutboxMessage
from messaging.relay import leases
from messaging.relay import thread as relay_thread
from messaging.relay.destinations import publishing_of
from tests.support.consuming import Noted, an_inbox_row
from tests.support.running import InThread

FOREVER = 3600.0


class Handed:
    """Replaces the relay thread, and keeps what it is handed."""

    def __init__(self) -> None:
        self.rows: list[OutboxMessage] = []

    def __call__(self, rows: list[OutboxMessage], leased_at: float) -> None:
        self.rows += rows


@pytest.fixture
def handed(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Handed:
    """As in a long-lived process whose relay thread is on."""
    settings.MESSAGING = {**settings.MESSAGING, "RELAY_THREAD": True}
    monkeypatch.setattr(relay_thread._mine, "long_lived", True)
    spy = Handed()
    monkeypatch.setattr(relay_thread, "hand_over", spy)
    return spy


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A second database, beside the outbox's; its alias."""
    given = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
    connections.settings["reports"] = connections.configure_settings({"default": {}, "reports": given})["reports"]
    connections["reports"].connect()
    # Django asks here whether the test may use the database; the test was declared before it was there.
    monkeypatch.setattr(connections["reports"], "ensure_connection", lambda: None)
    yield "reports"
    connections["reports"].close()
    del connections["reports"], connections.settings["reports"]


def add_and_fail(text: str) -> None:
    with transaction.atomic():
        outbox.add(Noted(text=text))
        raise ZeroDivisionError


class InsideTestCase(TestCase):
    """Django's own blocks around a test never commit: they do not count as a transaction."""

    def test_an_event_outside_a_transaction_is_refused(self) -> None:
        with pytest.raises(OutsideTransaction, match=r"transaction\.atomic"):
            outbox.add(Noted(text="x"))

    def test_an_event_inside_a_transaction_is_taken(self) -> None:
        with transaction.atomic():
            outbox.add(Noted(text="x"))
        assert OutboxMessage.objects.count() == 1

    def test_several_events_are_one_statement(self) -> None:
        with transaction.atomic(), self.assertNumQueries(1):
            outbox.add(Noted(text="x"), Noted(text="y"), Noted(text="z"), subject="n-1")
        assert OutboxMessage.objects.filter(subject="n-1").count() == 3


@pytest.mark.django_db
@pytest.mark.parametrize("given", [Noted, [Noted(text="x")], {"text": "x"}, None])
def test_anything_but_an_event_is_refused(given: Any) -> None:
    with transaction.atomic(), pytest.raises(ValueError, match="takes events, each an argument of its own, not"):
        outbox.add(given)


@pytest.mark.django_db(transaction=True)
def test_beside_another_databases_transaction_an_event_is_taken_only_if_its_database_is_named(reports: str) -> None:
    """As under ATOMIC_REQUESTS: the transaction of the outbox's database is open around that of the other one."""
    with (
        transaction.atomic(),
        transaction.atomic(using=reports),
        pytest.raises(OutsideTransaction, match=r"'reports' is open too.*using=\"default\""),
    ):
        outbox.add(Noted(text="x"))
    with transaction.atomic(using=reports), pytest.raises(OutsideTransaction, match=r"of the database 'default'"):
        outbox.add(Noted(text="x"))
    with transaction.atomic(), pytest.raises(OutsideTransaction, match=r"cannot commit together .* in 'reports'"):
        outbox.add(Noted(text="x"), using=reports)
    assert not OutboxMessage.objects.exists()

    with transaction.atomic(using=reports), transaction.atomic():
        outbox.add(Noted(text="x"), using="default")
    with transaction.atomic():
        outbox.add(Noted(text="the other one is over"))
    block_of_a_test_case = transaction.atomic(using=reports)
    block_of_a_test_case._from_testcase = True  # type: ignore[attr-defined]
    with block_of_a_test_case, transaction.atomic():
        outbox.add(Noted(text="x"))
    assert OutboxMessage.objects.count() == 3


@pytest.mark.django_db(transaction=True)
def test_a_rollback_leaves_no_rows_and_hands_over_none(handed: Handed) -> None:
    with pytest.raises(ZeroDivisionError):
        add_and_fail("x")
    assert not OutboxMessage.objects.exists()
    assert handed.rows == []

    with transaction.atomic():
        kept = outbox.add(Noted(text="kept"))
        with pytest.raises(ZeroDivisionError):
            add_and_fail("gone")
    assert list(OutboxMessage.objects.all()) == handed.rows == kept


@pytest.mark.django_db(transaction=True)
def test_rows_are_leased_to_the_process_that_writes_them_and_handed_over_at_the_commit(handed: Handed) -> None:
    with transaction.atomic():
        rows = outbox.add(Noted(text="x"), Noted(text="y"), subject="n-1", correlation_id="c-1")
        assert handed.rows == []
    assert handed.rows == rows
    stored = list(OutboxMessage.objects.order_by("pk"))
    assert [publishing_of(row) for row in handed.rows] == [publishing_of(row) for row in stored]
    assert stored[0].lease_token == relay_thread.lease_token()
    assert stored[0].lease_until is not None
    assert stored[0].lease_until > timezone.now()
    assert leases.claim(10, FOREVER) == []


@pytest.mark.django_db(transaction=True)
def test_rows_are_handed_over_at_the_commit_of_the_database_that_holds_the_outbox(
    handed: Handed, reports: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router, "db_for_write", lambda *_, **__: reports)
    with connections[reports].schema_editor() as schema:
        schema.create_model(OutboxMessage)
    with transaction.atomic(using=reports):
        with transaction.atomic():
            rows = outbox.add(Noted(text="x"), using=reports)
        assert handed.rows == []
    assert handed.rows == rows


@pytest.mark.django_db(transaction=True)
def test_an_error_leaves_nothing_to_commit_in_the_database_that_holds_the_outbox(
    reports: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router, "db_for_write", lambda *_, **__: reports)
    with transaction.atomic(using=reports):
        with pytest.raises(DatabaseError, match="no such table"):
            outbox.add(Noted(text="x"), using=reports)
        assert transaction.get_rollback(using=reports)


@pytest.mark.django_db(transaction=True)
def test_a_relay_that_fails_at_the_commit_fails_neither_the_transaction_nor_the_callbacks_of_the_project(
    handed: Handed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_thread, "hand_over", lambda *_: 1 / 0)
    called: list[str] = []
    with transaction.atomic():
        outbox.add(Noted(text="x"))
        transaction.on_commit(lambda: called.append("the project's"))
    assert called
    assert OutboxMessage.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize("body", [None, b""])
def test_a_message_without_a_body_is_sent_again_without_one(body: bytes | None) -> None:
    with transaction.atomic():
        outbox.resend(an_inbox_row(body=body), consumer="notes", queue="notes", origin=OutboxMessage.Origin.REPLAY)
    assert publishing_of(OutboxMessage.objects.get()).message.body == b""


@pytest.mark.django_db
def test_without_a_relay_thread_rows_are_free_and_any_relay_claims_them() -> None:
    with transaction.atomic(), structlog.contextvars.bound_contextvars(request_id="req-7"):
        [row] = outbox.add(Noted(text="x"))
    assert OutboxMessage.objects.get().lease_token is None
    [claimed] = leases.claim(10, FOREVER)
    message = publishing_of(claimed).message
    assert (claimed.pk, message.id, message.body) == (row.pk, row.message_id, row.body)
    assert (message.timestamp, message.request_id) == (row.created_at.replace(microsecond=0), "req-7")


@pytest.mark.django_db
def test_a_delayed_event_waits_in_the_table(handed: Handed) -> None:
    with transaction.atomic():
        outbox.add(Noted(text="x"), delay=timedelta(hours=1))
    row = OutboxMessage.objects.get()
    assert abs(row.publish_at - timezone.now() - timedelta(hours=1)) < timedelta(minutes=1)
    assert row.lease_token is None
    assert handed.rows == []
    assert leases.claim(10, FOREVER) == []
    OutboxMessage.objects.update(publish_at=timezone.now() - timedelta(seconds=1))
    assert [each.pk for each in leases.claim(10, FOREVER)] == [row.pk]


@pytest.mark.django_db
@pytest.mark.parametrize("delay", [timedelta.min, timedelta(0)])
def test_an_event_whose_delay_is_over_is_published_at_once(handed: Handed, delay: timedelta) -> None:
    with transaction.atomic():
        [row] = outbox.add(Noted(text="x"), delay=delay)
    assert row.lease_token is not None, "it is handed over like any other"


@pytest.mark.django_db
def test_a_body_over_the_limit_is_refused_and_says_what_to_do(settings: Any) -> None:
    largest = Noted(text="é" * 600)
    settings.MESSAGING = {**settings.MESSAGING, "MAX_BODY_BYTES": len(largest.encode())}
    with transaction.atomic():
        with pytest.raises(BodyTooLarge, match="MAX_BODY_BYTES"):
            outbox.add(Noted(text="é" * 600 + "x"))
        outbox.add(largest)
    assert OutboxMessage.objects.count() == 1


@pytest.mark.django_db
def test_an_event_carries_what_readers_need() -> None:
    with transaction.atomic(), structlog.contextvars.bound_contextvars(request_id="req-7"):
        outbox.add(Noted(text="x"), subject="n-1", correlation_id="c-1", priority=7)
    row = OutboxMessage.objects.get()
    publishing = publishing_of(row)
    message = publishing.message
    assert (publishing.exchange, publishing.routing_key) == ("orders.events", "test.noted")
    assert publishing.key == message.headers["x-outbox-id"] == str(row.pk)
    assert (message.app_id, message.priority) == (conf.get().app_id, 7)
    assert (message.type, message.version, message.attempt, message.subject) == ("test.noted", 1, 1, "n-1")
    assert (message.correlation_id, message.persistent, message.content_type) == ("c-1", True, "application/json")
    assert (message.timestamp, message.request_id) == (row.created_at, "req-7")
    assert uuid.UUID(message.id).version == 7


@pytest.mark.django_db(transaction=True)
def test_relays_that_claim_at_once_claim_each_row_once() -> None:
    with transaction.atomic():
        outbox.add(*[Noted(text=str(number)) for number in range(100)])
    start = threading.Barrier(4)

    def claim_all() -> list[list[int]]:
        start.wait()
        return list(iter(lambda: [row.pk for row in leases.claim(7, FOREVER)], []))

    relays = [InThread(claim_all, "relay") for _ in range(4)]
    claims = [claim for each in relays for claim in each.join()]
    ids = [pk for claim in claims for pk in claim]
    assert len(ids) == len(set(ids)) == 100
    assert max(map(len, claims)) <= 7


@pytest.mark.django_db
def test_a_row_whose_lease_has_ended_is_claimed_and_the_late_mark_of_its_old_holder_changes_nothing() -> None:
    with transaction.atomic():
        outbox.add(Noted(text="x"))
    [stale] = leases.claim(10, -1.0)
    [held] = leases.claim(10, FOREVER)
    confirmed = Outcome(Status.CONFIRMED)

    leases.write([leases.Mark(stale, confirmed, ())])
    leases.write([leases.Mark(stale, Outcome(Status.RETURNED, "312"), ())])
    row = OutboxMessage.objects.get()
    assert (row.state, row.publish_attempts, row.lease_token) == ("pending", 0, held.lease_token)

    leases.write([leases.Mark(held, confirmed, ("notes",))])
    row.refresh_from_db()
    assert (row.state, row.publish_attempts, row.lease_token) == ("published", 1, None)
    assert row.expected_consumers == ["notes"]


def test_a_forked_child_has_a_relay_and_a_token_of_its_own_although_its_parent_held_the_lock(handed: Handed) -> None:
    parent = relay_thread.lease_token()
    with relay_thread._mine.lock:
        child = os.fork()
        if child == 0:
            own = relay_thread._mine
            free = own.lock.acquire(timeout=10)
            os._exit(0 if free and own.relay is None and relay_thread.lease_token() not in {None, parent} else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

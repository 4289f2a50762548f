"""What becomes of a delivery when handlers and databases behave badly."""

import asyncio
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import timedelta
from typing import Any

import pytest
from django.db import DatabaseError, IntegrityError, OperationalError, connection, connections
from django.utils import timezone
from structlog.testing import capture_logs

from messaging import database
from messaging.exceptions import Reject, RetryLater
from messaging.message import Delivery
from messaging.models import DeliveryAttempt, InboxMessage, OutboxMessage
from messaging.retry import RetryPolicy
from messaging.worker import database_wait, handling, inbox
from messaging.worker.database_wait import DatabaseAway
from tests.support.consuming import Noted, a_consumer, a_delivery, a_message, note, notes
from tests.support.missing_table import missing_table
from tests.support.waiting import eventually

pytestmark = pytest.mark.django_db(transaction=True)

CONSUMER = a_consumer()


def raising(error: BaseException, *, times: int = 1_000_000) -> Any:
    """A handler that notes and raises, the first `times` times."""
    left = [times]

    def handler(event: Noted, delivery: Delivery) -> None:
        note(event.text)
        if left[0] > 0:
            left[0] -= 1
            raise error

    return handler


def test_a_rejected_message_is_dead_at_once() -> None:
    assert handling.handle(a_consumer(raising(Reject("no such order"))), a_delivery()) == "dead"
    assert InboxMessage.objects.get().reason == "no such order"
    assert not OutboxMessage.objects.exists()


def test_a_handler_that_fails_after_a_commit_of_its_own_is_in_the_log() -> None:
    """The message counts as handled: its row was committed along."""

    def handler(event: Noted, delivery: Delivery) -> None:
        with connection.cursor() as cursor:
            cursor.execute("COMMIT")
        raise ValueError("too late")

    with capture_logs() as lines:
        assert handling.handle(a_consumer(handler), a_delivery()) == "duplicate"
    assert [line["reason"] for line in lines if line["log_level"] == "error"] == ["ValueError: too late"]


def test_a_reject_without_a_reason_is_named() -> None:
    assert handling.handle(a_consumer(raising(Reject())), a_delivery()) == "dead"
    assert InboxMessage.objects.get().reason == "Reject"


def test_retry_later_is_retried_at_the_time_the_handler_chose() -> None:
    consumer = a_consumer(raising(RetryLater("gateway busy", after=timedelta(hours=1))))
    assert handling.handle(consumer, a_delivery()) == "retrying"
    waits = OutboxMessage.objects.get().publish_at - timezone.now()
    assert timedelta(minutes=59) < waits <= timedelta(hours=1)
    assert "gateway busy" in InboxMessage.objects.get().reason


@pytest.mark.parametrize("error", [SystemExit(1), asyncio.CancelledError(), GeneratorExit()])
def test_a_handler_that_exits_has_failed_and_its_thread_goes_on(error: BaseException) -> None:
    assert handling.handle(a_consumer(raising(error)), a_delivery()) == "retrying"
    assert type(error).__name__ in InboxMessage.objects.get().reason
    assert notes() == 0


def test_a_handler_that_exits_in_a_batch_only_rolls_the_batch_back() -> None:
    consumer = a_consumer(raising(SystemExit(1), times=1), batch=2)
    assert handling.handle_together(consumer, [a_delivery(), a_delivery()]) is None
    assert notes() == 0


def test_a_deadlock_is_tried_again_and_costs_no_attempt() -> None:
    consumer = a_consumer(raising(OperationalError("deadlock detected"), times=2))
    assert handling.handle(consumer, a_delivery()) == "handled"
    assert notes("hello") == 1
    assert DeliveryAttempt.objects.get().number == 1


def test_a_deadlock_that_lasts_is_a_failed_attempt() -> None:
    assert handling.handle(a_consumer(raising(OperationalError("deadlock detected"))), a_delivery()) == "retrying"
    assert DeliveryAttempt.objects.get().outcome == "failed"


def test_a_lock_timeout_while_a_failure_is_recorded_kills_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(*_: object, **__: object) -> None:
        raise OperationalError("database is locked")

    delivery = a_delivery()
    with monkeypatch.context() as patch:
        patch.setattr(inbox, "expect_next", locked)
        with pytest.raises(DatabaseAway):
            handling.handle(a_consumer(raising(ValueError("x"))), delivery)
    assert not InboxMessage.objects.exists()
    assert handling.handle(CONSUMER, delivery) == "handled"


def test_a_lock_timeout_while_a_start_is_counted_kills_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(*_: object) -> None:
        raise OperationalError("database is locked")

    with monkeypatch.context() as patch:
        patch.setattr(inbox, "start", locked)
        with pytest.raises(DatabaseAway):
            handling.handle(CONSUMER, a_delivery(redelivered=True))
    assert not InboxMessage.objects.exists()


def test_a_database_without_our_tables_decides_nothing() -> None:
    with missing_table(InboxMessage), pytest.raises(DatabaseAway):
        handling.handle(CONSUMER, a_delivery())


def full_disk() -> OperationalError:
    """What Django makes of a database that is full; by a real one, which is not ours."""
    with closing(sqlite3.connect(":memory:")) as other:
        other.execute("CREATE TABLE t (x)")
        other.execute("PRAGMA max_page_count = 2")
        try:
            other.execute("INSERT INTO t VALUES (zeroblob(100000))")
        except sqlite3.OperationalError as error:
            found = OperationalError(str(error))
            found.__cause__ = error
            return found
    raise AssertionError("it took more than it has room for")


@pytest.mark.parametrize("table", ["inboxmessage", "deliveryattempt"], ids=["before the handler", "after it"])
def test_a_disk_that_is_full_for_a_moment_costs_no_attempt(table: str) -> None:
    """There is room again when the failure would be recorded."""
    failing = [f'INSERT INTO "messaging_{table}"']

    def fail_once(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
        if failing and sql.startswith(failing[0]):
            failing.clear()
            raise full_disk()
        return execute(sql, *rest)

    delivery = a_delivery()
    with connection.execute_wrapper(fail_once), pytest.raises(DatabaseAway, match="full"):
        handling.handle(CONSUMER, delivery)
    assert not failing
    assert not DeliveryAttempt.objects.exists()
    assert handling.handle(CONSUMER, delivery) == "handled"


def test_a_disk_that_is_full_at_the_commit_costs_no_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        full.undo()
        raise full_disk()

    with monkeypatch.context() as full:
        full.setattr(connection, "commit", fail)
        with pytest.raises(DatabaseAway, match="full"):
            handling.handle(CONSUMER, a_delivery())
    assert not DeliveryAttempt.objects.exists()


def test_a_full_disk_in_the_handler_is_a_failed_attempt() -> None:
    """Else one such message would hold its consumer up for ever."""
    assert handling.handle(a_consumer(raising(full_disk())), a_delivery()) == "retrying"
    assert DeliveryAttempt.objects.get().outcome == "failed"


@pytest.mark.only_on("postgresql")
def test_a_handler_that_makes_its_transaction_read_only_has_failed() -> None:
    def reads(event: Noted, delivery: Delivery) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION READ ONLY")

    assert handling.handle(a_consumer(reads), a_delivery()) == "retrying"
    assert "read-only" in InboxMessage.objects.get().reason


def test_an_integrity_error_of_the_handlers_own_is_a_failed_attempt() -> None:
    assert handling.handle(a_consumer(raising(IntegrityError("taken"))), a_delivery()) == "retrying"


def test_a_handler_that_swallows_a_database_error_fails_with_nothing_written() -> None:
    def careless(event: Noted, delivery: Delivery) -> None:
        note(event.text)
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT nothing FROM nowhere")
        except DatabaseError:
            pass
        note(event.text)

    verdict = handling.handle(a_consumer(careless), a_delivery())
    if connection.vendor == "postgresql":  # where the transaction is broken from there on
        assert verdict == "retrying"
        assert notes() == 0
    else:
        assert verdict == "handled"


def test_a_batch_is_handled_in_one_transaction() -> None:
    deliveries = [a_delivery(a_message(f"m{number}")) for number in range(5)]
    consumer = a_consumer(batch=10)
    assert handling.handle_together(consumer, deliveries) == ["handled"] * 5
    assert handling.handle_together(consumer, deliveries) == ["duplicate"] * 5
    assert notes() == 5


def test_a_message_twice_in_one_batch_has_one_effect() -> None:
    delivery = a_delivery()
    assert handling.handle_together(a_consumer(batch=2), [delivery, delivery]) == ["handled", "duplicate"]
    assert notes("hello") == 1


@pytest.mark.parametrize("bad", [a_message(body=b"{"), a_message(type="test.erased"), a_message("fails")])
def test_one_bad_message_rolls_its_whole_batch_back(bad: Any) -> None:
    def choosy(event: Noted, delivery: Delivery) -> None:
        note(event.text)
        if event.text == "fails":
            raise ValueError("this one")

    deliveries = [a_delivery(a_message("good")), a_delivery(bad), a_delivery(a_message("good"))]
    assert handling.handle_together(a_consumer(choosy, batch=3), deliveries) is None
    assert notes() == 0
    assert not InboxMessage.objects.exists()


@pytest.mark.only_on("postgresql")
def test_a_connection_that_ends_in_the_handler_costs_no_attempt() -> None:
    delivery = a_delivery()
    assert handling.handle(a_consumer(_losing_its_connection()), delivery) == "handled"
    assert notes("hello") == 1
    assert DeliveryAttempt.objects.get().outcome == "handled"


@pytest.mark.only_on("postgresql")
def test_a_connection_that_ends_in_a_batch_rolls_the_batch_back() -> None:
    consumer, deliveries = a_consumer(_losing_its_connection(), batch=2), [a_delivery(), a_delivery()]
    assert handling.handle_together(consumer, deliveries) is None
    assert notes("hello") == 0
    assert handling.handle_together(consumer, deliveries) == ["handled", "handled"]


def closing_its_connections() -> None:
    connections.close_all()


def ending_its_backend() -> None:
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    else:
        connection.close()


def being_idle_for_too_long() -> None:
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SET idle_in_transaction_session_timeout = 1")
        eventually(lambda: _has_ended(connection.connection))
    else:
        connection.close()


def _has_ended(driver: Any) -> bool:
    with suppress(Exception):
        driver.execute("SELECT 1")
    return bool(driver.closed)


LOSSES = [closing_its_connections, ending_its_backend, being_idle_for_too_long]


@pytest.mark.parametrize("lose", LOSSES)
def test_a_handler_that_always_loses_its_connection_has_failed(lose: Callable[[], None]) -> None:
    calls = []

    def handler(event: Noted, delivery: Delivery) -> None:
        calls.append(event.text)
        note(event.text)
        lose()

    verdicts = [handling.handle(a_consumer(handler), a_delivery(a_message(id="m-1"), attempt=n)) for n in (1, 2, 3)]
    assert verdicts == ["retrying", "retrying", "dead"]
    assert len(calls) == 3 * database_wait.LOSS_LIMIT
    row = InboxMessage.objects.get()
    assert f"its connection to the database ended {database_wait.LOSS_LIMIT} times" in row.reason
    assert DeliveryAttempt.objects.count() == 3
    assert notes() == 0


@pytest.mark.parametrize("lose", [closing_its_connections, ending_its_backend])
@pytest.mark.parametrize(
    "kind", [{"broadcast": True, "queue": "", "fenced": False}, {"fenced": False}], ids=["broadcast", "unfenced"]
)
def test_a_lost_connection_ends_the_tries_without_an_inbox_row_too(
    kind: dict[str, Any], lose: Callable[[], None]
) -> None:
    def handler(event: Noted, delivery: Delivery) -> None:
        note("never")
        lose()

    assert handling.handle(a_consumer(handler, **kind), a_delivery()) in {"dropped", "dead"}
    assert notes() == 0


@pytest.mark.parametrize("lose", LOSSES)
def test_a_batch_with_a_lost_connection_is_handled_one_by_one(lose: Callable[[], None]) -> None:
    def handler(event: Noted, delivery: Delivery) -> None:
        note(event.text)
        if event.text == "guilty":
            lose()

    consumer = a_consumer(handler, batch=3)
    deliveries = [a_delivery(a_message(text)) for text in ("innocent", "guilty", "innocent")]
    assert handling.handle_together(consumer, deliveries) is None
    assert [handling.handle(consumer, each) for each in deliveries] == ["handled", "retrying", "handled"]
    assert (notes("innocent"), notes("guilty")) == (2, 0)


def test_a_message_that_always_crashes_the_database_has_failed_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a statement does that crashes the server: it is away for the others too, and back a moment later."""

    def handler(event: Noted, delivery: Delivery) -> None:
        connection.close()

    delivery = a_delivery()
    monkeypatch.setattr(database, "is_reachable", lambda: False)
    for _ in range(database_wait.LOSS_LIMIT):
        with pytest.raises(DatabaseAway):
            handling.handle(a_consumer(handler), delivery)
    assert handling.handle(a_consumer(handler), delivery) == "retrying"
    assert "ended 3 times" in InboxMessage.objects.get().reason


def broken_statement() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT nothing_of_that_name")


class Asking(Exception):
    """An error whose text asks the database, as that of a query set does."""

    def __init__(self, ask: Callable[[], object]) -> None:
        self.ask = ask

    def __str__(self) -> str:
        return str(self.ask())


class Undecided(RetryPolicy):
    def delay_after(self, attempt: int, error: BaseException) -> timedelta | None:
        assert isinstance(error, Asking)
        error.ask()
        return timedelta(hours=1)


@pytest.mark.parametrize("ask", [broken_statement, connections.close_all])
@pytest.mark.parametrize("retry", [RetryPolicy(), Undecided()], ids=["text", "policy"])
def test_an_error_whose_text_breaks_the_database_is_a_failed_attempt(
    ask: Callable[[], object], retry: RetryPolicy
) -> None:
    """In our transaction it would break that: the message would be tried for ever, and all behind it would wait."""
    assert handling.handle(a_consumer(raising(Asking(ask)), retry=retry), a_delivery()) == "retrying"
    assert "Asking" in InboxMessage.objects.get().reason
    assert DeliveryAttempt.objects.get().outcome == "failed"


def test_a_handler_whose_other_database_is_away_has_failed() -> None:
    def handler(event: Noted, delivery: Delivery) -> None:
        raise OperationalError("the reports' server is away")

    assert handling.handle(a_consumer(handler), a_delivery()) == "retrying"


def _become_read_only(*_: object) -> None:
    """As a handler may leave its session, or a primary becomes after a failover."""
    with connection.cursor() as cursor:
        cursor.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")


@pytest.mark.only_on("postgresql")
def test_a_read_only_connection_is_replaced_once_others_can_write() -> None:
    assert handling.handle(a_consumer(_become_read_only), a_delivery()) == "handled"
    for handle in (handling.handle, lambda consumer, delivery: handling.handle_together(consumer, [delivery])):
        with pytest.raises(DatabaseAway, match="read-only"):
            handle(CONSUMER, a_delivery())
        assert handling.handle(CONSUMER, a_delivery()) == "handled"
        _become_read_only()
    with pytest.raises(DatabaseError), database.atomic():
        DeliveryAttempt.objects.all().delete()
    with database.atomic():
        DeliveryAttempt.objects.all().delete()


@pytest.mark.only_on("postgresql")
def test_a_connection_that_ended_between_messages_costs_no_attempt() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
    _end(pid)
    delivery = a_delivery()
    assert handling.handle(CONSUMER, delivery) == "handled"
    assert delivery.tries.losses == 0


@pytest.mark.only_on("postgresql")
def test_a_handler_gets_a_new_connection_to_its_other_database_after_that_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(connections.settings, "reports", connection.settings_dict)
    consumer = a_consumer(_reading_reports)
    with closing(connection.copy()) as reports:
        connections["reports"] = reports
        try:
            assert handling.handle(consumer, a_delivery()) == "handled"
            _end(reports.connection.info.backend_pid)
            assert handling.handle(consumer, a_delivery()) == "handled"
        finally:
            del connections["reports"]


def _reading_reports(event: Noted, delivery: Delivery) -> None:
    with connections["reports"].cursor() as cursor:
        cursor.execute("SELECT 1")


def _end(pid: int) -> None:
    with closing(connection.copy()) as other, other.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s)", [pid])


def _losing_its_connection() -> Any:
    ended = []

    def handler(event: Noted, delivery: Delivery) -> None:
        note(event.text)
        if not ended:
            ended.append(True)
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    return handler


@pytest.mark.only_on("postgresql")
def test_with_the_database_away_nothing_is_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    connection.close()
    with monkeypatch.context() as patch:
        patch.setitem(connection.settings_dict, "PORT", "1")
        with pytest.raises(DatabaseAway):
            handling.handle(CONSUMER, a_delivery())
        with pytest.raises(DatabaseAway):
            handling.handle_together(CONSUMER, [a_delivery(), a_delivery()])
    assert not InboxMessage.objects.exists()


def test_endless_recursion_is_a_failed_attempt() -> None:
    def endless(event: Noted, delivery: Delivery) -> None:
        endless(event, delivery)

    assert handling.handle(a_consumer(endless), a_delivery()) == "retrying"
    assert sys.getrecursionlimit() > 0


def test_starts_of_messages_without_an_id_are_not_counted() -> None:
    """Each delivery of it gets a new id, and would leave a row behind that nothing ever comes for."""
    unidentified = a_delivery(a_message(id=""), redelivered=True, identified=False)
    assert handling.handle(a_consumer(raising(RuntimeError())), unidentified) == "retrying"
    assert InboxMessage.objects.get().starts == 0


def test_the_handler_of_a_broadcast_gets_the_event() -> None:
    heard: list[str] = []

    def handler(event: Noted, delivery: Delivery) -> None:
        heard.append(event.text)

    assert handling.handle(a_consumer(handler, broadcast=True, queue=""), a_delivery()) == "handled"
    assert heard == ["hello"]

"""What becomes of a delivery when handlers and databases behave badly."""

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.db import (
    DatabaseError,
    IntegrityError,
    InternalError,
    OperationalError,
    connection,
    connections,
    transaction,
)
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from structlog.testing import capture_logs

from messaging import conf, database, testing
from messaging.consumers import Consumer
from messaging.exceptions import Reject, RetryLater
from messaging.message import Delivery
from messaging.models import DeliveryAttempt, InboxMessage, OutboxMessage
from messaging.models.failures import REASON_LIMIT
from messaging.processes import process_name
from messaging.retry import RetryPolicy
from messaging.worker import database_wait, fence, handling, inbox
from messaging.worker.database_wait import DatabaseAway
from tests.support.consuming import (
    Noted,
    a_consumer,
    a_delivery,
    a_message,
    attempts,
    note,
    notes,
    outcomes_of_attempts,
)
from tests.support.missing_table import missing_table
from tests.support.waiting import eventually

pytestmark = pytest.mark.django_db
#: For connections that end, and what is committed.
committing = pytest.mark.django_db(transaction=True)

CONSUMER = a_consumer()
#: A consumer without an inbox row.
UNFENCED = {
    "broadcast": {"broadcast": True, "queue": "", "fenced": False},
    "built-in": {"events": (), "fenced": False},
}


def raising(error: BaseException, *, times: int = 1_000_000) -> Callable[..., None]:
    """A handler that notes and raises, the first `times` times."""
    left = [times]

    def handler(event: Noted, delivery: Delivery) -> None:
        note(event.text)
        if left[0] > 0:
            left[0] -= 1
            raise error

    return handler


def noting_and(act: Callable[[], object]) -> Callable[..., None]:
    """A handler that notes and then does this."""

    def handler(event: Noted, delivery: Delivery) -> None:
        note(event.text)
        act()

    return handler


FAILING = a_consumer(raising(ValueError("not today")))


def full_disk() -> OperationalError:
    """What Django makes of a full database, by a real one."""
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


# --- Handlers that fail ------------------------------------------------------------------------------------


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise SystemExit

    __repr__ = __str__


class UnspeakableReject(Reject):
    __str__ = __repr__ = Unspeakable.__str__


@pytest.mark.parametrize(
    ("error", "verdict", "reason"),
    [
        (ValueError("not today"), "retrying", "ValueError: not today"),
        (ValueError("a\x00b\ud800c"), "retrying", "ValueError: a\ufffdb?c"),
        (Unspeakable, "retrying", "Unspeakable: (an Unspeakable whose text cannot be made)"),
        (Reject("no such order"), "dead", "no such order"),
        (Reject("no \x00 \ud800!" + "x" * 50_000), "dead", "no \ufffd ?!" + "x" * 993),
        (Reject(), "dead", "Reject"),
        (UnspeakableReject, "dead", "(an UnspeakableReject whose text cannot be made)"),
        # Which would end its thread:
        (SystemExit(1), "retrying", "RuntimeError: the handler tried to end its thread: SystemExit: 1"),
        (asyncio.CancelledError(), "retrying", "RuntimeError: the handler tried to end its thread: CancelledError"),
        (GeneratorExit(), "retrying", "RuntimeError: the handler tried to end its thread: GeneratorExit"),
        (RecursionError("too deep"), "retrying", "RecursionError: too deep"),
        # Of the handler's own doing, or of another database:
        (IntegrityError("taken"), "retrying", "IntegrityError: taken"),
        (OperationalError("deadlock detected"), "retrying", "OperationalError: deadlock detected"),
        # Else such a message would delay its consumer for ever.
        (full_disk(), "retrying", "OperationalError: database or disk is full"),
    ],
)
def test_what_a_handler_raises_decides_and_nothing_of_it_stays(error: BaseException, verdict: str, reason: str) -> None:
    delivery = a_delivery()
    assert handling.handle(a_consumer(raising(error)), delivery) == verdict
    row = InboxMessage.objects.get()
    assert row.reason == reason
    assert bytes(row.body or b"") == delivery.message.body
    attempt = DeliveryAttempt.objects.get()
    assert attempt.outcome == ("rejected" if verdict == "dead" else "failed")
    assert reason[:100] in attempt.error
    assert (len(attempt.error) <= REASON_LIMIT, len(attempt.traceback) <= inbox.TRACEBACK_LIMIT) == (True, True)
    assert timedelta(0) < attempt.duration < timedelta(minutes=1)
    assert OutboxMessage.objects.count() == (verdict == "retrying")
    assert notes() == 0


def arrived(**changes: Any) -> Delivery:
    """The delivery of a message that a broker has brought."""
    return handling.delivery_of(
        CONSUMER, a_message(**changes), queue="q", exchange="x", routing_key="test.noted", redelivered=True
    )


def test_a_delivery_says_what_has_come_from_where() -> None:
    foreign = arrived(id="17", type="", app_id="billing", headers={"x-attempt": 3})
    assert foreign == Delivery(
        consumer="notes",
        queue="q",
        message=replace(foreign.message, type="test.noted"),
        message_id="billing/17",
        attempt=3,
        redelivered=True,
        exchange="x",
        routing_key="test.noted",
    )
    assert arrived(id="17", app_id=conf.get().app_id).message_id == "17"
    nameless = arrived(id="")
    assert nameless.message_id
    assert not nameless.identified


def test_retry_later_is_retried_at_the_time_the_handler_chose() -> None:
    consumer = a_consumer(raising(RetryLater("gateway busy", after=timedelta(hours=1))))
    assert testing.deliver(a_message(), consumer) == "retrying"
    waits = OutboxMessage.objects.get().publish_at - timezone.now()
    assert timedelta(minutes=59) < waits <= timedelta(hours=1)


def test_a_deadlock_is_tried_again_and_costs_no_attempt() -> None:
    consumer = a_consumer(raising(OperationalError("deadlock detected"), times=2))
    assert testing.deliver(a_message(), consumer) == "handled"
    assert notes("hello") == 1
    assert outcomes_of_attempts() == [(1, "handled")]


@committing
def test_a_handler_that_fails_after_a_commit_of_its_own_is_in_the_log() -> None:
    """The message counts as handled: its row was committed with the handler's own commit."""

    def handler(event: Noted, delivery: Delivery) -> None:
        with connection.cursor() as cursor:
            cursor.execute("COMMIT")
        raise ValueError("too late")

    with capture_logs() as lines:
        assert testing.deliver(a_message(), a_consumer(handler)) == "duplicate"
    assert [line["reason"] for line in lines if line["log_level"] == "error"] == ["ValueError: too late"]


@committing
@pytest.mark.parametrize("before", ["nothing", "an attempt", "a start"])
def test_a_handler_that_rolls_its_transaction_back_by_itself_has_failed(before: str) -> None:
    def roll_back() -> None:
        with connection.cursor() as cursor:
            cursor.execute("ROLLBACK")

    consumer, message = a_consumer(noting_and(roll_back)), a_message()
    if before == "an attempt":
        handling.handle(a_consumer(raising(ValueError("not today"))), a_delivery(message))
    attempt = 2 if before == "an attempt" else 1
    delivery = a_delivery(message, attempt=attempt, redelivered=before == "a start")

    assert handling.handle(consumer, delivery) == "retrying"

    row = InboxMessage.objects.get()
    assert (row.state, row.attempt, notes()) == ("retrying", attempt + 1, 0)


@committing
@pytest.mark.parametrize("raises", [False, True])
def test_a_handler_that_leaves_a_transaction_open_has_failed_and_the_next_message_is_committed(raises: bool) -> None:
    def leave_open() -> None:
        transaction.atomic().__enter__()
        if raises:
            raise ValueError("not today")

    assert testing.deliver(a_message(), a_consumer(noting_and(leave_open))) == "retrying"
    reason = InboxMessage.objects.get().reason
    assert ("ValueError: not today" if raises else "entered inside and never left") in reason
    assert testing.deliver(a_message(), CONSUMER) == "handled"
    assert not connection.in_atomic_block
    assert notes() == 1


@committing
def test_a_transaction_that_a_procedure_left_open_is_rolled_back_before_the_next_request() -> None:
    transaction.atomic().__enter__()
    note("lost")
    with capture_logs() as lines:
        database.release_between_messages()
    assert (connection.in_atomic_block, notes()) == (False, 0)
    assert [line["event"] for line in lines] == ["database.transaction_left_open"]


@committing
def test_a_batch_in_which_a_handler_rolls_back_is_handled_one_by_one() -> None:
    def handler(event: Noted, delivery: Delivery) -> None:
        note(event.text)
        if event.text == "bad":
            with connection.cursor() as cursor:
                cursor.execute("ROLLBACK")

    bad = a_message("bad")
    handling.handle(a_consumer(raising(ValueError("not today"))), a_delivery(bad))
    deliveries = [a_delivery(a_message("good")), a_delivery(bad, attempt=2)]
    assert handling.handle_together(a_consumer(handler, batch=2), deliveries) is None


@committing
def test_a_handler_that_rolls_back_makes_no_message_behind_it_in_a_batch_take_effect_twice() -> None:
    def handler(event: Noted, delivery: Delivery) -> None:
        note(event.text)
        if event.text == "bad":
            with connection.cursor() as cursor:
                cursor.execute("ROLLBACK")

    messages = [a_message(text) for text in ("before", "bad", "behind")]
    verdicts = testing.deliver_together(messages, a_consumer(handler, batch=3))

    assert verdicts == ["handled", "retrying", "handled"]
    assert (notes("before"), notes("bad"), notes("behind")) == (1, 0, 1)


@committing
def test_a_commit_of_its_own_in_a_batch_makes_no_message_behind_it_count_as_handled() -> None:
    def handler(event: Noted, delivery: Delivery) -> None:
        note(event.text)
        if event.text == "commits":
            with connection.cursor() as cursor:
                cursor.execute("COMMIT")
        if event.text == "fails" and notes("fails") == 1:
            raise ValueError("not today")

    messages = [a_message(text) for text in ("commits", "fails", "behind")]
    verdicts = testing.deliver_together(messages, a_consumer(handler, batch=3))

    assert verdicts[2] == "handled"
    assert notes("behind") == 1
    assert InboxMessage.objects.get(message_id=messages[2].id).handled_at


def broken_statement() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT nothing_of_that_name")


@committing
def test_a_handler_that_swallows_a_database_error_fails_with_nothing_written(database_kind: str) -> None:
    def swallow() -> None:
        with suppress(DatabaseError):
            broken_statement()

    verdict = testing.deliver(a_message(), a_consumer(noting_and(swallow)))
    if database_kind == "postgresql":  # where the transaction is broken from there on
        assert (verdict, notes()) == ("retrying", 0)
    else:
        assert verdict == "handled"


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


@committing
@pytest.mark.parametrize("ask", [broken_statement, connections.close_all])
@pytest.mark.parametrize("retry", [RetryPolicy(), Undecided()], ids=["text", "policy"])
def test_an_error_or_policy_that_breaks_the_database_is_a_failed_attempt(
    ask: Callable[[], object], retry: RetryPolicy
) -> None:
    """If it ran in our transaction, the message would be tried for ever, and all behind it would wait."""
    assert testing.deliver(a_message(), a_consumer(raising(Asking(ask)), retry=retry)) == "retrying"
    assert "Asking" in InboxMessage.objects.get().reason
    assert DeliveryAttempt.objects.get().outcome == "failed"


@committing
@pytest.mark.only_on("postgresql")
def test_a_handler_that_makes_its_transaction_read_only_has_failed() -> None:
    def become_read_only() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION READ ONLY")

    assert testing.deliver(a_message(), a_consumer(noting_and(become_read_only))) == "retrying"
    assert "read-only" in InboxMessage.objects.get().reason


def test_a_handler_that_returns_its_work_instead_of_doing_it_has_failed() -> None:
    lazy = a_consumer(lambda event, delivery: (note(each) for each in event.text))
    assert testing.deliver(a_message(), lazy) == "retrying"
    assert InboxMessage.objects.get().reason.startswith("NotRun: the handler")


def test_starts_of_messages_without_an_id_are_not_counted() -> None:
    """Each delivery gets a new id: its row would never be found again."""
    unidentified = a_delivery(a_message(id=""), redelivered=True, identified=False)
    assert handling.handle(CONSUMER, unidentified) == "handled"
    assert InboxMessage.objects.get().starts == 0


def test_the_handler_of_a_broadcast_gets_the_event_and_one_of_any_message_gets_none() -> None:
    heard: list[Noted | None] = []

    def handler(event: Noted | None, delivery: Delivery) -> None:
        heard.append(event)

    assert testing.deliver(a_message(), a_consumer(handler, **UNFENCED["broadcast"])) == "handled"
    assert testing.deliver(a_message(body=b"{"), a_consumer(handler, **UNFENCED["built-in"])) == "handled"
    assert heard == [Noted(text="hello"), None]


# --- Batches -----------------------------------------------------------------------------------------------


def test_a_batch_is_handled_in_one_transaction_and_a_copy_is_a_duplicate() -> None:
    deliveries = [a_delivery(a_message(f"m{number}")) for number in range(5)]
    consumer = a_consumer(batch=10)
    verdicts = handling.handle_together(consumer, [deliveries[0], *deliveries])
    assert verdicts == ["handled", "duplicate", *["handled"] * 4]
    assert handling.handle_together(consumer, deliveries) == ["duplicate"] * 5
    assert notes() == 5


def test_a_batch_writes_its_inbox_rows_by_one_statement_and_finishes_them_by_another() -> None:
    deliveries = [a_delivery(a_message(f"m{number}", priority=number or None)) for number in range(5)]
    with CaptureQueriesContext(connection) as statements:
        assert handling.handle_together(a_consumer(batch=10), deliveries) == ["handled"] * 5
    of_inbox = [each["sql"].split()[0] for each in statements if "messaging_inboxmessage" in each["sql"]]
    assert of_inbox == ["INSERT", "UPDATE"]
    rows = InboxMessage.objects.order_by("message_id")
    assert [(row.priority, row.process) for row in rows] == [(number or None, process_name()) for number in range(5)]
    assert all(row.handled_at and row.milliseconds for row in rows)


def test_a_batch_has_first_and_later_attempts_and_messages_that_were_handled_before() -> None:
    retried, old, new = a_delivery(a_message("retried")), a_delivery(a_message("old")), a_delivery(a_message("new"))
    assert handling.handle(FAILING, retried) == "retrying"
    assert handling.handle(CONSUMER, old) == "handled"
    again = replace(retried, attempt=2)
    together = handling.handle_together(a_consumer(batch=10), [again, old, new, retried])
    assert together == ["handled", "duplicate", "handled", "duplicate"]
    assert [notes(text) for text in ("retried", "old", "new")] == [1, 1, 1]


# --- Whole batches -----------------------------------------------------------------------------------------


def a_whole_batch(called: list[list[str]], fail: Callable[[list[str]], bool] = lambda _: False) -> Consumer:
    """A consumer that takes a whole batch."""

    def handler(events: list[Noted], deliveries: list[Delivery]) -> None:
        texts = [event.text for event in events]
        assert texts == [Noted.decode(each.message.body, 1).text for each in deliveries], "both lists have one order"
        called.append(texts)
        for text in texts:
            note(text)
        if fail(texts):
            raise ValueError("not these")

    return a_consumer(handler, batch=10, whole_batch=True)


def test_a_whole_batch_is_one_call_without_the_duplicates() -> None:
    called: list[list[str]] = []
    consumer = a_whole_batch(called)
    deliveries = [a_delivery(a_message(text)) for text in ("a", "b", "c")]
    assert handling.handle(consumer, deliveries[1]) == "handled"
    assert handling.handle_together(consumer, [*deliveries, deliveries[0]]) == [
        "handled", "duplicate", "handled", "duplicate",
    ]  # fmt: skip
    assert handling.handle_together(consumer, deliveries) == ["duplicate"] * 3
    assert called == [["b"], ["a", "c"]]
    assert notes() == 3
    assert all(attempt.duration for attempt in attempts())


def test_a_whole_batch_that_fails_is_rolled_back_and_each_is_handled_alone() -> None:
    called: list[list[str]] = []
    consumer = a_whole_batch(called, fail=lambda texts: "b" in texts)
    events = [a_message(text) for text in ("a", "b", "c")]
    assert testing.deliver_together(events, consumer) == ["handled", "retrying", "handled"]
    assert called == [["a", "b", "c"], ["a"], ["b"], ["c"]]
    assert [notes(text) for text in ("a", "b", "c")] == [1, 0, 1]


def test_a_whole_batch_that_returns_work_instead_of_doing_it_has_failed() -> None:
    async def later() -> None: ...

    consumer = a_consumer(lambda events, deliveries: later(), batch=10, whole_batch=True)
    assert testing.deliver_together([a_message("a"), a_message("b")], consumer) == ["retrying"] * 2
    assert all("NotRun" in row.reason for row in InboxMessage.objects.all())


@committing
@pytest.mark.parametrize(
    "bad", [a_message(body=b"{"), a_message(type="test.erased"), a_message("fails"), a_message("exits")]
)
def test_one_bad_message_rolls_its_whole_batch_back(bad: Any) -> None:
    def choosy(event: Noted, delivery: Delivery) -> None:
        note(event.text)
        if event.text == "fails":
            raise ValueError("this one")
        if event.text == "exits":
            raise SystemExit(1)

    for messages in ([a_message("good"), bad, a_message("good")], [bad, a_message("good")]):
        deliveries = [a_delivery(each) for each in messages]
        assert handling.handle_together(a_consumer(choosy, batch=3), deliveries) is None
    assert notes() == 0
    assert not InboxMessage.objects.exists()


# --- Connections that end ----------------------------------------------------------------------------------


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


LOSSES = [connections.close_all, ending_its_backend, being_idle_for_too_long]


def losing_once() -> Callable[..., None]:
    left = [ending_its_backend]
    return noting_and(lambda: left.pop()() if left else None)


@committing
@pytest.mark.only_on("postgresql")
def test_a_connection_that_ends_in_the_handler_or_a_batch_costs_no_attempt() -> None:
    assert testing.deliver(a_message(), a_consumer(losing_once())) == "handled"
    assert notes("hello") == 1
    assert outcomes_of_attempts() == [(1, "handled")]

    consumer, deliveries = a_consumer(losing_once(), batch=2), [a_delivery(), a_delivery()]
    assert handling.handle_together(consumer, deliveries) is None
    assert notes("hello") == 1
    assert handling.handle_together(consumer, deliveries) == ["handled", "handled"]


@committing
@pytest.mark.only_on("postgresql")
def test_a_connection_that_ended_between_messages_costs_no_attempt() -> None:
    _end(_backend())
    delivery = a_delivery()
    assert handling.handle(CONSUMER, delivery) == "handled"
    assert delivery.tries.losses == 0


@committing
@pytest.mark.parametrize("lose", LOSSES)
def test_a_handler_that_always_loses_its_connection_has_failed(lose: Callable[[], None]) -> None:
    calls = []
    consumer = a_consumer(noting_and(lambda: (calls.append(1), lose())))
    verdicts = [handling.handle(consumer, a_delivery(a_message(id="m-1"), attempt=number)) for number in (1, 2, 3)]
    assert verdicts == ["retrying", "retrying", "dead"]
    assert len(calls) == 3 * database_wait.LOSS_LIMIT
    row = InboxMessage.objects.get()
    assert f"its connection to the database ended {database_wait.LOSS_LIMIT} times" in row.reason
    assert DeliveryAttempt.objects.count() == 3
    assert notes() == 0


@committing
@pytest.mark.parametrize("lose", [connections.close_all, ending_its_backend])
@pytest.mark.parametrize("kind", UNFENCED.values(), ids=UNFENCED)
def test_a_lost_connection_ends_the_tries_without_an_inbox_row_too(
    kind: dict[str, Any], lose: Callable[[], None]
) -> None:
    assert testing.deliver(a_message(), a_consumer(noting_and(lose), **kind)) in {"dropped", "dead"}
    assert notes() == 0


@committing
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


@committing
def test_a_message_that_always_crashes_the_database_has_failed_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a statement that crashes the server: it is away for all consumers, and back a moment later."""
    consumer, delivery = a_consumer(noting_and(lambda: connection.close())), a_delivery()
    monkeypatch.setattr(database, "is_reachable", lambda: False)
    for _ in range(database_wait.LOSS_LIMIT):
        with pytest.raises(DatabaseAway):
            handling.handle(consumer, delivery)
    assert handling.handle(consumer, delivery) == "retrying"
    assert "ended 3 times" in InboxMessage.objects.get().reason


@committing
@pytest.mark.only_on("postgresql")
def test_a_handler_gets_a_new_connection_to_its_other_database_after_that_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def read_reports() -> None:
        with connections["reports"].cursor() as cursor:
            cursor.execute("SELECT 1")

    monkeypatch.setitem(connections.settings, "reports", connection.settings_dict)
    consumer = a_consumer(noting_and(read_reports))
    with closing(connection.copy()) as reports:
        connections["reports"] = reports
        try:
            assert testing.deliver(a_message(), consumer) == "handled"
            _end(reports.connection.info.backend_pid)
            assert testing.deliver(a_message(), consumer) == "handled"
        finally:
            del connections["reports"]


def _backend() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
    return pid


def _end(pid: int) -> None:
    with closing(connection.copy()) as other, other.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s)", [pid])


# --- A database that takes no rows -------------------------------------------------------------------------


def read_only() -> InternalError:
    error = InternalError("cannot execute INSERT in a read-only transaction")
    error.__cause__ = psycopg.errors.ReadOnlySqlTransaction(str(error))
    return error


@committing
@pytest.mark.parametrize(
    ("function", "error", "consumer", "redelivered"),
    [
        ("admit", read_only(), CONSUMER, False),
        ("start", OperationalError("database is locked"), CONSUMER, True),
        ("expect_next", OperationalError("database is locked"), FAILING, False),
        ("expect_next", InternalError("cannot execute UPDATE in a read-only transaction"), FAILING, False),
    ],
)
def test_a_database_that_takes_no_row_decides_nothing(
    monkeypatch: pytest.MonkeyPatch, function: str, error: Exception, consumer: Consumer, redelivered: bool
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    delivery = a_delivery(redelivered=redelivered)
    with monkeypatch.context() as patch:
        patch.setattr(fence if function == "admit" else inbox, function, refuse)
        with pytest.raises(DatabaseAway, match=str(error)):
            handling.handle(consumer, delivery)
        if function == "admit":
            patch.setattr(fence, "admit_new", refuse)
            with pytest.raises(DatabaseAway, match="read-only"):
                handling.handle_together(consumer, [a_delivery(), a_delivery()])
    assert not InboxMessage.objects.exists()
    assert handling.handle(consumer, delivery) == ("retrying" if consumer is FAILING else "handled")


@committing
def test_a_database_without_our_tables_decides_nothing() -> None:
    with missing_table(InboxMessage), pytest.raises(DatabaseAway):
        testing.deliver(a_message(), CONSUMER)


@committing
@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize("end", [connection.close, lambda: _end(_backend())], ids=["before", "in the transaction"])
@pytest.mark.parametrize(
    "handle",
    [
        lambda: handling.handle(CONSUMER, a_delivery()),
        lambda: handling.handle_together(CONSUMER, [a_delivery(), a_delivery()]),
    ],
    ids=["one", "batch"],
)
def test_a_database_that_is_away_decides_nothing(
    monkeypatch: pytest.MonkeyPatch, handle: Callable[[], object], end: Callable[[], None]
) -> None:
    end()
    with monkeypatch.context() as patch:
        patch.setitem(connection.settings_dict, "PORT", "1")
        with pytest.raises(DatabaseAway):
            handle()
    assert not InboxMessage.objects.exists()


@committing
@pytest.mark.parametrize("statement", ["INSERT INTO", "UPDATE"], ids=["before the handler", "after it"])
def test_a_disk_that_is_full_for_a_moment_costs_no_attempt(statement: str) -> None:
    """There is room again when the failure would be recorded."""
    failing = [f'{statement} "messaging_inboxmessage"']

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


@committing
def test_a_disk_that_is_full_at_the_commit_costs_no_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        full.undo()
        raise full_disk()

    with monkeypatch.context() as full:
        full.setattr(connection, "commit", fail)
        with pytest.raises(DatabaseAway, match="full"):
            testing.deliver(a_message(), CONSUMER)
    assert not DeliveryAttempt.objects.exists()


def _become_read_only(*_: object) -> None:
    """A handler may leave its session so, or a primary after a failover."""
    with connection.cursor() as cursor:
        cursor.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")


@committing
@pytest.mark.only_on("postgresql")
def test_a_read_only_connection_is_replaced_once_others_can_write() -> None:
    assert testing.deliver(a_message(), a_consumer(_become_read_only)) == "handled"
    for handle in (handling.handle, lambda consumer, delivery: handling.handle_together(consumer, [delivery])):
        with pytest.raises(DatabaseAway, match="read-only"):
            handle(CONSUMER, a_delivery())
        assert testing.deliver(a_message(), CONSUMER) == "handled"
        _become_read_only()
    with pytest.raises(DatabaseError), database.atomic():
        DeliveryAttempt.objects.all().delete()
    with database.atomic():
        DeliveryAttempt.objects.all().delete()

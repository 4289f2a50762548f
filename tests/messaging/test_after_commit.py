"""A callback that fails after the commit undoes nothing; an exception that would end a thread ends none."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from django.db import transaction
from pydantic import field_validator
from structlog.testing import capture_logs

from messaging import database, testing
from messaging.events import Event
from messaging.models import DeliveryAttempt, InboxMessage
from messaging.retry import RetryPolicy
from messaging.worker import consumer_threads, database_wait, fence, handling
from messaging.worker.verdict import Verdict
from tests.support.consuming import Noted, a_consumer, a_delivery, a_message, an_inbox_row, attempts, note, notes
from tests.support.fake_subscription import an_arrival, consumer_threads_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.django_db(transaction=True)

LEAVING = [SystemExit(1), asyncio.CancelledError(), KeyboardInterrupt(), GeneratorExit()]


def failing(error: BaseException, ran: list[str]) -> Callable[..., None]:
    """A handler with a callback that raises, and a good one behind it."""

    def send_mail() -> None:
        raise error

    def handler(event: Noted | None, delivery: Any) -> None:
        note("hello")
        transaction.on_commit(send_mail)
        transaction.on_commit(lambda: ran.append(delivery.message_id))

    return handler


@pytest.mark.parametrize("error", [ConnectionError("no mail server"), *LEAVING], ids=lambda error: type(error).__name__)
def test_a_message_whose_callback_fails_is_handled_and_its_history_names_the_failure(error: BaseException) -> None:
    ran: list[str] = []
    testing.deliver(a_message(id="m-0"), a_consumer())
    # Its process was killed before, in the same attempt.
    an_inbox_row(state="retrying", attempt=1).attempts.create(number=1, outcome="crashed")
    an_inbox_row(consumer="copies")
    with capture_logs() as lines:
        verdict = testing.deliver(a_message(id="m-1"), a_consumer(failing(error, ran)))
    assert verdict == "handled"
    row = InboxMessage.objects.get(message_id="m-1", consumer="notes")
    assert (ran, notes("hello"), row.state) == (["m-1"], 2, "handled")
    other, crashed, attempt = attempts()
    assert (other.error, crashed.error) == ("", "")
    assert (crashed.outcome, attempt.outcome) == ("crashed", "handled")
    assert attempt.error.startswith("after the commit, in ")
    assert type(error).__name__ in attempt.error
    assert not InboxMessage.objects.get(consumer="copies").reason
    (said,) = [line for line in lines if line["event"] == "message.callback_failed"]
    assert (said["log_level"], said["consumer"], said["message_id"]) == ("error", "notes", "m-1")
    assert type(error).__name__ in said["reason"]
    assert "send_mail" in said["callback"]


def test_in_a_batch_the_callbacks_of_the_other_messages_run() -> None:
    ran: list[str] = []
    deliveries = [a_delivery(a_message(id=f"m-{number}")) for number in range(3)]
    with capture_logs() as lines:
        verdicts = handling.handle_together(a_consumer(failing(OSError("away"), ran), batch=3), deliveries)
    assert verdicts == ["handled"] * 3
    assert ran == ["m-0", "m-1", "m-2"]
    assert [line["message_id"] for line in lines if line["event"] == "message.callback_failed"] == ran
    assert all("OSError: away" in each.error for each in attempts())


def test_without_an_inbox_row_the_log_names_a_failing_callback() -> None:
    ran: list[str] = []
    consumer = a_consumer(failing(OSError("away"), ran), broadcast=True, queue="", fenced=False)
    with capture_logs() as lines:
        assert testing.deliver(a_message(id="m-1"), consumer) == "handled"
    assert [line["message_id"] for line in lines if line["event"] == "message.callback_failed"] == ran == ["m-1"]


def test_a_callback_that_closes_the_connection_and_fails_is_in_the_history() -> None:
    def handler(event: Noted, delivery: Any) -> None:
        transaction.on_commit(lambda: (database.connection().close(), 1 / 0))

    assert testing.deliver(a_message(), a_consumer(handler)) == "handled"
    assert "ZeroDivisionError" in attempts()[0].error


def test_a_callback_of_a_try_that_was_rolled_back_is_not_called() -> None:
    ran: list[str] = []

    def handler(event: Noted, delivery: Any) -> None:
        transaction.on_commit(lambda: ran.append("ran"))
        raise ValueError

    assert testing.deliver(a_message(), a_consumer(handler)) == "retrying"
    assert not ran


def test_a_failed_callback_of_our_transactions_is_logged_and_the_next_ones_run() -> None:
    ran: list[str] = []
    with capture_logs() as lines, database.atomic():
        transaction.on_commit(lambda: 1 / 0)  # type: ignore[arg-type,return-value]
        transaction.on_commit(lambda: ran.append("ran"))
    assert ran == ["ran"]
    assert [line["event"] for line in lines] == ["callback.failed"]


def test_callbacks_of_the_projects_own_transactions_are_unchanged() -> None:
    def view() -> None:
        with transaction.atomic():
            with database.atomic():
                note("hello")
            transaction.on_commit(lambda: 1 / 0)  # type: ignore[arg-type,return-value]

    with pytest.raises(ZeroDivisionError):
        view()


class LeavesItsThread(Event, type="test.leaves_its_thread"):
    """An event whose validation is code of the project."""

    text: str

    @field_validator("text")
    @classmethod
    def _leave(cls, text: str) -> str:
        raise SystemExit(text)


def test_reading_a_message_that_tries_to_end_the_thread_is_a_failed_attempt() -> None:
    message = a_message(type="test.leaves_its_thread", body=b'{"text":"hello"}')
    assert testing.deliver(message, a_consumer(events=(LeavesItsThread,))) == "retrying"
    assert "SystemExit" in InboxMessage.objects.get().reason


def test_a_retry_policy_that_tries_to_end_the_thread_is_replaced_by_the_usual_one() -> None:
    class Leaving(RetryPolicy):
        def delay_after(self, *_: Any) -> Any:
            raise SystemExit(1)

    def handler(event: Noted, delivery: Any) -> None:
        raise ValueError

    assert testing.deliver(a_message(), a_consumer(handler, retry=Leaving())) == "retrying"


def test_a_handler_thread_survives_every_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    leaving: list[BaseException] = list(LEAVING)
    handle = handling.handle

    def leave_first(*given: Any) -> Verdict:
        if leaving:
            raise leaving.pop()
        return handle(*given)

    monkeypatch.setattr(handling, "handle", leave_first)
    monkeypatch.setattr(consumer_threads, "FAULT_PAUSE", 0.0)
    mine, subscription = consumer_threads_of(a_consumer())
    [thread] = mine.threads
    thread.start()
    try:
        with capture_logs() as lines:
            for _ in range(len(LEAVING) + 1):
                mine._arrived(an_arrival())
            eventually(lambda: len(subscription.acked) == 1)
    finally:
        mine.stop()
        thread.join(10)
    assert len(subscription.requeued) == len(LEAVING)
    assert [line["event"] for line in lines].count("consumer.fault") == len(LEAVING)


def test_waiting_for_the_database_does_not_count_as_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would count as a death of the process, and after a few the message would be dead."""
    left = [handling.CRASH_LIMIT + 1]
    admit = fence.admit

    def away(*given: Any) -> fence.Admitted | None:
        if left[0]:
            left[0] -= 1
            raise database_wait.DatabaseAway("the server is away")
        return admit(*given)

    monkeypatch.setattr(fence, "admit", away)
    monkeypatch.setattr(database_wait, "DATABASE_PAUSE", 0.0)
    mine, subscription = consumer_threads_of(a_consumer())
    mine._handle(an_arrival(redelivered=True))
    assert len(subscription.acked) == 1
    row = InboxMessage.objects.get()
    assert (row.state, row.starts, mine._tally.counts[Verdict.HANDLED]) == ("handled", 1, 1)
    assert not DeliveryAttempt.objects.filter(outcome="crashed").exists()

"""A handler past its time gets an exception, wherever it is; one that ignores it ends its process."""

import subprocess
import sys
import threading
import time
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import connection

from messaging import database, testing
from messaging.exceptions import HandlerTimeout
from messaging.message import Delivery
from messaging.models import DeliveryAttempt, InboxMessage, OutboxMessage
from messaging.worker import handling, time_limit
from tests.support.consuming import Noted, a_consumer, a_delivery, a_message, note, notes
from tests.support.environment import ROOT, process_environment

pytestmark = pytest.mark.django_db

SHORT = timedelta(milliseconds=200)
LONG = 30.0
#: A statement that does not end in time.
ENDLESS = {
    "postgresql": "SELECT pg_sleep(60)",
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n",
}


def keep_busy(seconds: float) -> None:
    """Take time line by line."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.001)


def test_a_handler_past_its_time_has_failed_and_left_nothing(settings: Any) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "HANDLER_TIMEOUT": 0.2}

    def slow(event: Noted, delivery: Delivery) -> None:
        note(event.text)
        keep_busy(LONG)

    assert testing.deliver(a_message(), a_consumer(slow)) == "retrying"
    assert notes() == 0
    assert InboxMessage.objects.get().reason == "HandlerTimeout: it took longer than 0.2 s"
    attempt = DeliveryAttempt.objects.get()
    assert attempt.outcome == "failed"
    assert "keep_busy" in attempt.traceback
    retry = OutboxMessage.objects.get()
    assert (retry.attempt, retry.origin) == (2, "retry")


@pytest.mark.django_db(transaction=True)
def test_a_statement_that_takes_too_long_is_cancelled_and_the_connection_works_on(database_kind: str) -> None:
    def stuck_in_the_database(event: Noted, delivery: Delivery) -> None:
        with connection.cursor() as cursor:
            cursor.execute(ENDLESS[database_kind])

    assert testing.deliver(a_message(), a_consumer(stuck_in_the_database, timeout=SHORT)) == "retrying"
    assert InboxMessage.objects.get().reason.startswith("HandlerTimeout")
    assert testing.deliver(a_message(), a_consumer()) == "handled"


def test_a_statement_is_cancelled_by_psycopg2_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection has no `cancel_safe`, and its transaction status is a number."""
    cancelled = threading.Event()
    driver = SimpleNamespace(info=SimpleNamespace(transaction_status=1), cancel=cancelled.set)
    monkeypatch.setattr(database, "connection", lambda: SimpleNamespace(connection=driver))

    def wait() -> None:
        cancelled.wait(5)

    with pytest.raises(HandlerTimeout):
        time_limit.run(wait, seconds=0.1, name="psycopg2")

    assert cancelled.is_set()


def test_a_handler_may_clear_up_and_succeed() -> None:
    def patient(event: Noted, delivery: Delivery) -> None:
        try:
            keep_busy(LONG)
        except HandlerTimeout:
            note(event.text)

    assert testing.deliver(a_message(), a_consumer(patient, timeout=SHORT)) == "handled"
    assert notes("hello") == 1


def test_each_message_of_a_batch_has_its_own_time() -> None:
    consumer = a_consumer(lambda event, delivery: keep_busy(0.06), timeout=timedelta(seconds=0.5), batch=10)
    assert handling.handle_together(consumer, [a_delivery() for _ in range(10)]) == ["handled"] * 10


@pytest.mark.only_on("sqlite")  # no statement is run
def test_no_timeout_is_raised_behind_a_handler_that_ends_just_in_time() -> None:
    """The exception is set by another thread: set before the end and raised behind it, it would hit our own code."""
    seconds = 0.005
    ends = {"in time": 0, "told": 0}
    for round_ in range(100):
        try:
            time_limit.run(
                lambda wait=seconds + (round_ % 20 - 10) / 5000: keep_busy(wait), seconds=seconds, name="test"
            )
        except HandlerTimeout:
            ends["told"] += 1
        else:
            ends["in time"] += 1
        keep_busy(0.0005)  # here it would be raised
    assert ends["in time"]
    assert ends["told"]


@pytest.mark.only_on("sqlite")  # no statement is run
def test_other_handlers_get_no_timeout() -> None:
    others = [
        threading.Thread(target=lambda: time_limit.run(lambda: keep_busy(0.2), seconds=LONG, name="other"))
        for _ in range(3)
    ]
    for other in others:
        other.start()
    with pytest.raises(HandlerTimeout):
        time_limit.run(lambda: keep_busy(LONG), seconds=0.1, name="slow")
    for other in others:
        other.join(LONG)
        assert not other.is_alive()


@pytest.mark.only_on("sqlite")  # no statement is run
def test_a_stuck_handler_ends_its_process_which_logs_where_it_was() -> None:
    program = """
import django, threading
django.setup()
from messaging.worker import time_limit
def deaf():
    threading.Event().wait()
time_limit.run(deaf, seconds=0.1, name="sms 123")
"""
    environment = process_environment(DJANGO_SETTINGS_MODULE="tests.messaging.short_grace")
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == time_limit.STUCK, ended.stderr
    assert "handler.stuck" in ended.stderr
    assert "sms 123" in ended.stderr
    assert "in deaf" in ended.stderr

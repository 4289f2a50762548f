"""A reason to wait is logged when it is new, not at each check. test_logs shows that it is repeated after a while."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import Mock

import pytest
from django.db import OperationalError
from structlog.testing import capture_logs

from messaging import logs
from messaging.broker.connection import Connection
from messaging.broker.subscription import BEGIN_PATIENCE, Subscription
from messaging.exceptions import BrokerUnavailable
from messaging.procedures import Procedure
from messaging.relay.relay import Relay
from messaging.rpc.server import RpcServer
from messaging.topology.declare import Declaration
from messaging.worker import database_wait
from messaging.worker.consumer_threads import ConsumerThreads
from messaging.worker.database_wait import DatabaseWait
from messaging.worker.service import Tally
from messaging.worker.worker import Worker
from script.services.ports import free_port
from tests.support.consuming import a_consumer
from tests.support.waiting import eventually


def consumer_that_cannot_consume() -> None:
    threads = ConsumerThreads(a_consumer(), Connection("test"), Tally(), Mock(), threads=1, prefetch=1, writer=None)
    for _ in range(3):
        threads._ended("no queue 'tests.notes'")


def relay_without_an_answer() -> None:
    relay = Relay()
    for _ in range(3):
        relay._warn("relay.broker_error", BrokerUnavailable("no answer"))


def queue_that_is_missing() -> None:
    declaration = Declaration(Connection("test"))
    declaration.problems = {"orders.sms": "it is not there"}
    for _ in range(3):
        declaration._log()


def database_that_is_away() -> None:
    failures = iter([OperationalError("refused")] * 3)

    def attempt() -> str:
        for failure in failures:
            raise failure
        return "handled"

    assert DatabaseWait("notes", threading.Event()).run(attempt) == "handled"


def look_at_silent(server: Worker | RpcServer, queues: Sequence[Subscription]) -> None:
    """As when a connection is open, and the queues have not answered the wish to consume."""
    server._connection._opened.set()
    for queue in queues:
        queue.asked_at = time.monotonic() - BEGIN_PATIENCE - 1
    for _ in range(3):
        server._warn_of_silent_queues()


def consumer_whose_queue_is_silent() -> None:
    worker = Worker([a_consumer()])
    look_at_silent(worker, [each.subscription for each in worker.consumers])


def procedure_whose_queue_is_silent() -> None:
    server = RpcServer([Procedure(name="double", queue="rpc.double", function=float, _bind=lambda given: ((), {}))])
    look_at_silent(server, server.subscriptions)


WAITING: list[tuple[str, Callable[[], None]]] = [
    ("consumer.ended", consumer_that_cannot_consume),
    ("relay.broker_error", relay_without_an_answer),
    ("topology.problem", queue_that_is_missing),
    ("consumer.queue_silent", consumer_whose_queue_is_silent),
    ("rpc.queue_silent", procedure_whose_queue_is_silent),
    ("consumer.database_away", database_that_is_away),
]


@pytest.mark.django_db
@pytest.mark.parametrize(("event", "wait"), WAITING, ids=[event for event, _ in WAITING])
def test_a_reason_for_waiting_that_lasts_is_logged_once_at_first(
    event: str, wait: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_wait, "DATABASE_PAUSE", 0.0)
    with capture_logs() as said:
        wait()
    assert [line["event"] for line in said].count(event) == 1


def test_a_refusal_of_the_broker_is_logged_again_and_again(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "REPEAT_AFTER", 0.0)
    settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": [f"amqp://u:x@127.0.0.1:{free_port()}/"]}
    with capture_logs() as said:
        connection = Connection("test")
        connection.start()
        try:
            eventually(lambda: [line["event"] for line in said].count("amqp.unreachable") >= 2)
        finally:
            connection.stop()

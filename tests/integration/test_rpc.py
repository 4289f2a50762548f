"""A call is answered, or fails with the error that says what is known: RPC over a real broker."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pika
import pytest
import structlog
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connection
from pika.adapters.blocking_connection import BlockingChannel

from messaging import procedures, rpc
from messaging.models import OutboxMessage
from messaging.rpc import client, procedure
from messaging.rpc.answering import Ending
from tests.support.rpc import RunningServer, got, raw_channel, running_server
from tests.support.waiting import eventually

#: Seconds; a call that is answered never takes them.
LONG = 30


@pytest.fixture(autouse=True)
def _procedures(vhost: str, isolated: Any) -> Iterator[None]:
    isolated(procedures)

    @procedure("double")
    def double(number: int) -> int:
        return 2 * number

    @procedure("refuse")
    def refuse(why: str) -> None:
        raise LookupError(why)

    @procedure("describe")
    def describe(value: int | str | None = "nothing") -> str:
        return "null" if value is None else str(value)

    @procedure("request_id")
    def request_id() -> Any:
        return structlog.contextvars.get_contextvars().get("request_id")

    yield
    client.close()


@pytest.fixture
def server() -> Iterator[RunningServer]:
    with running_server() as running:
        yield running


def test_a_call_is_answered_with_the_result_or_the_procedures_error(server: RunningServer) -> None:
    assert rpc.call("double", {"number": 21}, timeout=LONG) == 42
    assert rpc.call("double", 30, timeout=LONG) == 60  # a bare value is the one argument
    assert rpc.call("describe", None, timeout=LONG) == "null"
    assert rpc.call("describe", timeout=LONG) == "nothing"
    with pytest.raises(rpc.RemoteError) as caught:
        rpc.call("refuse", {"why": "not today"}, timeout=LONG)
    assert (caught.value.type, caught.value.message) == ("LookupError", "not today")


def test_the_request_id_of_the_web_request_goes_along(server: RunningServer) -> None:
    with structlog.contextvars.bound_contextvars(request_id="web-7"):
        assert rpc.call("request_id", timeout=LONG) == "web-7"

    assert rpc.call("request_id", timeout=LONG) is None


def test_without_a_server_or_once_the_last_has_stopped_calls_fail_at_once() -> None:
    for _ in range(2):
        with pytest.raises(rpc.NoServer):
            rpc.call("double", 1, timeout=LONG)
        server = RunningServer()
        assert rpc.call("double", 1, timeout=LONG) == 2
        server.stop()


def test_once_the_broker_has_refused_this_user_calls_fail_at_once(vhost: str, settings: Any) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": [f"amqp://nobody:wrong@{vhost.partition('@')[2]}"]}
    for _ in range(2):  # at the first attempt, and during the pause after it
        began = time.monotonic()
        with pytest.raises(rpc.NoBroker, match="not sent: the broker refused the user name or the password"):
            rpc.call("double", 1, timeout=LONG)
        assert time.monotonic() - began < LONG / 2


def test_an_unresponsive_server_is_a_timeout_and_the_request_expires() -> None:
    with raw_channel() as channel:
        channel.queue_declare("silent", durable=True)
        with pytest.raises(rpc.NoServer):
            rpc.call("double", 1, timeout=LONG)  # connected before the timeout counts
        with pytest.raises(rpc.RpcTimeout):
            rpc.call("double", 1, timeout=0.5, queue="silent")

        eventually(lambda: channel.queue_declare("silent", passive=True).method.message_count == 0)


def asked(channel: BlockingChannel) -> pika.BasicProperties:
    """Wait for the next request in the queue "odd" and return its properties."""
    return eventually(lambda: got(channel, "odd"))[1]


def test_a_reply_without_a_correlation_id_is_the_answer_of_the_only_call() -> None:
    with raw_channel() as channel, ThreadPoolExecutor(2) as threads:
        channel.queue_declare("odd", durable=True)
        for number in range(2):
            calling = threads.submit(rpc.call, "odd", number, timeout=LONG, queue="odd")
            channel.basic_publish("", asked(channel).reply_to, str(number).encode())
            assert calling.result(LONG) == number

        two = [threads.submit(rpc.call, "odd", number, timeout=LONG, queue="odd") for number in range(2)]
        requests = [asked(channel), asked(channel)]
        channel.basic_publish("", requests[0].reply_to, b'"whose?"')
        eventually(lambda: client.connection().ignored_replies == 1)
        for each in requests:
            properties = pika.BasicProperties(correlation_id=each.correlation_id)
            channel.basic_publish("", each.reply_to, b'"mine"', properties)
        assert [each.result(LONG) for each in two] == ["mine", "mine"]


def test_a_late_reply_without_a_correlation_id_answers_no_later_call() -> None:
    with raw_channel() as channel, ThreadPoolExecutor(1) as threads:
        channel.queue_declare("odd", durable=True)
        first = threads.submit(rpc.call, "odd", 1, timeout=LONG, queue="odd")
        reply_queue = asked(channel).reply_to
        channel.basic_publish("", reply_queue, b"1")
        assert first.result(LONG) == 1
        with pytest.raises(rpc.RpcTimeout):
            rpc.call("odd", 2, timeout=0.5, queue="odd")
        channel.queue_purge("odd")

        third = threads.submit(rpc.call, "odd", 3, timeout=LONG, queue="odd")
        request = asked(channel)
        channel.basic_publish("", reply_queue, b"2")
        eventually(lambda: client.connection().ignored_replies == 1)
        assert not third.done()
        properties = pika.BasicProperties(correlation_id=request.correlation_id)
        channel.basic_publish("", reply_queue, b"3", properties)
        assert third.result(LONG) == 3

        # By a fresh reply queue such a server is understood again.
        fourth = threads.submit(rpc.call, "odd", 4, timeout=LONG, queue="odd")
        fresh = asked(channel).reply_to
        assert fresh != reply_queue
        channel.basic_publish("", fresh, b"4")
        assert fourth.result(LONG) == 4


def test_a_forked_child_makes_a_connection_of_its_own(server: RunningServer) -> None:
    assert rpc.call("double", 1, timeout=LONG) == 2
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, json.dumps(rpc.call("double", 2, timeout=10)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)

    assert os.read(reading, 100) == b"4"
    assert rpc.call("double", 3, timeout=LONG) == 6
    os.close(reading)


def test_a_database_connection_that_broke_is_replaced(transactional_db: None) -> None:
    @procedure("look")
    def look(*, then_break: bool) -> bool:
        found = OutboxMessage.objects.exists()
        if then_break:
            connection.connection.close()
        return found

    server = RunningServer(concurrency=1)
    assert rpc.call("look", {"then_break": True}, timeout=LONG) is False
    eventually(lambda: answered("look", {"then_break": False}) is False)
    server.stop()


def test_a_timeout_that_is_no_positive_number_of_seconds_is_refused() -> None:
    wrong: list[Any] = [0, -1, float("nan"), float("inf"), 1e12, "3", None]
    for timeout in wrong:
        with pytest.raises(ValueError, match="timeout"):
            rpc.call("double", 1, timeout=timeout)


def answered(name: str, payload: Any) -> Any:
    try:
        return rpc.call(name, payload, timeout=5)
    except rpc.RpcError as error:
        return error


# --- Clocks --------------------------------------------------------------------------------------------------


@pytest.fixture
def set_servers_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the clock of servers so many seconds ahead; their callers, in the same process, keep theirs."""
    own = procedures.now_ms

    def set_ahead(seconds: float) -> None:
        def now_ms() -> int:
            return own() + round(seconds * 1000) * threading.current_thread().name.startswith("rpc-")

        monkeypatch.setattr(procedures, "now_ms", now_ms)

    return set_ahead


@pytest.mark.parametrize("seconds", [3600, -10])
def test_a_server_with_another_clock_answers_and_the_difference_is_logged(
    seconds: float, set_servers_clock: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    set_servers_clock(seconds)
    server = RunningServer()

    assert [rpc.call("double", number, timeout=3) for number in (1, 2, 3)] == [2, 4, 6]

    # Only the first request seemed late, and none was run twice.
    assert server.stop().counts == {Ending.HANDLED: 3, **({Ending.EXPIRED: 1} if seconds > 0 else {})}
    said = [record.getMessage() for record in caplog.records if "rpc.clocks_differ" in record.getMessage()]
    assert len(said) == 1
    assert f"{abs(seconds):.1f} s {'ahead of' if seconds > 0 else 'behind'} this host's" in said[0]


def test_a_timeout_names_the_difference_of_the_clocks(set_servers_clock: Callable[[float], None]) -> None:
    release = threading.Event()

    @procedure("wait")
    def wait(long: bool) -> bool:
        return release.wait(LONG) if long else True

    set_servers_clock(10)
    server = RunningServer()
    assert rpc.call("wait", False, timeout=3)

    with pytest.raises(rpc.RpcTimeout, match=r"10\.0 s ahead of this host's"):
        rpc.call("wait", True, timeout=0.5)

    release.set()
    server.stop()


# --- Coroutines ----------------------------------------------------------------------------------------------


def test_a_coroutine_awaits_acall_and_may_call_only_if_the_project_allows_blocking(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask() -> list[int]:
        with pytest.raises(SynchronousOnlyOperation, match=r"await rpc\.acall"):
            rpc.call("double", 1, timeout=LONG)
        answers = await asyncio.gather(*(rpc.acall("double", number, timeout=LONG) for number in (1, 2, 3)))
        monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
        return [*answers, rpc.call("double", 4, timeout=LONG)]

    assert asyncio.run(ask()) == [2, 4, 6, 8]

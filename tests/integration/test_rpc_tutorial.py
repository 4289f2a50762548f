"""The tutorials' RPC: `fib` on rpc_queue and `increase` on compute_queue, for any client, beside any server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from messaging import procedures, rpc
from messaging.rpc import client, procedure
from messaging.rpc.answering import Ending
from script.services.rabbitmq import RabbitMQNode
from tests.support.classic import OLDER, TODAY, ClassicCentre, ClassicServer
from tests.support.rpc import RunningServer, got, raw_channel, raw_request, running_server
from tests.support.waiting import eventually

FIB = {10: 55, 20: 6765, 30: 832040, 40: 102334155, 50: 12586269025}


@pytest.fixture
def channel(vhost: str) -> Iterator[BlockingChannel]:
    with raw_channel() as opened:
        yield opened
    client.close()


@pytest.fixture
def server(vhost: str) -> Iterator[RunningServer]:
    with running_server() as running:
        yield running


def waiting(channel: BlockingChannel, queue: str) -> int:
    count: int = channel.queue_declare(queue, passive=True).method.message_count
    return count


def ask(channel: BlockingChannel, queue: str, *numbers: int) -> str:
    """Send requests all at once, and return the queue that their answers come to."""
    answers: str = channel.queue_declare("", exclusive=True).method.queue
    for number in numbers:
        properties = pika.BasicProperties(reply_to=answers, correlation_id=f"question {number}")
        channel.basic_publish("", queue, str(number).encode(), properties)
    return answers


def answered(channel: BlockingChannel, answers: str, count: int) -> dict[str, str]:
    """Wait for so many answers, and return each by its question."""
    eventually(lambda: waiting(channel, answers) == count)
    found = {}
    while taken := got(channel, answers):
        _, properties, body = taken
        found[properties.correlation_id] = body.decode()
    return found


@pytest.mark.parametrize("correlation_id", [None, "1", "1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed"])
def test_a_tutorial_client_gets_its_answer_as_plain_text(
    channel: BlockingChannel, server: RunningServer, correlation_id: str | None
) -> None:
    for queue, body, answer in [("rpc_queue", b"30", 832040), ("compute_queue", b"30", 31), ("rpc_queue", b"0", 0)]:
        properties, found = raw_request(channel, queue, body, correlation_id=correlation_id)
        assert (found, properties.correlation_id) == (answer, correlation_id)


def test_no_request_makes_fib_hang(channel: BlockingChannel, server: RunningServer) -> None:
    bodies = [b"-1", b"1001", b"1000000000000", b"1.5", b'"x"', b"null", b"[30]"]
    for body in bodies:
        assert raw_request(channel, "rpc_queue", body)[1]["error"]["type"] == "BadArguments"
    assert rpc.call("fib", 1000, timeout=30) % 10**9 == 849228875
    assert server.stop().counts == {Ending.FAILED: len(bodies), Ending.HANDLED: 1}


def test_five_threads_of_a_centre_get_each_its_own_answer(channel: BlockingChannel, server: RunningServer) -> None:
    another = RunningServer()
    with ThreadPoolExecutor(5) as threads, closing(ClassicCentre()) as centre:
        ours = dict(zip(FIB, threads.map(lambda n: rpc.call("fib", n, timeout=30), FIB), strict=True))
        for _ in range(5):
            classic = dict(zip(FIB, threads.map(lambda n: centre.call("rpc_queue", str(n)), FIB), strict=True))
            more = dict(zip(FIB, threads.map(lambda n: centre.call("compute_queue", str(n)), FIB), strict=True))
            assert classic == {number: str(answer) for number, answer in FIB.items()}
            assert more == {number: str(number + 1) for number in FIB}
    another.stop()
    assert ours == FIB


@pytest.mark.parametrize(("first", "declares"), [("ours", TODAY), ("theirs", TODAY), ("theirs", OLDER)])
def test_a_tutorials_server_serves_the_same_queue_whichever_server_was_first(
    channel: BlockingChannel,
    vhost: str,
    broker: RabbitMQNode,
    caplog: pytest.LogCaptureFixture,
    first: str,
    declares: dict[str, Any],
) -> None:
    ours = RunningServer() if first == "ours" else None
    if ours:
        found = broker.api("GET", f"/queues/{urlsplit(vhost).path[1:]}/rpc_queue")
        assert (found["durable"], found["auto_delete"], found["arguments"]) == (True, False, TODAY["arguments"])
    with closing(ClassicServer("rpc_queue", declares)) as theirs:
        ours = ours or RunningServer()
        answers = ask(channel, "rpc_queue", *range(20))

        assert answered(channel, answers, 20)["question 19"] == "4181"
        assert "rpc.queue_" not in caplog.text
        assert theirs.served > 0
        assert ours.stop().counts[Ending.HANDLED] == 20 - theirs.served > 0


@pytest.mark.parametrize("prefetch", [1, 6])
def test_a_slow_server_gets_no_more_than_its_prefetch_and_another_does_the_rest(
    channel: BlockingChannel, isolated: Callable[..., None], prefetch: int
) -> None:
    isolated(procedures)
    first, go_on = threading.Semaphore(), threading.Event()

    @procedure("increase", queue="compute_queue")
    def increase(n: int) -> int:
        if first.acquire(blocking=False):
            go_on.wait(30)
        return n + 1

    servers = [RunningServer(concurrency=1, prefetch=prefetch) for _ in range(2)]
    answers = ask(channel, "compute_queue", *range(20))
    eventually(lambda: waiting(channel, answers) == 20 - prefetch)
    go_on.set()
    assert answered(channel, answers, 20) == {f"question {number}": str(number + 1) for number in range(20)}
    assert sorted(server.stop().counts[Ending.HANDLED] for server in servers) == [prefetch, 20 - prefetch]


def test_a_plain_queue_stays_without_a_server_with_what_is_in_it(
    channel: BlockingChannel, server: RunningServer
) -> None:
    server.stop()
    answers = ask(channel, "rpc_queue", 30)
    another = RunningServer()
    assert answered(channel, answers, 1) == {"question 30": "832040"}
    another.stop()

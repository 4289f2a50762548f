"""The tutorials' RPC: `fib` on rpc_queue and `increase` on compute_queue, for any client, beside any server."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from messaging import rpc
from messaging.broker.errors import describe
from messaging.rpc import client
from script.services.rabbitmq import RabbitMQNode
from tests.support.amqp import unacknowledged
from tests.support.classic import OLDER, TODAY, ClassicCentre, ClassicServer
from tests.support.processes import ProcessStarter, RunningProcess
from tests.support.rpc import got, raw_channel, raw_request
from tests.support.waiting import eventually

#: They run processes, which need a database, but use none of it that could differ.

FIB = {10: 55, 20: 6765, 30: 832040, 40: 102334155, 50: 12586269025}


@pytest.fixture(autouse=True)
def _no_connection_is_left() -> Iterator[None]:
    yield
    client.close()


@pytest.fixture
def channel(vhost: str) -> Iterator[BlockingChannel]:
    with raw_channel() as opened:
        yield opened


def serving(run_process: ProcessStarter, *arguments: str) -> RunningProcess:
    worker = run_process("run_rpc_worker", *(arguments or ("fib", "increase")))
    worker.wait_for_line("Serving")
    return worker


def handled(worker: RunningProcess) -> int:
    """How many requests the worker answered in its life, which ends here."""
    assert worker.stop() == 0
    return int(worker.wait_for_line(r"Stopped\. (\d+) handled")[1])


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
    channel: BlockingChannel, run_process: ProcessStarter, correlation_id: str | None
) -> None:
    serving(run_process)

    for queue, body, answer in [("rpc_queue", b"30", 832040), ("compute_queue", b"30", 31), ("rpc_queue", b"0", 0)]:
        properties, found = raw_request(channel, queue, body, correlation_id=correlation_id)
        assert (found, properties.correlation_id) == (answer, correlation_id)


@pytest.mark.parametrize("body", [b"-1", b"1001", b"1000000000000", b"1.5", b'"x"', b"null", b"[30]"])
def test_no_request_can_make_fib_hang(channel: BlockingChannel, run_process: ProcessStarter, body: bytes) -> None:
    worker = serving(run_process, "fib")

    assert raw_request(channel, "rpc_queue", body)[1]["error"]["type"] == "BadArguments"
    assert rpc.call("fib", 1000, timeout=30) % 10**9 == 849228875
    assert handled(worker) == 1


def test_five_threads_of_a_centre_get_each_its_own_answer(vhost: str, run_process: ProcessStarter) -> None:
    serving(run_process)
    serving(run_process)

    with ThreadPoolExecutor(5) as threads:
        ours = dict(zip(FIB, threads.map(lambda n: rpc.call("fib", n, timeout=30), FIB), strict=True))
        with closing(ClassicCentre()) as centre:
            for _ in range(10):
                classic = dict(zip(FIB, threads.map(lambda n: centre.call("rpc_queue", str(n)), FIB), strict=True))
                more = dict(zip(FIB, threads.map(lambda n: centre.call("compute_queue", str(n)), FIB), strict=True))
                assert classic == {number: str(answer) for number, answer in FIB.items()}
                assert more == {number: str(number + 1) for number in FIB}

    assert ours == FIB


@pytest.mark.parametrize(("first", "declares"), [("ours", TODAY), ("theirs", TODAY), ("theirs", OLDER)])
def test_a_tutorials_server_serves_the_same_queue_whoever_was_first(
    channel: BlockingChannel, run_process: ProcessStarter, first: str, declares: dict[str, Any]
) -> None:
    ours = serving(run_process, "fib") if first == "ours" else None
    with closing(ClassicServer("rpc_queue", declares)) as theirs:
        ours = ours or serving(run_process, "fib")
        answers = ask(channel, "rpc_queue", *range(20))

        assert answered(channel, answers, 20)["question 19"] == "4181"
        assert "rpc.queue" not in ours.output.replace("queue=rpc_queue", "")
        assert theirs.served > 0
        assert handled(ours) == 20 - theirs.served > 0


def test_a_queue_that_somebody_declared_otherwise_is_served_as_it_stands(
    channel: BlockingChannel, run_process: ProcessStarter
) -> None:
    channel.queue_declare("rpc_queue", durable=True)
    worker = serving(run_process, "fib")

    assert raw_request(channel, "rpc_queue", b"30")[1] == 832040
    assert "rpc.queue" not in worker.output.replace("queue=rpc_queue", "")


@pytest.mark.parametrize(("prefetch", "slow_gets"), [(1, 1), (6, 6)])
def test_a_slow_worker_gets_no_more_than_its_prefetch_and_the_other_does_the_rest(
    channel: BlockingChannel, vhost: str, broker: RabbitMQNode, run_process: ProcessStarter,
    prefetch: int, slow_gets: int,
) -> None:  # fmt: skip
    sizes = ("--prefetch", str(prefetch), "--concurrency", "1")
    slow, quick = serving(run_process, "increase", *sizes), serving(run_process, "increase", *sizes)
    slow.send(signal.SIGSTOP)
    answers = ask(channel, "compute_queue", *range(20))

    eventually(lambda: waiting(channel, answers) == 20 - slow_gets)
    eventually(lambda: unacknowledged(broker, vhost, "compute_queue") == slow_gets)
    slow.send(signal.SIGCONT)
    assert answered(channel, answers, 20) == {f"question {number}": str(number + 1) for number in range(20)}
    assert (handled(slow), handled(quick)) == (slow_gets, 20 - slow_gets)


def test_a_server_that_is_killed_with_a_request_has_it_answered_by_another(
    channel: BlockingChannel, vhost: str, broker: RabbitMQNode, run_process: ProcessStarter
) -> None:
    doomed = serving(run_process, "fib")
    doomed.send(signal.SIGSTOP)
    answers = ask(channel, "rpc_queue", 30)
    eventually(lambda: unacknowledged(broker, vhost, "rpc_queue") == 1)
    doomed.kill()

    # The queue is plain: it stays without a server, with what is in it.
    serving(run_process, "fib")
    assert answered(channel, answers, 1) == {"question 30": "832040"}


def test_where_a_broker_permits_no_transient_queue_that_is_said() -> None:
    """RabbitMQ 4 can be told so, and then closes the whole connection; its words are those of 4.3."""
    said = describe(
        pika.exceptions.ConnectionClosedByBroker(
            541,
            "INTERNAL_ERROR - Feature `transient_nonexcl_queues` is deprecated.\nIts use is not permitted per",
        )
    )
    assert "neither durable nor exclusive" in said


def test_a_plain_queue_that_is_missing_is_declared_as_the_tutorials_do(
    vhost: str, broker: RabbitMQNode, run_process: ProcessStarter
) -> None:
    serving(run_process, "fib")

    found = broker.api("GET", f"/queues/{urlsplit(vhost).path[1:]}/rpc_queue")
    assert (found["durable"], found["auto_delete"], found["arguments"]) == (True, False, TODAY["arguments"])

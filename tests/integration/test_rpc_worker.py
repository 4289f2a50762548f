"""`manage.py run_rpc_worker` as a real process, and calls while servers and brokers come and go."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pika
import pytest

from messaging import rpc
from messaging.broker import request_queue
from messaging.models import InboxMessage
from messaging.rpc import client
from script.services.rabbitmq import RabbitMQNode
from tests.support.network import BrokerNetwork
from tests.support.processes import ProcessStarter, RunningProcess
from tests.support.rpc import raw_channel
from tests.support.waiting import eventually

#: They run processes, which need a database, but use none of it that could differ.

QUOTE = {"weight_grams": 1200, "destination": "CN"}
ANSWER = {"amount": "10.00", "currency": "CNY"}


@pytest.fixture(autouse=True)
def _no_connection_is_left() -> Iterator[None]:
    yield
    client.close()


def serving(run_process: ProcessStarter, *arguments: str) -> RunningProcess:
    worker = run_process("run_rpc_worker", *arguments)
    worker.wait_for_line("Serving")
    return worker


def quote(timeout: float = 30) -> Any:
    return rpc.call("shipping.quote", QUOTE, timeout=timeout)


def test_the_command_prints_what_it_serves_and_a_summary(vhost: str, run_process: ProcessStarter) -> None:
    worker = serving(run_process, "shipping.quote", "--concurrency", "2", "--prefetch", "7")
    worker.wait_for_line(r"shipping\.quote: queue rpc\.shipping\.quote; prefetch 7, threads 2")

    assert quote() == ANSWER
    with pytest.raises(rpc.RemoteError, match="ValueError: We do not send to 'XX'"):
        rpc.call("shipping.quote", {**QUOTE, "destination": "XX"}, timeout=30)

    worker.wait_for_line(r"rpc\.handled.*correlation_id=\S+.*milliseconds=.*procedure=shipping\.quote")
    worker.wait_for_line(r"rpc\.failed.*error=ValueError")
    assert worker.stop() == 0
    worker.wait_for_line(r"Stopped\. 1 handled, 1 failed, 0 expired, 0 unanswerable, 0 given up in")


def test_the_command_ends_after_max_messages(vhost: str, run_process: ProcessStarter) -> None:
    worker = serving(run_process, "--max-messages", "2")

    assert [quote(), quote()] == [ANSWER, ANSWER]
    assert worker.wait() == 0


def test_an_unknown_name_is_a_usage_error_that_lists_those_that_exist(vhost: str, run_process: ProcessStarter) -> None:
    worker = run_process("run_rpc_worker", "weather")

    assert worker.wait() == 2
    assert "no procedure 'weather'. Registered: fib, increase, shipping.quote" in worker.output
    assert "Traceback" not in worker.output


@pytest.mark.parametrize("wrong", ["password", "vhost"])
def test_wrong_credentials_end_the_command_with_one_line(vhost: str, wrong: str, run_process: ProcessStarter) -> None:
    parameters = pika.URLParameters(vhost)
    address = f"{parameters.host}:{parameters.port}"
    user = f"{parameters.credentials.username}:{'wrong' if wrong == 'password' else parameters.credentials.password}"
    worker = run_process("run_rpc_worker", AMQP_URL=f"amqp://{user}@{address}/nowhere")

    assert worker.wait() == 3
    assert "Check AMQP_URL" in worker.lines[-1]
    assert "Traceback" not in worker.output


def test_without_a_broker_a_call_says_so(network: BrokerNetwork) -> None:
    network.kill()

    with pytest.raises(rpc.NoBroker, match="not sent"):
        quote()


def test_a_broker_that_dies_during_a_call_is_said_at_once(network: BrokerNetwork) -> None:
    with ThreadPoolExecutor(1) as threads:
        with raw_channel() as channel:
            channel.queue_declare("silent", durable=True)
            calling = threads.submit(rpc.call, "silent", 1, timeout=60, queue="silent")
            eventually(lambda: channel.queue_declare("silent", passive=True).method.message_count == 1)
        network.kill()

        with pytest.raises(rpc.ConnectionLost, match="before the reply"):
            calling.result(60)


def test_a_frozen_broker_costs_the_timeout_and_no_more(network: BrokerNetwork) -> None:
    network.pause()
    with pytest.raises(rpc.NoBroker, match="not sent"):
        quote(timeout=0.5)
    network.resume()
    eventually(lambda: failure_of_a_call() is rpc.NoServer)

    network.pause()
    with pytest.raises(rpc.RpcTimeout):
        quote(timeout=0.5)


def test_a_broker_out_of_memory_costs_the_timeout_and_no_more(
    breakable_broker: RabbitMQNode, run_process: ProcessStarter
) -> None:
    serving(run_process)
    assert quote() == ANSWER
    with breakable_broker.memory_alarm():
        for _ in range(2):
            with pytest.raises((rpc.RpcTimeout, rpc.NoBroker)):
                quote(timeout=0.5)

    assert quote() == ANSWER


def test_worker_and_client_come_back_with_the_broker(network: BrokerNetwork, run_process: ProcessStarter) -> None:
    worker = serving(run_process)
    assert quote() == ANSWER
    network.kill()
    worker.wait_for_line("amqp.lost")
    with pytest.raises((rpc.NoBroker, rpc.ConnectionLost)):
        quote()
    network.start()

    assert eventually(lambda: failure_of_a_call() is None, 30)
    assert worker.stop() == 0
    assert "rpc.queue_lost" not in worker.output


def test_the_command_waits_for_a_broker_that_is_not_there_yet(
    network: BrokerNetwork, run_process: ProcessStarter
) -> None:
    network.kill()
    worker = run_process("run_rpc_worker")
    worker.wait_for_line("amqp.unreachable")
    network.start()
    worker.wait_for_line("Serving", timeout=30)

    assert quote() == ANSWER
    assert worker.output.count("amqp.unreachable") <= 2
    assert "Traceback" not in worker.output


def test_a_request_queue_of_another_kind_is_used_as_it_stands_and_made_anew_when_it_is_gone(
    vhost: str, run_process: ProcessStarter
) -> None:
    with raw_channel() as channel:
        channel.queue_declare("rpc.shipping.quote", durable=True, arguments={"x-queue-type": "quorum"})
        worker = serving(run_process, "shipping.quote")
        assert quote() == ANSWER
        channel.queue_delete("rpc.shipping.quote")
        worker.wait_for_line(r"rpc\.queue_lost.*deleted")
        eventually(lambda: failure_of_a_call() is None)
        channel.queue_declare("rpc.shipping.quote", durable=True, auto_delete=True, arguments=request_queue.ARGUMENTS)

    assert worker.output.count("rpc.queue_differs") == 1
    worker.wait_for_line(
        r"rpc\.queue_differs.*queue rpc\.shipping\.quote exists with auto_delete=false, you asked for it with "
        r"auto_delete=true; it is used unchanged"
    )


def test_a_request_that_cannot_be_answered_is_shown_as_dead(vhost: str, run_process: ProcessStarter) -> None:
    serving(run_process)
    with raw_channel() as channel:
        channel.basic_publish("", "rpc.shipping.quote", b"{}", pika.BasicProperties(message_id="r-1"))
    run_process("run_consumer", "dead_letters")

    dead = eventually(lambda: InboxMessage.objects.filter(message_id="r-1", state=InboxMessage.State.DEAD).first())
    # The broker has no part in that.
    assert dead.reason == "given up in queue rpc.shipping.quote: it has no reply_to"


def failure_of_a_call() -> type[rpc.RpcError] | None:
    try:
        quote(timeout=5)
    except rpc.RpcError as error:
        return type(error)
    return None

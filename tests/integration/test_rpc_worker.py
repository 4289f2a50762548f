"""`manage.py run_rpc_worker` as a real process, and calls while brokers come and go."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pika
import pytest
from django.core.management import CommandError, call_command

from messaging import rpc
from messaging.broker import request_queue
from messaging.models import InboxMessage
from messaging.rpc import client
from messaging.worker import dead_letters
from tests.support.network import BrokerNetwork
from tests.support.processes import ProcessStarter
from tests.support.rpc import RunningServer, raw_channel
from tests.support.running import running_worker
from tests.support.waiting import eventually

QUOTE = {"weight_grams": 1200, "destination": "CN"}
ANSWER = {"amount": "10.00", "currency": "CNY"}


@pytest.fixture(autouse=True)
def _no_connection_is_left() -> Iterator[None]:
    yield
    client.close()


def quote(timeout: float = 30) -> Any:
    return rpc.call("shipping.quote", QUOTE, timeout=timeout)


def failure_of_a_call() -> type[rpc.RpcError] | None:
    try:
        quote(timeout=5)
    except rpc.RpcError as error:
        return type(error)
    return None


def test_the_command_waits_for_its_broker_serves_and_ends_after_max_messages(
    network: BrokerNetwork, run_process: ProcessStarter
) -> None:
    network.kill()
    sizes = ("--concurrency", "2", "--prefetch", "7", "--max-messages", "3")
    worker = run_process("run_rpc_worker", "shipping.quote", *sizes)
    worker.wait_for_line("amqp.unreachable")
    network.start()
    worker.wait_for_line(r"shipping\.quote: queue rpc\.shipping\.quote; prefetch 7, threads 2", timeout=30)
    worker.wait_for_line("Serving", timeout=30)
    assert worker.output.count("amqp.unreachable") <= 2

    assert quote() == ANSWER
    with pytest.raises(rpc.RemoteError, match="ValueError: We do not send to 'XX'"):
        rpc.call("shipping.quote", {**QUOTE, "destination": "XX"}, timeout=30)
    worker.wait_for_line(r"rpc\.handled.*count=1.*milliseconds_each=.*procedure=shipping\.quote")
    worker.wait_for_line(r"rpc\.failed.*error=ValueError")

    network.kill()
    worker.wait_for_line("amqp.lost")
    with pytest.raises((rpc.NoBroker, rpc.ConnectionLost)):
        quote()
    network.start()
    eventually(lambda: failure_of_a_call() is None, 30)
    assert worker.wait() == 0
    worker.wait_for_line(r"Stopped\. 2 handled, 1 failed, 0 expired, 0 unanswerable, 0 given up in")
    assert "rpc.queue_lost" not in worker.output


def test_an_unknown_name_is_a_usage_error_that_lists_those_that_exist() -> None:
    with pytest.raises(
        CommandError, match=r"no procedure 'weather'\. Registered: fib, increase, shipping\.quote"
    ) as caught:
        call_command("run_rpc_worker", "weather")
    assert caught.value.returncode == 2


def test_a_refused_account_ends_the_command_with_one_line(vhost: str, run_process: ProcessStarter) -> None:
    worker = run_process("run_rpc_worker", AMQP_URL=f"{vhost}-unknown")

    assert worker.wait() == 3
    assert "Check AMQP_URL" in worker.lines[-1]
    assert "Traceback" not in worker.output


def test_a_frozen_broker_costs_the_timeout_and_no_more(network: BrokerNetwork) -> None:
    network.pause()
    with pytest.raises(rpc.NoBroker, match="not sent"):
        quote(timeout=0.5)
    network.resume()
    eventually(lambda: failure_of_a_call() is rpc.NoServer)

    network.pause()
    with pytest.raises(rpc.RpcTimeout):
        quote(timeout=0.5)


def test_a_request_queue_of_another_kind_is_used_unchanged_and_declared_anew_once_it_is_gone(
    vhost: str, caplog: pytest.LogCaptureFixture
) -> None:
    with raw_channel() as channel:
        channel.queue_declare("rpc.shipping.quote", durable=True, arguments={"x-queue-type": "quorum"})
        server = RunningServer()
        assert quote() == ANSWER
        channel.queue_delete("rpc.shipping.quote")
        eventually(lambda: "rpc.queue_lost" in caplog.text)
        eventually(lambda: failure_of_a_call() is None)
        channel.queue_declare("rpc.shipping.quote", durable=True, auto_delete=True, arguments=request_queue.ARGUMENTS)
        server.stop()

    [line] = [each.getMessage() for each in caplog.records if "rpc.queue_differs" in each.getMessage()]
    assert "exists with auto_delete=false, you asked for it with auto_delete=true; it is used unchanged" in line


@pytest.mark.django_db(transaction=True)
def test_a_request_that_cannot_be_answered_is_shown_as_dead(vhost: str) -> None:
    server = RunningServer()
    with raw_channel() as channel:
        channel.basic_publish("", "rpc.shipping.quote", b"{}", pika.BasicProperties(message_id="r-1"))
    with running_worker(dead_letters.consumer()):
        dead = eventually(lambda: InboxMessage.objects.filter(message_id="r-1", state=InboxMessage.State.DEAD).first())
    server.stop()
    # RabbitMQ has no part in that.
    assert dead.reason == "given up in queue rpc.shipping.quote: it has no reply_to"

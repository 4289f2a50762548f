"""Any AMQP client can call a procedure, and none can make a server write where it must not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from messaging import procedures
from messaging.broker import request_queue
from messaging.rpc import procedure
from messaging.rpc.answering import Ending
from tests.support.rpc import RunningServer, got, raw_channel, raw_request, running_server
from tests.support.waiting import eventually


@pytest.fixture
def calls(isolated: Callable[..., None]) -> list[int]:
    """What the procedure `double` was called with."""
    isolated(procedures)
    seen: list[int] = []

    @procedure("double")
    def double(number: int) -> int:
        seen.append(number)
        if number < 0:
            raise ValueError("below zero")
        return 2 * number

    return seen


@pytest.fixture
def server(vhost: str, calls: list[int]) -> Iterator[RunningServer]:
    with running_server() as running:
        yield running


@pytest.fixture
def channel(server: RunningServer) -> Iterator[BlockingChannel]:
    with raw_channel() as opened:
        yield opened


def test_plain_json_gets_a_plain_reply_with_its_correlation_id(channel: BlockingChannel) -> None:
    properties, result = raw_request(channel, "rpc.double", b"30", correlation_id="a-1")
    assert (result, properties.correlation_id, properties.content_type) == (60, "a-1", "application/json")

    _, result = raw_request(channel, "rpc.double", b'{"number": -1}')
    assert result == {"error": {"type": "ValueError", "message": "below zero"}}


def test_direct_reply_to_is_answered(channel: BlockingChannel) -> None:
    replies: list[bytes] = []
    channel.basic_consume("amq.rabbitmq.reply-to", lambda *arrived: replies.append(arrived[3]), auto_ack=True)
    channel.basic_publish("", "rpc.double", b"4", pika.BasicProperties(reply_to="amq.rabbitmq.reply-to"))

    eventually(lambda: channel.connection.process_data_events(0) or replies)
    assert replies == [b"8"]


def test_a_late_caller_that_sent_its_clock_gets_the_servers(channel: BlockingChannel, calls: list[int]) -> None:
    before = procedures.now_ms()
    headers = {procedures.CLOCK_HEADER: before - 10_000, procedures.DEADLINE_HEADER: before - 7_000}
    properties, answer = raw_request(channel, "rpc.double", b"5", headers=headers)

    assert properties.headers[procedures.STATUS_HEADER] == "expired"
    assert before <= properties.headers[procedures.CLOCK_HEADER] <= procedures.now_ms()
    assert answer["error"]["type"] == "Expired"
    assert calls == []


def test_a_redelivered_request_past_its_deadline_is_skipped(vhost: str, calls: list[int]) -> None:
    with raw_channel() as dying, raw_channel() as channel:
        # Another server takes the request, and dies with it after the deadline.
        declare_request_queue(dying)
        dying.basic_consume("rpc.double", lambda *arrived: None)
        deadline = procedures.now_ms() + 200
        properties = pika.BasicProperties(reply_to="amq.gen-x", headers={procedures.DEADLINE_HEADER: deadline})
        channel.basic_publish("", "rpc.double", b"5", properties)
        eventually(lambda: channel.queue_declare("rpc.double", passive=True).method.message_count == 0)
        server = RunningServer()
        eventually(lambda: procedures.now_ms() > deadline)
        dying.connection.close()

        assert raw_request(channel, "rpc.double", b"6")[1] == 12
    assert calls == [6]
    assert server.stop().counts == {Ending.EXPIRED: 1, Ending.HANDLED: 1}


def test_what_has_arrived_is_answered_before_the_server_stops(
    vhost: str, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    @procedure("slow")
    def slow(number: int) -> int:
        time.sleep(0.2)
        return number

    server = RunningServer(concurrency=1, prefetch=5)
    with raw_channel() as channel:
        reply_to = channel.queue_declare("", exclusive=True).method.queue
        for number in range(3):
            channel.basic_publish("", "rpc.slow", str(number).encode(), pika.BasicProperties(reply_to=reply_to))
        assert eventually(lambda: got(channel, reply_to))[2] == b"0"

        assert server.stop().counts == {Ending.HANDLED: 3}
        assert [eventually(lambda: got(channel, reply_to))[2] for _ in range(2)] == [b"1", b"2"]


def test_requests_that_a_stopping_server_passes_on_do_not_count_as_crashes(vhost: str, calls: list[int]) -> None:
    with raw_channel() as holding, raw_channel() as channel:
        # Another server keeps the queue alive, and takes no more than the first.
        declare_request_queue(holding)
        holding.basic_qos(prefetch_count=1)
        holding.basic_consume("rpc.double", lambda *arrived: None)
        channel.basic_publish("", "rpc.double", b"0")
        eventually(lambda: channel.queue_declare("rpc.double", passive=True).method.message_count == 0)
        reply_to = channel.queue_declare("", exclusive=True).method.queue
        returned_once = pika.BasicProperties(reply_to=reply_to, headers={request_queue.RETURNS_HEADER: 1})
        leaving = RunningServer(max_messages=1, concurrency=1, prefetch=5)
        # All at once: one that is still on its way to a server that has left counts as lost with it.
        channel.tx_select()
        for _ in range(5):
            channel.basic_publish("", "rpc.double", b"1", returned_once)
        channel.tx_commit()
        assert eventually(lambda: got(channel, reply_to))[2] == b"2"
        staying = RunningServer()

        assert [eventually(lambda: got(channel, reply_to))[2] for _ in range(4)] == [b"2"] * 4
        assert leaving.stop().counts == {Ending.HANDLED: 1}
        assert staying.stop().counts == {Ending.HANDLED: 4}


def test_a_reply_queue_that_is_gone_and_whose_name_is_no_text_costs_no_connection(
    channel: BlockingChannel, server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    channel.basic_publish("", "rpc.double", b"5", pika.BasicProperties(reply_to=b"caf\xe9"))
    eventually(lambda: "rpc.undelivered" in caplog.text or "amqp.lost" in caplog.text)
    assert raw_request(channel, "rpc.double", b"6")[1] == 12
    assert "amqp.lost" not in caplog.text


def test_a_request_that_fills_its_frame_is_shortened_to_be_put_back_and_costs_no_connection(
    vhost: str, calls: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    with raw_channel() as dying, raw_channel() as channel:
        declare_request_queue(dying)
        dying.basic_consume("rpc.double", lambda *arrived: None)
        properties = pika.BasicProperties(reply_to="amq.gen-x", headers={"a": ""})
        properties.headers["a"] = "x" * (131_064 - 12 - sum(map(len, properties.encode())))
        channel.basic_publish("", "rpc.double", b"5", properties)
        eventually(lambda: channel.queue_declare("rpc.double", passive=True).method.message_count == 0)
        server = RunningServer()
        dying.connection.close()

        assert raw_request(channel, "rpc.double", b"6")[1] == 12
        eventually(lambda: sorted(calls) == [5, 6])
    assert server.stop().counts == {Ending.HANDLED: 2}
    said = caplog.text
    assert "headers.left_out" in said
    assert "amqp.lost" not in said


def declare_request_queue(channel: BlockingChannel) -> None:
    channel.queue_declare("rpc.double", durable=True, auto_delete=True, arguments=request_queue.ARGUMENTS)

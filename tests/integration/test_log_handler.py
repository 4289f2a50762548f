"""Logs over the broker: the lines of all processes in one place, without ever delaying the process that logs."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import structlog
from pika.adapters.blocking_connection import BlockingChannel

from messaging import conf
from messaging.broker.publisher import Publisher
from messaging.monitoring import log_handler, log_lines
from messaging.monitoring.log_handler import BrokerHandler
from messaging.topology import desired
from tests.support.amqp import plain_channel
from tests.support.environment import ROOT, process_environment
from tests.support.network import BrokerNetwork
from tests.support.waiting import eventually

#: Far longer than it takes to put a line in the queue, on a busy machine too; shorter than any wait for the network.
AT_ONCE = 2.0


@pytest.fixture
def log(request: pytest.FixtureRequest) -> Iterator[logging.Logger]:
    """A logger whose only handler is the one to be tested."""
    for name in ("vhost", "network"):
        if name in request.fixturenames:
            request.getfixturevalue(name)
    logger = logging.Logger("tests.shop", logging.DEBUG)  # not registered: pytest's handlers do not see its lines
    handler = BrokerHandler()
    logger.addHandler(handler)
    yield logger
    handler.close()


def handler_of(log: logging.Logger) -> BrokerHandler:
    (handler,) = log.handlers
    assert isinstance(handler, BrokerHandler)
    return handler


def publisher_of(log: logging.Logger) -> Publisher:
    sender = handler_of(log).sender
    assert sender
    return sender.publisher


class Listener:
    """What a terminal shows that follows some keys."""

    def __init__(self, channel: BlockingChannel, *keys: str, queue: str) -> None:
        self._channel = channel
        channel.exchange_declare("warren.logs", "topic", durable=True)
        self._queue = channel.queue_declare(queue, exclusive=not queue, durable=bool(queue)).method.queue
        for key in keys or ("#",):
            channel.queue_bind(self._queue, "warren.logs", key)
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def read(self) -> list[tuple[str, dict[str, Any]]]:
        while True:
            method, properties, body = self._channel.basic_get(self._queue, auto_ack=True)
            if method is None:
                return self.lines
            assert (properties.delivery_mode, properties.app_id) == (None, "warren")
            self.lines.append((method.routing_key, json.loads(body)))

    def texts(self) -> list[str]:
        return [line["text"] for _, line in self.read()]


@contextmanager
def listening(url: str, *keys: str, queue: str = "") -> Iterator[Listener]:
    """Follow some keys. A `queue` with a name outlives the connection."""
    with plain_channel(url) as channel:
        yield Listener(channel, *keys, queue=queue)


def test_each_listener_gets_the_lines_it_asked_for_with_their_context_and_without_secrets(
    vhost: str, log: logging.Logger
) -> None:
    with listening(vhost, "*.error", "tests.#") as some, listening(vhost, "#.error") as errors:
        log.warning("stock of %s is low", "TEA", extra={"message_id": "m-1"})
        with structlog.contextvars.bound_contextvars(request_id="r-7"):
            log.info("call +8613800138000", extra={"password": "hunter2"})
        try:
            raise ValueError("token=abc123def456")
        except ValueError:
            log.exception("it failed")
        eventually(lambda: len(some.read()) == 3)
        eventually(lambda: errors.texts() == ["it failed"])

    (key, line), (_, call), (_, failure) = some.lines
    assert key == "tests.shop.warning"
    assert list(line) == ["time", "level", "logger", "text", "process", "message_id"]
    assert line["time"].endswith("+00:00")
    assert (line["level"], line["logger"], line["text"]) == ("warning", "tests.shop", "stock of TEA is low")
    assert (line["process"].split(":")[-1], line["message_id"]) == (str(os.getpid()), "m-1")
    assert call["request_id"] == "r-7"
    assert "ValueError" in failure["exception"]
    for secret in ("13800138000", "hunter2", "abc123def456"):
        assert secret not in json.dumps(some.lines)


@pytest.mark.parametrize(
    ("logger", "level", "key"),
    [
        ("orders.sms", "ERROR", "orders.sms.error"),
        ("a b.*.#", "Level 5", "a_b._._.level_5"),
        ("a..b", "", "a._.b._"),
        ("\ud800", "INFO", "_.info"),
        ("x" * 400, "INFO", "x" * 250 + ".info"),
        ("é" * 400, "INFO", "é" * 125 + ".info"),
    ],
)
def test_odd_names_make_harmless_keys(logger: str, level: str, key: str) -> None:
    assert log_lines.key_of(logger, level) == key
    assert len(log_lines.key_of(logger, level * 100).encode()) <= 255


class Odd:
    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


def test_a_line_that_cannot_be_formatted_is_reported_and_a_huge_one_is_cut_short(
    vhost: str, log: logging.Logger
) -> None:
    with listening(vhost) as listener:
        log.info("%d bottles", "ten")
        log.info(Odd())
        log.info("surrogate \ud800 and %s", {"nested": Odd()})
        log.info("x" * 100_000, extra={"message_id": "m-1", "payload": "y" * 1_000_000})
        log.info("fine %s", "again")
        eventually(lambda: len(listener.read()) == 5)
    first, second, _, huge, last = (line for _, line in listener.lines)
    assert first["text"] == "a log record cannot be formatted: '%d bottles'"
    assert second["text"].startswith("a log record cannot be formatted")
    assert (len(huge["text"]), huge["message_id"], huge["shortened"]) == (log_lines.SHORTENED, "m-1", True)
    assert "payload" not in huge
    assert last["text"] == "fine again"


def test_the_lines_of_many_threads_arrive_each_threads_in_order(vhost: str, log: logging.Logger) -> None:
    def write(thread: int) -> None:
        for number in range(100):
            log.info("line", extra={"thread_number": thread, "number": number})

    with listening(vhost) as listener:
        threads = [threading.Thread(target=write, args=[thread]) for thread in range(4)]
        for thread in threads:
            thread.start()
        eventually(lambda: len(listener.read()) == 400)
    for thread_number in range(4):
        mine = [line["number"] for _, line in listener.lines if line["thread_number"] == thread_number]
        assert mine == list(range(100))
    assert handler_of(log).dropped == 0


def test_a_deleted_exchange_is_made_again(vhost: str, log: logging.Logger) -> None:
    with plain_channel(vhost) as channel:
        log.info("before")
        eventually(lambda: handler_of(log).sender and handler_of(log).sender.done)  # type: ignore[union-attr]
        channel.exchange_delete("warren.logs")
        log.info("lost")  # its refusal shows that the exchange is missing
        eventually(lambda: handler_of(log).dropped == 1)
    with listening(vhost) as listener:
        log.info("after")
        eventually(lambda: "after" in listener.texts())
        assert ("messaging.monitoring.log_handler.warning", 1) in [
            (key, line.get("count")) for key, line in listener.lines
        ]


# --- The broker is away, frozen, blocked ---------------------------------------------------------------------


def test_lines_written_without_a_broker_arrive_once_it_is_back(
    network: BrokerNetwork, log: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conf, "RECONNECT_MAX", 0.5)
    url = conf.get().amqp_urls[0]
    with listening(url, queue="kept") as listener:
        log.info("before")
        eventually(listener.read)
    network.kill()
    eventually(lambda: not publisher_of(log).ready)
    monkeypatch.setattr(log_handler, "MAX_LINES", 10)
    for number in range(15):
        log.info("line %d", number)
    network.start()
    with listening(url, queue="kept") as listener:
        eventually(lambda: sum(line.get("count", 1) for _, line in listener.read()) == 15)
    # The thread that sends lines may hold one more than the queue, from the beginning or taken while lines are dropped.
    assert listener.lines[0][1]["count"] == handler_of(log).dropped in {4, 5}
    assert [line["text"] for _, line in listener.lines[1:11]] == [f"line {number}" for number in range(10)]


@pytest.mark.parametrize("fault", ["away", "frozen", "blocked"])
def test_whatever_the_broker_does_logging_does_not_wait_memory_is_bounded_and_the_end_comes_in_time(
    network: BrokerNetwork, log: logging.Logger, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_handler, "MAX_LINES", 100)
    monkeypatch.setattr(log_handler, "EXIT_BUDGET", 0.2)
    log.info("before")
    eventually(lambda: handler_of(log).sender and handler_of(log).sender.done)  # type: ignore[union-attr]
    if fault == "blocked":
        publisher_of(log).connection.blocked = True  # as the broker's connection.blocked sets it
    else:
        network.kill() if fault == "away" else network.pause()
    began = time.monotonic()
    for number in range(500):
        log.info("line %d", number)
    assert time.monotonic() - began < 5 * AT_ONCE
    assert handler_of(log).queue.qsize() <= 100
    assert handler_of(log).dropped >= 500 - 100 - 2 * log_handler.BATCH
    began = time.monotonic()
    handler_of(log).close()
    assert time.monotonic() - began < 5 * AT_ONCE


# --- Processes -----------------------------------------------------------------------------------------------


def test_a_forked_process_sends_its_own_lines_and_not_its_parents(vhost: str, log: logging.Logger) -> None:
    with listening(vhost) as listener:
        log.info("parent before")
        handler = handler_of(log)
        handler.acquire()  # as another thread may hold it in this moment
        child = os.fork()
        if child == 0:
            try:
                log.info("child")
                handler.close()
            finally:
                os._exit(0)
        handler.release()
        eventually(lambda: os.waitpid(child, os.WNOHANG)[0] == child, 30)
        log.info("parent after")
        eventually(lambda: sorted(listener.texts()) == ["child", "parent after", "parent before"])
    processes = {line["text"]: line["process"] for _, line in listener.lines}
    assert processes["child"].endswith(f":{child}")
    assert processes["parent after"] == processes["parent before"]


def test_a_process_sends_its_last_line_and_none_about_the_connection_for_its_lines(vhost: str) -> None:
    program = """
import django, logging, time
django.setup()
logging.getLogger("one").error("first line")
[handler] = [each for each in logging.getLogger().handlers if hasattr(each, "sender")]
while handler.sender.done < handler.accepted:
    time.sleep(0.02)
logging.getLogger("last").error("good bye")
"""
    with listening(vhost) as listener:
        environment = process_environment(LOG_TO_BROKER="1", RELAY_THREAD="0")
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, timeout=60)
        assert (done.returncode, listener.texts()) == (0, ["first line", "good bye"])


def test_the_exchange_belongs_to_the_topology_where_logs_go_there(settings: Any) -> None:
    assert desired.log_exchange() not in desired.topology([]).exchanges
    settings.MESSAGING = {**settings.MESSAGING, "LOG_TO_BROKER": True}
    assert desired.log_exchange() in desired.topology([]).exchanges

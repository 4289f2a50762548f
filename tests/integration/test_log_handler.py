"""Logs over the broker: everybody's lines in one place, and never at the cost of whoever writes them."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import structlog
from pika.adapters.blocking_connection import BlockingChannel

from messaging import conf
from messaging.monitoring import log_handler, log_lines
from messaging.monitoring.log_handler import BrokerHandler
from messaging.topology import desired
from script.services.rabbitmq import RabbitMQNode
from tests.support.amqp import plain_channel
from tests.support.environment import ROOT, process_environment
from tests.support.network import BrokerNetwork
from tests.support.processes import ProcessStarter
from tests.support.waiting import eventually

#: Far longer than it takes to put a line in the queue, on a busy machine too; shorter than any wait for the network.
AT_ONCE = 2.0
#: Far longer than a process takes to end, but for what it waits for.
SLACK = 10.0


@pytest.fixture
def log(request: pytest.FixtureRequest) -> Iterator[logging.Logger]:
    """A logger whose only handler is the one to be tested; `log.handlers[0]`."""
    for name in ("vhost", "network", "breakable_broker"):
        if name in request.fixturenames:
            request.getfixturevalue(name)
    logger = logging.Logger("tests.shop", logging.DEBUG)  # unknown to logging, and so to those who would listen in
    handler = BrokerHandler()
    logger.addHandler(handler)
    yield logger
    handler.close()


def handler_of(log: logging.Logger) -> BrokerHandler:
    (handler,) = log.handlers
    assert isinstance(handler, BrokerHandler)
    return handler


class Listener:
    """What a terminal sees that follows some keys."""

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
            assert properties.delivery_mode is None
            assert properties.app_id == "warren"
            self.lines.append((method.routing_key, json.loads(body)))

    def texts(self) -> list[str]:
        return [line["text"] for _, line in self.read()]


@contextmanager
def listening(url: str, *keys: str, queue: str = "") -> Iterator[Listener]:
    """Somebody who follows; with a name for the `queue` it stays when they leave."""
    with plain_channel(url) as channel:
        yield Listener(channel, *keys, queue=queue)


def test_a_line_says_when_where_and_what_and_its_key_who_and_how_bad(vhost: str, log: logging.Logger) -> None:
    with listening(vhost) as listener:
        log.warning("stock of %s is low", "TEA", extra={"message_id": "m-1"})
        eventually(listener.read)
    ((key, line),) = listener.lines
    assert key == "tests.shop.warning"
    assert list(line) == ["time", "level", "logger", "text", "process", "message_id"]
    assert line["time"].endswith("+00:00")
    assert (line["level"], line["logger"], line["text"]) == ("warning", "tests.shop", "stock of TEA is low")
    assert line["process"].endswith(f":{os.getpid()}")
    assert line["message_id"] == "m-1"


def test_what_is_bound_to_the_context_is_in_every_line_and_secrets_in_none(vhost: str, log: logging.Logger) -> None:
    with listening(vhost) as listener:
        with structlog.contextvars.bound_contextvars(request_id="r-7"):
            log.info("call +8613800138000", extra={"password": "hunter2"})
        try:
            raise ValueError("token=abc123def456")
        except ValueError:
            log.exception("it failed")
        eventually(lambda: len(listener.read()) == 2)
    (_, said), (_, failed) = listener.lines
    assert said["request_id"] == "r-7"
    assert "ValueError" in failed["exception"]
    everything = json.dumps(listener.lines)
    for secret in ("13800138000", "hunter2", "abc123def456"):
        assert secret not in everything


def test_a_listener_gets_the_keys_it_asked_for(vhost: str, log: logging.Logger) -> None:
    with listening(vhost, "*.error", "tests.#") as some, listening(vhost, "#.error") as errors:
        log.info("a")
        log.error("b")
        eventually(lambda: some.texts() == ["a", "b"])
        eventually(lambda: errors.texts() == ["b"])


@pytest.mark.parametrize(
    ("logger", "level", "key"),
    [
        ("orders.sms", "ERROR", "orders.sms.error"),
        ("root", "INFO", "root.info"),
        ("a b.*.#", "Level 5", "a_b._._.level_5"),
        ("a..b", "INFO", "a._.b.info"),
        ("", "", "_._"),
        ("заказы", "INFO", "заказы.info"),
        ("\ud800", "INFO", "_.info"),
        ("x" * 400, "INFO", "x" * 250 + ".info"),
        ("é" * 400, "INFO", "é" * 125 + ".info"),
        ("a\nb\x00c", "INFO", "a_b_c.info"),
    ],
)
def test_odd_names_make_harmless_keys(logger: str, level: str, key: str) -> None:
    assert log_lines.key_of(logger, level) == key
    assert len(log_lines.key_of(logger, level * 100).encode()) <= 255


class Odd:
    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


def test_a_line_that_cannot_be_formatted_is_reported(vhost: str, log: logging.Logger) -> None:
    with listening(vhost) as listener:
        log.info("%d bottles", "ten")
        log.info(Odd())
        log.info("fine %s", "again")
        log.info("surrogate \ud800 and %s", {"nested": Odd()})
        texts = eventually(lambda: len(listener.read()) == 4 and listener.texts())
    assert texts[0] == "a log record cannot be formatted: '%d bottles'"
    assert texts[1].startswith("a log record cannot be formatted")
    assert texts[2] == "fine again"


def test_a_huge_line_is_cut_short_and_keeps_what_it_is_found_by(vhost: str, log: logging.Logger) -> None:
    with listening(vhost) as listener:
        log.info("x" * 100_000, extra={"message_id": "m-1", "payload": "y" * 1_000_000})
        eventually(listener.read)
    ((_, line),) = listener.lines
    assert (len(line["text"]), line["message_id"], line["shortened"]) == (log_lines.SHORTENED, "m-1", True)
    assert "payload" not in line


def test_many_threads_write_at_once_and_all_of_it_arrives(vhost: str, log: logging.Logger) -> None:
    def write(thread: int) -> None:
        for number in range(200):
            log.info("line", extra={"thread_number": thread, "number": number})

    with listening(vhost) as listener:
        threads = [threading.Thread(target=write, args=[thread]) for thread in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        eventually(lambda: len(listener.read()) == 1000)
    for number in range(5):
        mine = [line["number"] for _, line in listener.lines if line["thread_number"] == number]
        assert mine == list(range(200)), "in order"
    assert handler_of(log).dropped == 0


def test_a_deleted_exchange_is_made_again(vhost: str, log: logging.Logger) -> None:
    with listening(vhost) as listener:
        log.info("before")
        eventually(listener.read)
    with plain_channel(vhost) as channel:
        channel.exchange_delete("warren.logs")
    log.info("lost")  # its refusal tells that the exchange is gone
    with plain_channel(vhost) as channel:
        eventually(lambda: handler_of(log).dropped == 1)
    with listening(vhost) as listener:
        log.info("after")
        eventually(lambda: "after" in listener.texts())
        assert ("messaging.monitoring.log_handler.warning", 1) in [
            (key, line.get("count")) for key, line in listener.lines
        ]


# --- The broker is away, frozen, blocked ---------------------------------------------------------------------


def test_without_a_broker_logging_does_not_wait_and_dropped_lines_are_counted(
    log: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_handler, "MAX_LINES", 100)
    began = time.monotonic()
    for number in range(250):
        log.info("line %d", number)
    assert time.monotonic() - began < 5 * AT_ONCE
    # One of them is in the hands of the thread that will send it.
    assert handler_of(log).dropped in {149, 150}
    assert handler_of(log).queue.qsize() == 100


def test_lines_written_without_a_broker_arrive_once_it_is_back(
    network: BrokerNetwork, log: logging.Logger, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conf, "RECONNECT_MAX", 0.5)
    url = conf.get().amqp_urls[0]
    with listening(url, queue="kept") as listener:
        log.info("before")
        eventually(listener.read)
    network.kill()
    eventually(lambda: not handler_of(log).sender.publisher.ready)  # type: ignore[union-attr]
    monkeypatch.setattr(log_handler, "MAX_LINES", 10)
    for number in range(15):
        log.info("line %d", number)
    network.start()
    with listening(url, queue="kept") as listener:
        eventually(lambda: sum(line.get("count", 1) for _, line in listener.read()) == 15)
    assert listener.lines[0][1]["count"] == handler_of(log).dropped in {4, 5}
    texts = [line["text"] for _, line in listener.lines[1:]]
    assert texts == [f"line {number}" for number in range(len(texts))]


@pytest.mark.parametrize("fault", ["frozen", "blocked"])
def test_with_the_broker_frozen_or_blocked_logging_does_not_wait_and_memory_is_bounded(
    breakable_broker: RabbitMQNode, log: logging.Logger, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_handler, "MAX_LINES", 1000)
    with listening(conf.get().amqp_urls[0]) as listener:
        log.info("before")
        eventually(lambda: listener.texts() == ["before"])
    with broken(breakable_broker, fault):
        slow = 0
        for number in range(3000):
            began = time.monotonic()
            log.info("line %d", number)
            slow += time.monotonic() - began > AT_ONCE
        # A machine may stand still for a moment; lines that wait for the broker would all be slow.
        assert slow < 30
        assert handler_of(log).queue.qsize() <= 1000
        assert handler_of(log).dropped >= 3000 - 1000 - 2 * log_handler.BATCH
        began = time.monotonic()
        handler_of(log).close()
        assert time.monotonic() - began < log_handler.EXIT_BUDGET + SLACK


@contextmanager
def broken(node: RabbitMQNode, fault: str) -> Iterator[None]:
    if fault == "frozen":
        node.pause()
        try:
            yield
        finally:
            node.resume()
    else:
        with node.memory_alarm():
            yield


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


def test_the_last_line_of_a_short_process_arrives(vhost: str, transactional_db: None) -> None:
    with listening(vhost) as listener:
        done = short_process("logging.getLogger('last').error('good bye')")
        assert (done.returncode, listener.texts()) == (0, ["good bye"])


@pytest.mark.parametrize("fault", ["away", "frozen"])
def test_a_process_ends_in_time_whatever_the_broker_does(
    network: BrokerNetwork, transactional_db: None, fault: str
) -> None:
    if fault == "away":
        network.kill()
    else:
        network.pause()
    done = short_process(
        "import atexit, time; began = time.monotonic()",
        "for number in range(100): logging.getLogger('last').error('good bye')",
        "print(f'written in {time.monotonic() - began:.1f} s')",
        "logging.shutdown()",
        "print(f'ended in {time.monotonic() - began:.1f} s')",
    )
    assert done.returncode == 0
    written, ended = (float(line.split()[2]) for line in done.stdout.splitlines() if " in " in line)
    assert written < 5 * AT_ONCE
    assert ended < log_handler.EXIT_BUDGET + SLACK


def short_process(*lines: str) -> "subprocess.CompletedProcess[str]":
    program = "\n".join(["import django, logging", "django.setup()", *lines])
    environment = process_environment(LOG_TO_BROKER="1", RELAY_THREAD="0")
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, timeout=60
    )


def test_every_worker_of_a_web_server_writes_and_a_request_waits_for_none(
    network: BrokerNetwork, run_process: ProcessStarter
) -> None:
    with listening(conf.get().amqp_urls[0], "django_structlog.#", "*.info") as listener:
        web = run_process.web(workers=2, LOG_TO_BROKER="1", RELAY_THREAD="0", LOG_LEVEL="INFO")
        eventually(lambda: _visit(web.url) or len({line["process"] for _, line in listener.read()}) == 2, 30)
        assert all("request_id" in line for key, line in listener.lines if line["text"].startswith("request_"))
    network.pause()
    began = time.monotonic()
    for _ in range(20):
        _visit(web.url)
    assert time.monotonic() - began < 20 * AT_ONCE
    began = time.monotonic()
    web.send(signal.SIGTERM)
    web.wait(30)
    assert time.monotonic() - began < log_handler.EXIT_BUDGET + 2 * SLACK


def _visit(url: str) -> None:
    urllib.request.urlopen(f"{url}/", timeout=10).read()


def test_its_own_connection_is_no_reason_to_write_to_it(vhost: str, transactional_db: None) -> None:
    with listening(vhost) as listener:
        done = short_process(
            "logging.getLogger('one').error('only line')",
            "import time; from messaging.monitoring.log_handler import _handlers; (handler,) = _handlers",
            "while handler.sender.done < handler.accepted: time.sleep(0.05)",
        )
        assert done.returncode == 0
        assert listener.texts() == ["only line"]


def test_the_exchange_belongs_to_the_topology_where_logs_go_there(settings: Any) -> None:
    assert desired.log_exchange() not in desired.topology([]).exchanges
    settings.MESSAGING = {**settings.MESSAGING, "LOG_TO_BROKER": True}
    assert desired.log_exchange() in desired.topology([]).exchanges

"""The connection explains each failure in words, reconnects by itself, and leaves nothing behind."""

import gc
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from messaging import conf
from messaging.broker.calls import CALL_TIMEOUT
from messaging.broker.connection import Connection
from messaging.exceptions import BrokerUnavailable, NotFound
from messaging.topology import declare, desired
from messaging.topology.declare import Declaration
from script.services.ports import free_port
from script.services.rabbitmq import RabbitMQNode
from tests.support.amqp import plain_channel
from tests.support.consuming import a_consumer
from tests.support.listeners import something_that_answers
from tests.support.network import BrokerNetwork
from tests.support.running import InThread
from tests.support.waiting import eventually, seconds_pass

#: Seconds in which a connection is open, on a busy machine too.
SOON = 15


@pytest.fixture(autouse=True)
def impatience(settings: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "vhost" in request.fixturenames:
        request.getfixturevalue("vhost")
    monkeypatch.setattr(conf, "RECONNECT_MAX", 0.3)


@pytest.fixture
def short_patience(impatience: None, settings: Any) -> None:
    """For a server that never answers. A real broker has time to, on a busy machine too."""
    settings.MESSAGING = {**settings.MESSAGING, "CONNECT_TIMEOUT": 1.0}


def to(settings: Any, *urls: str) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": list(urls)}


@contextmanager
def connecting() -> Iterator[Connection]:
    connection = Connection("test").start()
    try:
        yield connection
    finally:
        connection.stop()
        assert not connection._thread.is_alive()


def first_error() -> tuple[str, bool]:
    with connecting() as connection:
        eventually(lambda: connection.last_error)
        return connection.last_error, connection.refused


def test_each_reason_why_no_broker_answers_is_reported_in_words(
    vhost: str, short_patience: None, settings: Any
) -> None:
    at = "amqp://user:secret@127.0.0.1"
    port = free_port()
    with something_that_answers(None) as silent, something_that_answers(b"HTTP/1.1 400 Bad Request\r\n\r\n") as http:
        for url, words in (
            (f"{at}:{port}/", f"connection refused: nothing listens at 127.0.0.1:{port}"),
            (f"{at}:{silent}/", f"the broker did not answer in time (127.0.0.1:{silent})"),
            (f"{at}:{http}/", "is it RabbitMQ"),
            ("amqp://user:secret@no-such-host.invalid/", "the host name cannot be resolved"),
        ):
            to(settings, url)
            said, refused = first_error()
            assert words in said
            assert not refused
    to(settings, vhost.replace("amqp://", "amqps://"))
    said, _ = first_error()
    assert said.startswith("TLS: ") or "connection" in said


@pytest.mark.parametrize("answer", [b"AMQP\x01\x01\x00\x0a", b"", b"\x00" * 64])
def test_a_server_that_is_no_broker_is_reported_in_words(settings: Any, answer: bytes) -> None:
    with something_that_answers(answer) as port:
        to(settings, f"amqp://user:secret@127.0.0.1:{port}/")
        said, refused = first_error()
    assert said
    assert not [word for word in ("secret", "Error") if word in said]
    assert not refused


def test_a_connection_given_up_while_it_opens_is_closed(broker: RabbitMQNode, vhost: str) -> None:
    """Otherwise it would stay open as long as its process runs."""
    with connecting() as connection:
        connection.reset("a test")  # while the first is made
        assert connection.wait_until_open(SOON)
        eventually(lambda: open_connections(broker, vhost) == 1)


def open_connections(broker: RabbitMQNode, vhost: str) -> int:
    listed = broker.ctl("list_connections", "--no-table-headers", "vhost").split()
    return listed.count(vhost.rpartition("/")[2])


def test_a_wrong_password_and_an_unknown_vhost_are_refusals(vhost: str, settings: Any) -> None:
    user, _, rest = vhost.removeprefix("amqp://").partition(":")
    to(settings, f"amqp://{user}:wrong@{rest.partition('@')[2]}")
    said, refused = first_error()
    assert refused
    assert said.startswith("the broker refused the user name or the password")

    to(settings, f"{vhost}-unknown")
    said, refused = first_error()
    assert refused
    assert "virtual host" in said


def test_a_refusal_is_not_tried_again_soon(
    network: BrokerNetwork, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    to(settings, settings.MESSAGING["AMQP_URLS"][0] + "-unknown")
    with connecting() as connection:
        eventually(lambda: connection.refused)
        connection.hurry()  # a refused account is not tried sooner, even for a waiting caller
        seconds_pass(3 * 0.3)
        assert network.taken == 1
    monkeypatch.setattr(conf, "RECONNECT_REFUSED", 0.3)
    with connecting():
        eventually(lambda: network.taken >= 3)


@pytest.mark.parametrize("frame", ["of authentication", "of the virtual host"])
def test_a_connection_cut_during_the_log_in_is_no_refusal(
    network: BrokerNetwork, broker: RabbitMQNode, frame: str
) -> None:
    start = length_of_first_frame(broker.port)
    network.limit(start + {"of authentication": 2, "of the virtual host": 25}[frame])
    with connecting() as connection:
        eventually(lambda: connection.last_error)
        assert connection.last_error.startswith("the connection ended during the log-in: ")
        assert not connection.refused
        network.heal()
        assert connection.wait_until_open(SOON)


def length_of_first_frame(port: int) -> int:
    """How many bytes the broker sends before the client's name and password."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client, client.makefile("rb") as stream:
        client.sendall(b"AMQP\x00\x00\x09\x01")
        return 7 + int.from_bytes(stream.read(7)[3:]) + 1


def test_a_refusal_counts_once_every_address_has_refused(vhost: str, short_patience: None, settings: Any) -> None:
    with something_that_answers(None) as silent:
        elsewhere = (f"amqp://127.0.0.1:{free_port()}/", f"amqp://user:secret@127.0.0.1:{silent}/")
        to(settings, vhost + "-unknown", *elsewhere, vhost)
        with connecting() as connection:
            eventually(lambda: connection.last_error)
            assert not connection.refused
            assert connection.wait_until_open(SOON)
            assert connection.last_error == ""
    to(settings, vhost + "-unknown", vhost + "-nowhere")
    with connecting() as connection:
        eventually(lambda: connection.refused)
        assert connection.never_reached


def test_a_connection_closed_by_the_broker_is_opened_again(broker: RabbitMQNode, vhost: str) -> None:
    with connecting() as connection:
        assert connection.wait_until_open(SOON)
        broker.ctl("close_all_connections", "--vhost", vhost.rpartition("/")[2], "closed by a test")
        eventually(lambda: connection.generation == 2 and connection.is_open)


def test_a_failing_on_lost_callback_does_not_stop_reconnecting(broker: RabbitMQNode, vhost: str) -> None:
    def broken(reason: str) -> None:
        raise ZeroDivisionError

    connection = Connection("test", on_lost=broken).start()
    assert connection.wait_until_open(SOON)
    connection.reset("for a test")
    eventually(lambda: connection.generation == 2)
    connection.stop()


def test_many_connections_leave_no_thread_and_no_file_behind(vhost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("messaging.broker.reconnecting.FIRST_RECONNECT_DELAY", 0.01)
    with connecting() as connection:
        connection.wait_until_open(SOON)
    before = open_files()
    threads = threading.active_count()
    with connecting() as connection:
        for generation in range(1, 21):
            eventually(lambda generation=generation: connection.generation >= generation and connection.is_open)
            connection.succeeded()
            connection.reset("for a test")
    for _ in range(10):
        with connecting() as connection:
            connection.wait_until_open(SOON)
    eventually(lambda: open_files() <= before + 2)
    assert threading.active_count() <= threads


def test_stopping_in_the_middle_of_connecting_leaves_no_file_behind(settings: Any) -> None:
    with something_that_answers(None) as port:
        to(settings, f"amqp://127.0.0.1:{port}/")
        before = open_files()
        for _ in range(10):
            with connecting():
                time.sleep(0.05)
        gc.collect()
        assert open_files() <= before + 10 + 2  # the listener holds its own ten


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


# --- One method and its answer -----------------------------------------------------------------------------


def test_after_a_refused_method_the_next_one_works(vhost: str) -> None:
    with connecting() as connection:
        connection.wait_until_open(SOON)
        with pytest.raises(NotFound, match="missing"):
            connection.call("queue_declare", queue="missing", passive=True)
        assert connection.call("queue_declare", queue="there", auto_delete=True).queue == "there"


@pytest.mark.parametrize("name", ["x" * 300, "é" * 200, None, 7])
def test_a_name_that_cannot_be_sent_is_an_error_and_the_connection_stays(vhost: str, name: Any) -> None:
    with connecting() as connection:
        connection.wait_until_open(SOON)
        with pytest.raises(BrokerUnavailable, match="could not be sent"):
            connection.call("queue_declare", queue=name)
        assert connection.call("queue_declare", queue="there", auto_delete=True).queue == "there"
        assert connection.generation == 1


def test_without_a_connection_a_method_fails_at_once(settings: Any) -> None:
    to(settings, f"amqp://127.0.0.1:{free_port()}/")
    with connecting() as connection:
        eventually(lambda: connection.last_error)
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable, match="nothing listens"):
            connection.call("queue_declare", queue="x")
        assert time.monotonic() - began < CALL_TIMEOUT


def test_threads_that_call_at_once_under_lost_connections_each_get_an_answer_or_an_error(vhost: str) -> None:
    with connecting() as connection:
        connection.wait_until_open(SOON)
        results: list[str] = []
        done = threading.Event()

        def ask(name: str) -> None:
            while not done.is_set():
                try:
                    assert connection.call("queue_declare", queue=name, auto_delete=True).queue == name
                    results.append("answer")
                except BrokerUnavailable:
                    results.append("error")
                    done.wait(0.02)

        threads = [InThread(lambda number=number: ask(f"q{number}"), "asks") for number in range(5)]
        for generation in range(1, 5):
            eventually(lambda: results and results[-1] == "answer")
            connection.succeeded()
            connection.reset("for a test")
            eventually(lambda generation=generation: connection.generation > generation)
        done.set()
        for thread in threads:
            thread.join()
        assert "answer" in results


# --- A broker in trouble -----------------------------------------------------------------------------------


def test_a_frozen_broker_hangs_neither_a_method_nor_the_stop_and_is_found_again(
    network: BrokerNetwork, short_patience: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("messaging.broker.calls.CALL_TIMEOUT", 0.5)
    with connecting() as connection, connecting() as stopped:
        assert connection.wait_until_open(SOON)
        assert stopped.wait_until_open(SOON)
        network.pause()
        with pytest.raises(BrokerUnavailable, match="did not answer"):
            connection.call("queue_declare", queue="x", auto_delete=True)  # a thawed broker may still execute it
        eventually(lambda: "did not answer in time" in connection.last_error)
        stopped.stop()
        network.resume()
        eventually(lambda: connection.is_open)
        assert connection.call("queue_declare", queue="x", auto_delete=True)


# --- Topology ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ask_again", [300.0, 0.0])
def test_a_differing_queue_is_logged_once_and_declared_once_it_is_gone(
    vhost: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, ask_again: float
) -> None:
    monkeypatch.setattr(declare, "TRY_AGAIN", ask_again)
    with plain_channel(vhost) as channel, connecting() as connection:
        connection.wait_until_open(SOON)
        otherwise = {**desired.queue_arguments(), "x-delivery-limit": 20}
        channel.queue_declare("tests.notes", durable=True, arguments=otherwise)
        declaration = Declaration(connection)
        for _ in range(3):
            assert declaration.declare(desired.topology([a_consumer()])) == {}
        [told] = [record.getMessage() for record in caplog.records if "topology.differs" in record.getMessage()]
        for word in ("tests.notes", "x-delivery-limit", "'1000'", "'20'"):
            assert word in told
        channel.queue_delete("tests.notes")
        assert declaration.declare(desired.topology([a_consumer()])) == {}
        channel.queue_declare("tests.notes", durable=True, arguments=desired.queue_arguments())


def test_an_exchange_with_another_type_is_used_unchanged(vhost: str) -> None:
    with plain_channel(vhost) as channel:
        channel.exchange_declare("orders.events", "direct", durable=True)
    with connecting() as connection:
        connection.wait_until_open(SOON)
        assert Declaration(connection).declare(desired.topology([a_consumer()])) == {}


def test_an_account_without_configure_right_uses_what_exists_and_logs_once_what_is_missing(
    broker: RabbitMQNode, vhost: str, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    name = vhost.rpartition("/")[2]
    with connecting() as connection:
        connection.wait_until_open(SOON)
        Declaration(connection).declare(desired.topology([a_consumer()]))
    broker.api("PUT", f"/users/reader-{name}", {"password": "reader", "tags": ""})
    broker.api("PUT", f"/permissions/{name}/reader-{name}", {"configure": "", "write": ".*", "read": ".*"})
    try:
        to(settings, f"amqp://reader-{name}:reader@{vhost.partition('@')[2]}")
        with connecting() as connection:
            connection.wait_until_open(SOON)
            assert Declaration(connection).declare(desired.topology([a_consumer()])) == {}
            declaration = Declaration(connection)
            for _ in range(3):
                problems = declaration.declare(desired.topology([a_consumer(name="missing")]))
                assert list(problems) == ["tests.missing"]
                assert "may not declare" in problems["tests.missing"]
            said = [record.getMessage() for record in caplog.records]
            assert len([line for line in said if "topology.problem" in line]) == 1
    finally:
        broker.api("DELETE", f"/users/reader-{name}")

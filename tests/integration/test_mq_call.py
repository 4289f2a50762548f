"""`manage.py mq call` as a person or a script types it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from io import StringIO
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.core.management import call_command

from messaging import procedures
from messaging.rpc import client, procedure
from script.services.rabbitmq import RabbitMQNode
from tests.support.command_line import mq
from tests.support.network import BrokerNetwork
from tests.support.processes import ProcessStarter
from tests.support.rpc import RunningServer, got, raw_channel, running_server
from tests.support.waiting import eventually


@pytest.fixture(autouse=True)
def _no_connection_is_left(vhost: str) -> Iterator[None]:
    yield
    client.close()


@pytest.fixture
def server(vhost: str) -> Iterator[RunningServer]:
    with running_server() as running:
        yield running


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_it_prints_the_results(server: RunningServer) -> None:
    for arguments, lines in [
        (["fib", "30"], ["832040"]),
        (["increase", "-5"], ["-4"]),
        (["shipping.quote", '{"weight_grams": 500, "destination": "CN"}'], ['{"amount": "8.00", "currency": "CNY"}']),
        (["fib", "50", "10", "30"], ["50\t12586269025", "10\t55", "30\t832040"]),
        (["anything", "4", "--queue", "compute_queue"], ["5"]),
    ]:
        said = mq("call", *arguments)
        assert (said.code, said.lines, said.err) == (0, lines, "")


def test_null_is_passed_and_no_value_passes_nothing(isolated: Callable[..., None]) -> None:
    isolated(procedures)

    @procedure("describe")
    def describe(value: str | None = "nothing") -> str:
        return "null" if value is None else value

    server = RunningServer()
    assert [mq("call", "describe", *values).out for values in (["null"], [])] == ['"null"\n', '"nothing"\n']
    server.stop()


def test_a_terminal_shows_which_answer_is_whose(server: RunningServer) -> None:
    out = Terminal()
    call_command("mq", "call", "fib", "10", "20", stdout=out)
    assert out.getvalue().splitlines() == ["10 → 55", "20 → 6765"]


def test_an_error_of_the_procedure_is_shown_with_its_type(server: RunningServer) -> None:
    one = mq("call", "fib", "-1")
    assert one.code == 1
    assert one.err.startswith("fib answered with an error: BadArguments: n: ")

    several = mq("call", "fib", "-1", "30")
    assert (several.code, several.lines) == (1, ["30\t832040"])
    assert several.err.startswith("-1 → fib answered with an error: BadArguments: n: ")
    assert several.err.endswith("1 of 2 calls failed.")


def test_without_a_server_it_says_so_at_once_and_a_plain_queue_times_out() -> None:
    said = mq("call", "shipping.quote", "{}", "--timeout", "60")
    assert said.code == 1
    assert "no server consumes the queue rpc.shipping.quote" in said.err
    assert "run_rpc_worker shipping.quote" in said.err

    with raw_channel() as channel:
        channel.queue_declare("rpc_queue")
        said = mq("call", "fib", "30", "--timeout", "1")
    assert said.code == 7
    assert "Is rpc_queue served?" in said.err


def test_wrong_arguments_are_a_usage_error(run_process: ProcessStarter) -> None:
    for arguments, words in [
        (["fib", "abc"], """'abc' is not JSON"""),
        (["fib", "abc"], """a text is written '"abc"'"""),
        (["fib", "{"], "is not JSON"),
        (["fib", "30", "--timeout", "0"], "'0' is not a number from 0.001"),
        (["fib", "30", "--timeout", "nan"], "'nan' is not a number from 0.001"),
        ([], "NAME"),
    ]:
        assert words in mq("call", *arguments).err
    assert run_process("mq", "call", "fib", "abc").wait() == 2


def test_a_broker_that_is_away_or_frozen_is_one_line_with_its_exit_code(network: BrokerNetwork, settings: Any) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "CONNECT_TIMEOUT": 1.0}
    network.kill()
    away = mq("call", "fib", "30")
    assert away.code == 3
    assert away.err.startswith("RabbitMQ: fib: not sent")
    assert away.err.endswith(". Check AMQP_URL.")
    client.close()

    network.start()
    network.pause()
    for timeout in ("0.3", "20"):  # before the connection gives up, and once it has
        frozen = mq("call", "fib", "30", "--timeout", timeout)
        assert frozen.code == 7
        assert frozen.err.startswith("RabbitMQ: fib: not sent")
        assert frozen.err.endswith(". It may be frozen, overworked or full.")
        client.close()


@pytest.mark.parametrize("right", ["configure", "write"])
def test_an_account_that_may_not_call_gets_an_error_that_says_so(
    vhost: str, broker: RabbitMQNode, settings: Any, right: str
) -> None:
    at = urlsplit(vhost)
    stranger = f"stranger-{at.path[1:]}"
    broker.api("PUT", f"/users/{stranger}", {"password": "pw", "tags": ""})
    try:
        rights = {"configure": ".*", "write": ".*", "read": ".*", right: "^$"}
        broker.api("PUT", f"/permissions/{at.path[1:]}/{stranger}", rights)
        url = f"amqp://{stranger}:pw@{at.hostname}:{at.port}{at.path}"
        settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": [url]}
        said = mq("call", "fib", "30")
    finally:
        client.close()
        broker.api("DELETE", f"/users/{stranger}")
    assert said.code == 1
    assert "RabbitMQ refuses: fib: " in said.err
    assert "`manage.py mq grants`" in said.err


def test_ctrl_c_ends_it_with_one_line(run_process: ProcessStarter) -> None:
    with raw_channel() as channel:
        channel.queue_declare("rpc_queue")
        calling = run_process("mq", "call", "fib", "30", "40", "--timeout", "600")
        for _ in range(2):
            eventually(lambda: got(channel, "rpc_queue"))
        calling.send(signal.SIGINT)

        assert calling.wait(10) == 130
    assert calling.lines[-1] == "CommandError: Interrupted; 2 of 2 not answered: unknown whether executed."
    assert "Traceback" not in calling.output

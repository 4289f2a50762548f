"""`manage.py mq call` as a person or a script types it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from io import StringIO
from urllib.parse import urlsplit

import pytest
from django.core.management import call_command

from messaging import procedures
from messaging.rpc import client, procedure
from script.services.rabbitmq import RabbitMQNode
from tests.support.command_line import mq
from tests.support.network import BrokerNetwork
from tests.support.processes import ProcessStarter
from tests.support.rpc import RunningServer, got, raw_channel
from tests.support.waiting import eventually

#: They run processes, which need a database, but use none of it that could differ.


@pytest.fixture
def server(vhost: str) -> Iterator[RunningServer]:
    running = RunningServer()
    yield running
    running.stop()
    client.close()


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def without_log(lines: list[str]) -> list[str]:
    return [line for line in lines if "rpc." not in line and "amqp." not in line]


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["fib", "30"], ["832040"]),
        (["increase", "-5"], ["-4"]),
        (["shipping.quote", '{"weight_grams": 500, "destination": "CN"}'], ['{"amount": "8.00", "currency": "CNY"}']),
        (["fib", "50", "10", "30"], ["50\t12586269025", "10\t55", "30\t832040"]),
        (["anything", "4", "--queue", "compute_queue"], ["5"]),
    ],
)
def test_it_prints_what_was_answered(
    server: RunningServer, run_process: ProcessStarter, arguments: list[str], printed: list[str]
) -> None:
    calling = run_process("mq", "call", *arguments)

    assert calling.wait() == 0
    assert without_log(calling.lines) == printed


def test_null_is_passed_and_no_value_passes_nothing(vhost: str, isolated: Callable[..., None]) -> None:
    isolated(procedures)

    @procedure("describe")
    def describe(value: str | None = "nothing") -> str:
        return "null" if value is None else value

    server = RunningServer()
    assert [mq("call", "describe", *values).out for values in (["null"], [])] == ['"null"\n', '"nothing"\n']
    server.stop()
    client.close()


def test_a_terminal_shows_which_answer_is_whose(server: RunningServer) -> None:
    out = Terminal()
    call_command("mq", "call", "fib", "10", "20", "30", "40", "50", stdout=out)

    assert out.getvalue().splitlines() == [
        "10 → 55", "20 → 6765", "30 → 832040", "40 → 102334155", "50 → 12586269025",
    ]  # fmt: skip


def test_an_error_of_the_procedure_is_shown_with_its_type(server: RunningServer, run_process: ProcessStarter) -> None:
    one = run_process("mq", "call", "fib", "-1")
    several = run_process("mq", "call", "fib", "-1", "30")

    assert (one.wait(), several.wait()) == (1, 1)
    assert one.lines[-1].startswith("CommandError: fib answered with an error: BadArguments: n: ")
    assert "30\t832040" in several.lines
    assert any(line.startswith("-1 → fib answered with an error: BadArguments: n: ") for line in several.lines)
    assert "1 of 2 calls failed" in several.lines[-1]


def test_without_a_server_it_says_so_at_once(vhost: str, run_process: ProcessStarter) -> None:
    calling = run_process("mq", "call", "shipping.quote", "{}", "--timeout", "60")

    assert calling.wait(30) == 1
    assert "nobody serves the queue rpc.shipping.quote" in calling.lines[-1]
    assert "run_rpc_worker shipping.quote" in calling.lines[-1]


def test_a_call_to_a_plain_queue_without_a_server_times_out(vhost: str, run_process: ProcessStarter) -> None:
    with raw_channel() as channel:
        channel.queue_declare("rpc_queue")
        calling = run_process("mq", "call", "fib", "30", "--timeout", "0.5")

        assert calling.wait() == 7
        assert "Is rpc_queue served?" in calling.lines[-1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fib", "abc"], """'abc' is not JSON"""),
        (["fib", "{"], "is not JSON"),
        (["fib", "30", "--timeout", "0"], "'0' is not a number from 0.001"),
        (["fib", "30", "--timeout", "nan"], "'nan' is not a number from 0.001"),
        ([], "NAME"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(
    vhost: str, run_process: ProcessStarter, arguments: list[str], said: str
) -> None:
    calling = run_process("mq", "call", *arguments)

    assert calling.wait() == 2
    assert said in calling.lines[-1]


def test_a_text_is_written_with_its_quotation_marks(vhost: str, run_process: ProcessStarter) -> None:
    assert run_process("mq", "call", "fib", "abc").wait_for_line("""a text is written '"abc"'""")


def test_a_broker_that_is_away_is_one_line_and_exit_code_3(network: BrokerNetwork, run_process: ProcessStarter) -> None:
    network.kill()
    calling = run_process("mq", "call", "fib", "30")

    assert calling.wait() == 3
    assert calling.lines[-1].startswith("CommandError: RabbitMQ: fib: not sent")
    assert calling.lines[-1].endswith(". Check AMQP_URL.")
    assert "Traceback" not in calling.output


@pytest.mark.parametrize("timeout", ["1", "20"])
def test_a_frozen_broker_is_one_line_and_exit_code_7(
    network: BrokerNetwork, run_process: ProcessStarter, timeout: str
) -> None:
    network.pause()
    calling = run_process("mq", "call", "fib", "30", "--timeout", timeout)

    assert calling.wait(40) == 7
    assert calling.lines[-1].startswith("CommandError: RabbitMQ: fib: not sent")
    assert calling.lines[-1].endswith(". It may be frozen, overworked or full.")


@pytest.mark.parametrize("right", ["configure", "write"])
def test_an_account_that_may_not_call_gets_an_error_that_says_so(
    vhost: str, broker: RabbitMQNode, run_process: ProcessStarter, right: str
) -> None:
    at = urlsplit(vhost)
    broker.api("PUT", "/users/stranger", {"password": "stranger", "tags": ""})
    try:
        rights = {"configure": ".*", "write": ".*", "read": ".*", right: "^$"}
        broker.api("PUT", f"/permissions/{at.path[1:]}/stranger", rights)
        url = f"amqp://stranger:stranger@{at.hostname}:{at.port}{at.path}"
        calling = run_process("mq", "call", "fib", "30", AMQP_URL=url)

        assert calling.wait() == 1
    finally:
        broker.api("DELETE", "/users/stranger")
    assert "RabbitMQ refuses: fib: " in calling.lines[-1]
    assert "`manage.py mq grants`" in calling.lines[-1]


def test_ctrl_c_ends_it_with_one_line(vhost: str, run_process: ProcessStarter) -> None:
    with raw_channel() as channel:
        channel.queue_declare("rpc_queue")
        calling = run_process("mq", "call", "fib", "30", "40", "--timeout", "600")
        eventually(lambda: got(channel, "rpc_queue"))
        eventually(lambda: got(channel, "rpc_queue"))
        calling.send(signal.SIGINT)

        assert calling.wait(10) == 130
    assert calling.lines[-1] == ("CommandError: Interrupted; 2 of 2 not answered: unknown whether executed.")
    assert "Traceback" not in calling.output

"""docs/protocol.md is right: its examples run as they stand there, and its numbers are those of the code."""

import json
import re
from collections.abc import Callable
from urllib.parse import quote, urlsplit

import pytest

from messaging import conf, message, procedures
from messaging.broker import properties, request_queue
from messaging.models import InboxMessage
from messaging.rpc import answering
from messaging.rpc.server import MAX_RETURNS
from messaging.topology import desired
from orders.models import Order
from script.services import foreign_clients
from script.services.rabbitmq import RabbitMQNode
from tests.foreign.conftest import ANSWERED, handle_all, inbox, texts
from tests.support.environment import ROOT
from tests.support.processes import ProcessStarter, RunningProcess
from tests.support.rpc import RunningServer
from tests.support.running import running_relay
from tests.support.waiting import eventually

PAGE = (ROOT / "docs" / "protocol.md").read_text()
EXAMPLES = re.findall(r"^```(sh|js)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)

Example = Callable[..., RunningProcess]


@pytest.fixture(params=["sh", "js"])
def example(request: pytest.FixtureRequest, vhost: str, run_process: ProcessStarter) -> Example:
    """Starts the one example in a language that holds one of some words, about the order of that number."""
    language = request.param
    there = foreign_clients.have_amqp_tools() if language == "sh" else foreign_clients.have_modules()
    if not there:
        pytest.skip("a foreign client is missing; `script/test tests/foreign` installs it")

    def start(*words: str, number: str = "") -> RunningProcess:
        (text,) = [text for kind, text in EXAMPLES if kind == language and any(word in text for word in words)]
        text = text.replace("W-7K3M9Q", number)
        run = ["sh", "-ec", text] if language == "sh" else ["node", "-e", text]
        return run_process.program(*run, NODE_PATH=str(foreign_clients.MODULES))

    return start


def test_its_publishers_publish(example: Example, orders: list[Order]) -> None:
    published = example("order.shipped", number=orders[0].number)
    assert (published.wait(), published.output) == (0, "")

    handle_all()

    assert list(inbox().values()) == ["handled"]
    row = InboxMessage.objects.get()
    assert (row.message_id, row.app_id) == ("depot/17", "depot") or not row.identified
    assert texts() == [("shipped", orders[0].number)]


def test_its_receivers_receive(example: Example, broker: RabbitMQNode, vhost: str, orders: list[Order]) -> None:
    receiver = example("bindQueue", "--routing-key='order.#'")
    exchange = f"/exchanges{urlsplit(vhost).path}/{quote('orders.events')}/bindings/source"
    eventually(lambda: any(each["destination"].startswith("amq.gen-") for each in broker.api("GET", exchange)))

    with running_relay():
        for order in orders:
            receiver.wait_for_line(order.number)


def test_its_callers_call(example: Example, server: RunningServer) -> None:
    caller = example("rpc.shipping.quote")

    assert caller.wait() == 0
    assert ANSWERED in caller.output or caller.output == "8.00 CNY"


def test_every_example_is_run_by_these_tests() -> None:
    assert [kind for kind, _ in EXAMPLES] == ["sh"] * 3 + ["js"] * 3


def test_every_header_of_ours_is_on_the_page() -> None:
    ours = {value for module in (message, procedures, request_queue) for name, value in vars(module).items()
            if name.endswith("_HEADER")}  # fmt: skip
    assert {each for each in ours if f"`{each}`" not in PAGE} == set()


def test_its_numbers_are_those_of_the_code() -> None:
    settings = conf.MessagingSettings(AMQP_URLS=("amqp://nobody",))
    assert f"`MAX_BODY_BYTES` ({settings.max_body_bytes >> 20} MiB" in PAGE
    assert f"`INBOX_RETENTION_DAYS` ({settings.inbox_retention_days:g})" in PAGE
    assert f"(`PROCEDURE_TIMEOUT`, {settings.procedure_timeout:g} s)" in PAGE
    assert f"{settings.delivery_limit} (`DELIVERY_LIMIT`)" in PAGE
    assert f"{properties.MAX_PROPERTIES >> 10} KiB together" in PAGE
    assert f"at most {procedures.MAX_ERROR_TEXT} characters" in PAGE
    assert f"(`x-expires` {request_queue.ARGUMENTS['x-expires']})" in PAGE
    assert MAX_RETURNS + 1 == 2
    assert "two servers were lost" in PAGE
    for argument in {**desired.queue_arguments(), **desired.topology([]).queues[0].arguments}:
        assert f"`{argument}`" in PAGE


def test_the_error_on_the_page_is_one_that_a_server_answers(vhost: str) -> None:
    (shown,) = re.findall(r"^```json\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    request = message.Message(body=b'{"destination": "CN"}')
    assert json.loads(answering.answer(procedures.get("shipping.quote"), request).body) == json.loads(shown)


def test_every_error_that_a_server_itself_answers_is_on_the_page() -> None:
    sources = [(ROOT / "messaging/rpc" / name).read_text() for name in ("answering.py", "server.py")]
    errors = {name for source in sources for name in re.findall(r'refusal\("(\w+)"', source)}
    assert errors >= {"BadRequest", "BadArguments", "TooLarge", "BadResult", "HandlerTimeout", "ServerLost"}
    assert {each for each in errors if f"| `{each}` |" not in PAGE} == set()

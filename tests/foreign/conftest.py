"""The shop, and clients in other languages that know nothing of it but docs/protocol.md."""

import json
from collections.abc import Callable, Iterator
from decimal import Decimal

import pytest

from messaging import consumers
from messaging.models import InboxMessage
from messaging.topology import desired
from messaging.topology.declare import declare
from orders.management.demo_order import place_demo_order
from orders.models import Order, Product, TextMessage
from script.services import foreign_clients
from tests.support.processes import ProcessStarter, RunningProcess
from tests.support.rpc import RunningServer, running_server
from tests.support.running import RunningWorker

ANSWERED = '{"amount":"8.00","currency":"CNY"}'


@pytest.fixture
def node(vhost: str, run_process: ProcessStarter) -> Callable[..., RunningProcess]:
    """Starts a script of this folder on the test's broker: `node("publish.js", …)`."""
    if not (foreign_clients.have_node() and foreign_clients.have_modules()):
        pytest.skip("Node or amqplib is missing; `script/test tests/foreign` installs them")

    def start(script: str, *arguments: str, option: str = "") -> RunningProcess:
        options = [option] if option else []
        path = str(foreign_clients.DIRECTORY / script)
        return run_process.program("node", path, *options, vhost, *arguments)

    return start


@pytest.fixture
def amqp_tool(vhost: str, run_process: ProcessStarter) -> Callable[..., RunningProcess]:
    """Starts a program of amqp-tools on the test's broker: `amqp_tool("publish", "-r", …)`."""
    if not foreign_clients.have_amqp_tools():
        pytest.skip("amqp-tools is missing; `script/test tests/foreign` installs it")

    def start(name: str, *arguments: str) -> RunningProcess:
        return run_process.program(f"amqp-{name}", f"--url={vhost}", *arguments)

    return start


@pytest.fixture
def server(vhost: str) -> Iterator[RunningServer]:
    """Serves the project's procedures."""
    with running_server() as running:
        yield running


@pytest.fixture
def orders(vhost: str, transactional_db: None) -> list[Order]:
    """Two orders, whose own events wait in the outbox, and the shop's exchange and queues."""
    assert declare(desired.topology(consumers.registered())) == {}
    product = Product.objects.create(
        sku="TEA", slug="tea", name="Tea", price=Decimal("38.00"), stock=10, weight_grams=250
    )
    return [place_demo_order(product) for _ in range(2)]


def shipped(order: Order) -> str:
    """The body of an event that a depot's own program publishes."""
    return json.dumps({"order_number": order.number, "shipped_at": "2026-05-01T12:00:00Z"})


def handle_all() -> None:
    """Let a consumer handle what waits, and leave."""
    RunningWorker(consumers.named(["sms"]), burst=True).join(60)


def inbox() -> dict[str, str]:
    """The state of each message that arrived, by the id it is known by."""
    return dict(InboxMessage.objects.values_list("message_id", "state"))


def texts() -> list[tuple[str, str]]:
    """Which texts were sent, and about which orders."""
    return sorted(TextMessage.objects.values_list("kind", "order__number"))

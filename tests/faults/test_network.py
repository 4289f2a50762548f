"""The network between the shop's processes and RabbitMQ is cut, stalls, and passes on bytes as it pleases."""

import random
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from orders.models import Product
from script.services.rabbitmq import RabbitMQNode
from script.services.tcp_proxy import TcpProxy
from tests.faults.shop import SOON, Shop, assert_calm, open_shop
from tests.support import failpoints, name_service
from tests.support.amqp import messages_left
from tests.support.listeners import something_that_answers
from tests.support.processes import ProcessStarter, RunningProcess
from tests.support.repeats import repeats
from tests.support.waiting import eventually

#: What a network does is the same for both databases.
pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def network(vhost: str) -> Iterator[TcpProxy]:
    """The network between the processes and the broker."""
    with TcpProxy(lambda: urlsplit(vhost).port or 0) as proxy:
        yield proxy


@pytest.fixture
def shop(
    network: TcpProxy, broker: RabbitMQNode, vhost: str, run_process: ProcessStarter, product: Product
) -> Iterator[Shop]:
    yield open_shop(run_process, product.slug, AMQP_URL=through(network, vhost))
    # Nor is any with a consumer that will never acknowledge it.
    eventually(lambda: not messages_left(broker, vhost), 20, report=lambda: messages_left(broker, vhost))


def through(network: TcpProxy, vhost: str) -> str:
    return vhost.replace(f":{urlsplit(vhost).port}/", f":{network.port}/")


def test_a_network_that_swallows_the_brokers_answers_is_noticed_and_everything_arrives_once(
    shop: Shop, network: TcpProxy
) -> None:
    """F21, F23, F24. Nothing is reset: only heartbeats and deadlines tell. What was published may have arrived."""
    with shop.shopping():
        shop.bought(3)
        network.stall("client")
        shop.bought(5)
        shop.web.wait_for_line("amqp.lost|no confirm within", 20)
        shop.consumers[0].wait_for_line("amqp.lost.*role=consumer", 25)
        network.heal()
        shop.bought(3)
    shop.assert_everything_arrives_once()
    shop.assert_unharmed()


def test_connections_that_are_cut_slow_or_narrow_lose_and_double_nothing(shop: Shop, network: TcpProxy) -> None:
    """F22, F25, F26, F27, F28. No visitor waits for any of that."""
    with shop.shopping(orders_per_second=10):
        for _ in repeats(short=5, full=100):
            network.cut()
            shop.bought(4)
    shop.assert_everything_arrives_once()

    # Each connection ends somewhere in a frame, also in the middle of connecting.
    places = random.Random(27)
    with shop.shopping(orders_per_second=10):
        for _ in repeats(short=8, full=200):
            network.limit(places.randint(1, 6000))
            shop.bought(3)
    network.heal()
    shop.assert_everything_arrives_once()

    for spoil in (lambda: network.delay(0.25, jitter=0.1), lambda: network.throttle(8000), lambda: network.slice(1)):
        spoil()
        with shop.shopping():
            shop.bought(8)
        shop.assert_everything_arrives_once()
        network.heal()
    shop.assert_unharmed()


def test_a_broker_that_is_not_where_its_address_leads_is_named_and_waited_for(
    vhost: str, run_process: ProcessStarter, product: Product, tmp_path: Path
) -> None:
    """F29, F30, F31. Its name is unknown; then another service answers there, or none; then the name is lost again."""
    known = tmp_path / "names"
    known.write_text("")
    with (
        something_that_answers(None) as silent,
        something_that_answers(b"HTTP/1.1 400 Bad Request\r\n\r\n") as http,
        TcpProxy(lambda: port) as network,
    ):
        port = silent
        variables = {
            **failpoints.at(name_service.from_file, **SOON),
            **name_service.looked_up_in(known),
            "AMQP_URL": through(network, vhost).replace("@127.0.0.1:", "@broker.example:"),
        }
        consumers = run_process("run_consumer", "sms", "red_packet", **variables)
        shop = Shop(run_process.web(**variables), [consumers], product.slug)

        def assert_waits_for(reason: str) -> None:
            for _ in range(2):
                shop.buy()
            for process in shop.processes:
                eventually(lambda process=process: reason in last(process, "amqp"), 20)
            assert_calm(consumers, seconds=2)

        assert_waits_for("host name cannot be resolved")
        known.write_text("broker.example 127.0.0.1\n")
        assert_waits_for("did not answer in time")
        port = http
        network.cut()
        assert_waits_for("is it RabbitMQ")
        port = urlsplit(vhost).port or 0
        network.cut()
        shop.assert_everything_arrives_once()
        known.write_text("")
        network.cut()
        assert_waits_for("host name cannot be resolved")
        known.write_text("broker.example 127.0.0.1\n")
        shop.assert_everything_arrives_once()
        shop.assert_unharmed()


def last(process: RunningProcess, pattern: str) -> str:
    """The last line that a process printed of those in which `pattern` is found."""
    return next((line for line in reversed(process.lines) if re.search(pattern, line)), "")

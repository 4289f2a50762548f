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
from tests.faults.shop import SOON, Shop, assert_calm, environment, open_shop
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
    """What stands between the processes and the broker."""
    with TcpProxy(lambda: urlsplit(vhost).port or 0) as proxy:
        yield proxy


@pytest.fixture
def shop(
    network: TcpProxy, broker: RabbitMQNode, vhost: str, run_process: ProcessStarter, product: Product
) -> Iterator[Shop]:
    yield open_shop(run_process, product.slug, AMQP_URL=through(network, vhost))
    # None is with a consumer either that will never acknowledge it.
    eventually(lambda: not messages_left(broker, vhost), 20, report=lambda: messages_left(broker, vhost))


def through(network: TcpProxy, vhost: str) -> str:
    return vhost.replace(f":{urlsplit(vhost).port}/", f":{network.port}/")


@pytest.mark.parametrize("towards", [("client", "server"), ("client",)], ids="-".join)
def test_a_silent_network_is_noticed_and_what_it_swallowed_arrives_once(
    towards: tuple[str, ...], shop: Shop, network: TcpProxy
) -> None:
    """F21, F23, F24. Nothing is reset: only heartbeats and deadlines tell. What was published may have arrived."""
    with shop.shopping():
        shop.bought(3)
        network.stall(*towards)  # type: ignore[arg-type]
        shop.bought(5)
        shop.web.wait_for_line("amqp.lost|no confirm within", 20)
        shop.consumers[0].wait_for_line("amqp.lost.*role=consumer", 25)
        network.heal()
        shop.bought(3)
    shop.assert_everything_arrives_once()
    shop.assert_unharmed()


def test_connections_reset_again_and_again_lose_and_double_nothing(shop: Shop, network: TcpProxy) -> None:
    """F22."""
    with shop.shopping(orders_per_second=10):
        for _ in repeats(short=5, full=100):
            network.cut()
            shop.bought(4)
    shop.assert_everything_arrives_once()
    shop.assert_unharmed()


def test_a_slow_network_slows_no_visitor_down(shop: Shop, network: TcpProxy) -> None:
    """F25."""
    network.delay(0.25, jitter=0.1)
    with shop.shopping():
        shop.bought(10)
    shop.assert_everything_arrives_once()
    shop.assert_unharmed()


def test_a_narrow_network_slows_no_visitor_down(shop: Shop, network: TcpProxy) -> None:
    """F26."""
    network.throttle(8000)
    with shop.shopping():
        shop.bought(10)
    shop.assert_everything_arrives_once()
    shop.assert_unharmed()


def test_frames_cut_anywhere_lose_and_double_nothing(shop: Shop, network: TcpProxy) -> None:
    """F27. Each connection ends somewhere in a frame, also in the middle of connecting."""
    places = random.Random(27)
    with shop.shopping(orders_per_second=10):
        for _ in repeats(short=8, full=200):
            network.limit(places.randint(1, 6000))
            shop.bought(3)
    network.heal()
    shop.assert_everything_arrives_once()
    shop.assert_unharmed()


def test_frames_in_slices_of_one_byte_are_understood(shop: Shop, network: TcpProxy) -> None:
    """F28."""
    network.slice(1)
    with shop.shopping():
        shop.bought(5)
    shop.assert_everything_arrives_once()
    shop.assert_unharmed()


def test_a_host_name_that_comes_and_goes_is_looked_up_again(
    network: TcpProxy, vhost: str, run_process: ProcessStarter, product: Product, tmp_path: Path
) -> None:
    """F30."""
    known = tmp_path / "names"
    known.write_text("")
    variables = {
        **failpoints.at(name_service.from_file, **SOON),
        **name_service.looked_up_in(known),
        "AMQP_URL": through(network, vhost).replace("@127.0.0.1:", "@broker.example:"),
    }
    consumers = run_process("run_consumer", "sms", "red_packet", **variables)
    shop = Shop(run_process.web(**variables), [consumers], product.slug)
    for _ in range(2):
        for _ in range(3):
            shop.buy()
        for process in shop.processes:
            eventually(lambda process=process: "host name cannot be resolved" in last(process, "amqp"), 20)
        assert_calm(consumers)
        known.write_text("broker.example 127.0.0.1\n")
        shop.assert_everything_arrives_once()
        known.write_text("")
        network.cut()
    shop.assert_unharmed()


def last(process: RunningProcess, pattern: str) -> str:
    """The last line that a process printed of those in which `pattern` is found."""
    return next((line for line in reversed(process.lines) if re.search(pattern, line)), "")


@pytest.mark.parametrize(
    ("answer", "said"),
    [(None, "did not answer in time"), (b"HTTP/1.1 400 Bad Request\r\n\r\n", "is it RabbitMQ")],
    ids=["silence", "HTTP"],
)
def test_whatever_else_has_the_brokers_port_is_told_and_waited_out(
    answer: bytes | None, said: str, vhost: str, run_process: ProcessStarter, product: Product
) -> None:
    """F29, F31."""
    with something_that_answers(answer) as listener:
        port = listener
        with TcpProxy(lambda: port) as network:
            url = through(network, vhost)
            consumers = run_process("run_consumer", "sms", "red_packet", **environment(), AMQP_URL=url)
            shop = Shop(run_process.web(**environment(), AMQP_URL=url), [consumers], product.slug)
            for _ in range(3):
                shop.buy()
            for process in shop.processes:
                process.wait_for_line(f"amqp.unreachable.*{said}", 20)
            assert_calm(consumers)
            port = urlsplit(vhost).port or 0
            network.cut()
            shop.assert_everything_arrives_once()
            shop.assert_unharmed()

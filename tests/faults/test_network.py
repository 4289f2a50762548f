"""The network between the shop's processes and RabbitMQ is cut, stalls, and passes on bytes as it pleases."""

import random
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from orders.models import Product
from script.services.tcp_proxy import TcpProxy
from tests.faults.shop import Shop, environment, open_shop
from tests.support.listeners import something_that_answers
from tests.support.processes import ProcessStarter
from tests.support.rounds import rounds

#: What a network does is the same for both databases.
pytestmark = [pytest.mark.only_on("sqlite"), pytest.mark.django_db(transaction=True)]


@pytest.fixture
def network(vhost: str) -> Iterator[TcpProxy]:
    """What stands between the processes and the broker."""
    with TcpProxy(lambda: urlsplit(vhost).port or 0) as proxy:
        yield proxy


@pytest.fixture
def shop(network: TcpProxy, vhost: str, run_process: ProcessStarter, product: Product) -> Shop:
    return open_shop(run_process, product.slug, AMQP_URL=through(network, vhost))


def through(network: TcpProxy, vhost: str) -> str:
    return vhost.replace(f":{urlsplit(vhost).port}/", f":{network.port}/")


@pytest.mark.parametrize("towards", [("client", "server"), ("client",), ("server",)], ids="-".join)
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
        for _ in rounds(short=5, full=100):
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
        for _ in rounds(short=6, full=200):
            network.limit(places.randint(1, 6000))
            shop.bought(5)
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


def test_a_port_that_never_answers_keeps_no_visitor_waiting(
    vhost: str, run_process: ProcessStarter, product: Product
) -> None:
    """F29."""
    with something_that_answers(None) as port:
        shop = open_shop(run_process, product.slug, AMQP_URL=f"{vhost},amqp://127.0.0.1:{port}/")
        nowhere = run_process.web(**{**environment(), "AMQP_URL": f"amqp://127.0.0.1:{port}/"})
        reached, shop.web = shop.web, nowhere
        for _ in range(5):
            shop.buy()
        nowhere.wait_for_line("amqp.unreachable", 15)
        shop.assert_unharmed()
        nowhere.kill()
        shop.web = reached
        # Once the leases of the web process that reached nobody have ended, any relay publishes its rows.
        shop.assert_everything_arrives_once()

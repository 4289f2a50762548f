"""Does an order wait for the broker? The shop's own order POST, eight clients at once, while RabbitMQ runs or does not.

gunicorn serves the shop with its relay thread. Eight carts are filled, then all eight buttons are pressed at once; only
that is measured. Afterwards the broker runs again, and every event must be published. Beside it stands the same shop
that publishes nothing, and one that sends a Celery task after each commit, with a confirm. `post_full` does the same
while other programs use both cores.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path

from benchmarks.harness.benchmark import Benchmark, Variant
from benchmarks.harness.clients import SHOP, manage, ready_in, running
from benchmarks.harness.window import BROKER, Measured, Window, percentiles, require, wait_for
from script.services.ports import answers, free_port
from script.services.rabbitmq import RabbitMQNode
from script.shopper import Page, Shopper

CLIENTS = 8
Broker = Callable[[RabbitMQNode], AbstractContextManager[None]]


def warren(broker: Broker, count: int) -> Measured:
    """Place orders while the broker is as `broker` makes it."""
    from messaging.models import OutboxMessage

    waiting = OutboxMessage.objects.exclude(state="published")
    measured = post("project.wsgi", broker, count, until=lambda: not waiting.exists())
    require(measured.count + CLIENTS, OutboxMessage.objects.count(), "events")
    return measured


def nothing(count: int) -> Measured:
    """Place orders, and publish nothing."""
    return post("benchmarks.shop.site", running_broker, count)


def celery(count: int) -> Measured:
    """Place orders, and send a task for each."""
    all_sent = lambda: ready_in("celery.receipts") == count // CLIENTS * CLIENTS + CLIENTS  # noqa: E731
    return post("benchmarks.shop.site", running_broker, count, until=all_sent)


def post(application: str, broker: Broker, count: int, until: Callable[[], bool] = lambda: True) -> Measured:
    """Place orders at a site while the broker is as `broker` makes it; then it runs, and `until` must become true."""
    from orders.models import Order, Product

    for command in (("seed_demo",), ("collectstatic", "--noinput")):
        subprocess.run(manage(*command), check=True, capture_output=True)
    Product.objects.filter(slug="jasmine-tea").update(stock=1_000_000)
    port = free_port()
    server = ("gunicorn", application, f"--bind=127.0.0.1:{port}", "--workers=2", "--threads=4")
    with running(sys.executable, "-m", *server, "--no-control-socket") as site:
        wait_for(lambda: answers(port))
        shoppers = [Shopper(f"http://127.0.0.1:{port}", follow_redirects=False) for _ in range(CLIENTS)]
        with ThreadPoolExecutor(CLIENTS) as pool:
            _burst(pool, shoppers)
            window = Window(site)
            with broker(RabbitMQNode(Path(os.environ[BROKER]))):
                window.start()
                bursts = [_burst(pool, shoppers) for _ in range(count // CLIENTS)]
                measured = window.measured(len(bursts) * CLIENTS, seconds=sum(whole for whole, _ in bursts))
        wait_for(until, every=0.1)
    require(measured.count + CLIENTS, Order.objects.count(), "orders")
    measured.more = percentiles([each for _, singles in bursts for each in singles])
    return measured


def _burst(pool: ThreadPoolExecutor, shoppers: list[Shopper]) -> tuple[float, list[float]]:
    """Fill a cart for each shopper, then order all; return the seconds of the whole and of each order."""
    carts = list(pool.map(lambda shopper: shopper.fill_cart("jasmine-tea"), shoppers))
    start = time.perf_counter()
    singles = list(pool.map(_order, shoppers, carts))
    return time.perf_counter() - start, singles


def _order(shopper: Shopper, cart: Page) -> float:
    start = time.perf_counter()
    shopper.place_order(cart)
    return time.perf_counter() - start


def running_broker(node: RabbitMQNode) -> AbstractContextManager[None]:
    """Leave the broker as it is."""
    return nullcontext()


@contextmanager
def frozen(node: RabbitMQNode) -> Iterator[None]:
    """Freeze the broker's processes."""
    node.pause()
    try:
        yield
    finally:
        node.resume()


@contextmanager
def stopped(node: RabbitMQNode) -> Iterator[None]:
    """Stop RabbitMQ inside its Erlang machine: connections are closed, and refused."""
    node.ctl("stop_app")
    try:
        yield
    finally:
        node.ctl("start_app")


BROKERS: dict[str, Broker] = {
    "broker running": running_broker,
    "broker frozen": frozen,
    "broker stopped": stopped,
    "broker alarmed": RabbitMQNode.memory_alarm,
}
VARIANTS = tuple(
    Variant(name, partial(warren, broker), environment=SHOP, warren=True) for name, broker in BROKERS.items()
)
BENCHMARK = Benchmark(
    question="The order's POST: eight clients at once, with the broker running or not",
    unit="orders",
    reference="broker running",
    count=320,
    quick_count=80,
    minutes=7,
    variants=(
        *VARIANTS,
        Variant("publishing nothing", nothing, environment={**SHOP, "BENCH_EVENTS": "nothing"}),
        Variant("Celery, confirmed", celery, environment={**SHOP, "BENCH_EVENTS": "celery"}),
    ),
)

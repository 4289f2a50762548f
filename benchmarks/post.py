"""Does an order wait for the broker? The shop's own order POST, eight clients at once, while RabbitMQ runs or does not.

gunicorn serves the shop with its relay thread. Eight carts are filled, then all eight buttons are pressed at once; only
that is measured. Afterwards the broker runs again, and every event must be published.
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

from django.db import connection

from benchmarks.harness.benchmark import Benchmark, Variant
from benchmarks.harness.clients import manage, running
from benchmarks.harness.window import BROKER, Measured, Window, percentiles, require, wait_for
from script.environment import UNLIMITED_ORDERS
from script.services.ports import answers, free_port
from script.services.rabbitmq import RabbitMQNode
from script.shopper import Page, Shopper

CLIENTS = 8
SHOP = {"DJANGO_SETTINGS_MODULE": "project.settings", "SECRET_KEY": "benchmark", "DEBUG": "0", **UNLIMITED_ORDERS}
Broker = Callable[[RabbitMQNode], AbstractContextManager[None]]


def post(broker: Broker, count: int) -> Measured:
    """Place orders while the broker is as `broker` makes it."""
    from messaging.models import OutboxMessage

    for command in (("migrate",), ("seed_demo",), ("collectstatic", "--noinput")):
        subprocess.run(manage(*command), env={**os.environ, **SHOP}, check=True, capture_output=True)
    _sql("UPDATE orders_product SET stock = 1000000 WHERE slug = 'jasmine-tea'")
    port = free_port()
    server = ("gunicorn", "project.wsgi", f"--bind=127.0.0.1:{port}", "--workers=2", "--threads=4")
    with running(sys.executable, "-m", *server, "--no-control-socket", **SHOP) as site:
        wait_for(lambda: answers(port))
        shoppers = [Shopper(f"http://127.0.0.1:{port}", follow_redirects=False) for _ in range(CLIENTS)]
        with ThreadPoolExecutor(CLIENTS) as pool:
            _burst(pool, shoppers)
            window = Window(site)
            with broker(RabbitMQNode(Path(os.environ[BROKER]))):
                window.start()
                bursts = [_burst(pool, shoppers) for _ in range(count // CLIENTS)]
                measured = window.measured(len(bursts) * CLIENTS, seconds=sum(whole for whole, _ in bursts))
        waiting = OutboxMessage.objects.exclude(state="published")
        wait_for(lambda: not waiting.exists(), every=0.1)
    require(measured.count + CLIENTS, _sql("SELECT count(*) FROM orders_order"), "orders")
    measured.more = percentiles([each for _, singles in bursts for each in singles])
    return measured


def _burst(pool: ThreadPoolExecutor, shoppers: list[Shopper]) -> tuple[float, list[float]]:
    """Fill a cart for each shopper, then order all; return the seconds of the whole and of each order."""
    carts = [shopper.fill_cart("jasmine-tea") for shopper in shoppers]
    start = time.perf_counter()
    singles = list(pool.map(_order, shoppers, carts))
    return time.perf_counter() - start, singles


def _order(shopper: Shopper, cart: Page) -> float:
    start = time.perf_counter()
    shopper.place_order(cart)
    return time.perf_counter() - start


def _sql(statement: str) -> int:
    """Run a statement on the shop's tables, which this project does not know; return the first number, if any."""
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return int(cursor.fetchone()[0]) if cursor.description else 0


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
    "broker running": lambda node: nullcontext(),
    "broker frozen": frozen,
    "broker stopped": stopped,
    "broker alarmed": RabbitMQNode.memory_alarm,
}
BENCHMARK = Benchmark(
    question="The order's POST: eight clients at once, with the broker running or not",
    unit="orders",
    reference="broker running",
    count=400,
    quick_count=80,
    variants=tuple(Variant(name, partial(post, broker)) for name, broker in BROKERS.items()),
)

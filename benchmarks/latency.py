"""How long after an order's commit does the handler begin, at 50 orders a second?

The limit publishes by pika after the commit, without an outbox and without a confirm, to a consumer that does nothing.
Warren's handler begins after its inbox row is written, by design. Who falls behind the 50 orders, here or in the
consumer, has failed: there is no figure.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.harness.benchmark import Benchmark, Variant
from benchmarks.harness.clients import channel, declare, manage, running
from benchmarks.harness.window import Measured, Window, percentiles, require, wait_for
from benchmarks.order import new_products, serves_requests

#: Orders a second.
PACE = 50
WARM_UP = 20
#: Seconds by which the last order, and the last handler, may be late.
BEHIND = 1.0


def warren(count: int) -> Measured:
    """Publish by this process's relay thread, and run a consumer."""
    from benchmarks.shop.events import order_placed
    from messaging import outbox

    serves_requests()
    return measure(count, lambda number: outbox.add(order_placed(number)), *manage("run_consumer", "receipts"))


def celery(count: int) -> Measured:
    """Send a task after the commit, confirmed, and run a tuned worker."""
    from django.db import transaction

    from benchmarks.shop.celery import receipts
    from benchmarks.shop.events import order_placed

    def send(number: str) -> None:
        body = order_placed(number).model_dump()
        transaction.on_commit(partial(receipts.apply_async, (body, number)))

    worker = ("celery", "-A", "benchmarks.shop.celery", "worker", "--pool=solo", "--without-gossip", "--without-mingle")
    return measure(count, send, sys.executable, "-m", *worker)


def direct(count: int) -> Measured:
    """Publish by pika after the commit."""
    from django.db import transaction

    from benchmarks.shop.direct import QUEUE
    from benchmarks.shop.events import order_placed

    declare("bench.events", QUEUE, "order.placed")
    with channel() as amqp:

        def send(number: str) -> None:
            body = order_placed(number).encode()
            transaction.on_commit(partial(amqp.basic_publish, "bench.events", "order.placed", body))

        return measure(count, send, sys.executable, "-m", "benchmarks.shop.direct")


def measure(count: int, event: Callable[[str], object], *consumer: str) -> Measured:
    """Place orders at an even pace while `consumer` runs, and compare the times of commits and of entries."""
    from django.db import transaction

    from benchmarks.shop.work import place_order

    products = new_products()
    committed: dict[str, float] = {}

    def stamped(number: str) -> None:
        transaction.on_commit(lambda: committed.setdefault(number, time.monotonic()))
        event(number)

    with tempfile.NamedTemporaryFile() as entries:
        path = Path(entries.name)
        with running(*consumer, BENCH_ENTRIES=entries.name):
            for each in range(WARM_UP):
                place_order(f"W{each:08}", products, stamped)
            # The warm-up is over once the consumer runs and has handled it.
            wait_for(lambda: len(_entries(path)) == WARM_UP, every=0.1)
            window = Window()
            window.start()
            due = time.monotonic()
            for each in range(count):
                place_order(f"N{each:08}", products, stamped)
                due += 1 / PACE
                time.sleep(max(0.0, due - time.monotonic()))  # the pace that the question names
            window.stop()
            wait_for(lambda: len(_entries(path)) >= WARM_UP + count, seconds=30, every=0.1)
            measured = window.measured(count)
        entered = _entries(path)
    require(count + WARM_UP, len(entered), "handlers begun")
    last = f"N{count - 1:08}"
    require(0, int((window.seconds - count / PACE) / BEHIND), "seconds that the orders fell behind their pace")
    require(0, int((entered[last] - committed[last]) / BEHIND), "seconds that the handlers fell behind the orders")
    seconds = [entered[number] - committed[number] for number in committed if number.startswith("N")]
    measured.more = percentiles(seconds)
    return measured


def _entries(path: Path) -> dict[str, float]:
    """Return when the handler of each order began."""
    return {number: float(at) for number, at in map(str.split, path.read_text().splitlines())}


BENCHMARK = Benchmark(
    question="From the commit to the handler's entry, at 50 orders a second",
    unit="orders",
    reference="pika, direct",
    figure="p50, ms",
    count=500,
    quick_count=100,
    minutes=4,
    variants=(
        Variant("pika, direct", direct),
        Variant("Celery, confirmed", celery, environment={"BENCH_TUNED": "1"}),
        Variant("Warren, PostgreSQL", warren, warren=True),
        Variant("Warren, SQLite", warren, database="sqlite", warren=True),
    ),
)

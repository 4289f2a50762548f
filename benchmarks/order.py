"""What does one event cost the transaction of an order: one order after the other, as fast as they go?

An order, two lines and the stock are written by the ORM. Then nothing, or an event: in the outbox, published by this
process's own relay thread or by a relay elsewhere (none runs here), or sent by Celery after the commit, with a confirm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import request_started

from benchmarks.harness.benchmark import Benchmark, Variant
from benchmarks.harness.clients import ready_in
from benchmarks.harness.window import Measured, Window, require, wait_for

if TYPE_CHECKING:
    from benchmarks.shop.models import Product

#: Orders before the measurement: connections are opened, statements prepared.
WARM_UP = 20


def nothing(count: int) -> Measured:
    """Place orders without an event."""
    return place_orders(count, lambda number: None)


def outbox(count: int) -> Measured:
    """Add an event to each order's transaction."""
    from django.conf import settings

    from benchmarks.shop.consumers import QUEUE
    from benchmarks.shop.events import order_placed
    from messaging import outbox
    from messaging.models import OutboxMessage

    serves_requests()
    rows = OutboxMessage.objects.filter(state="published" if settings.MESSAGING["RELAY_THREAD"] else "pending")
    measured = place_orders(
        count,
        lambda number: outbox.add(order_placed(number), subject=number),
        until=lambda: rows.count() == count + WARM_UP,
    )
    if settings.MESSAGING["RELAY_THREAD"]:
        require(count + WARM_UP, ready_in(QUEUE), "messages in the queue")
    return measured


def celery(count: int) -> Measured:
    """Send a task after each order's commit."""
    from django.db import transaction

    from benchmarks.shop.celery import QUEUE, receipts
    from benchmarks.shop.events import order_placed

    return place_orders(
        count,
        lambda number: transaction.on_commit(
            lambda: receipts.apply_async((order_placed(number).model_dump(), number)) and None
        ),
        until=lambda: ready_in(QUEUE) == count + WARM_UP,
    )


def place_orders(count: int, event: Callable[[str], object], until: Callable[[], bool] = lambda: True) -> Measured:
    """Place orders with `event` in their transaction. CPU counts until `until` is true: until all are published."""
    from benchmarks.shop.models import Order
    from benchmarks.shop.work import place_order

    products = new_products()
    window = Window()
    for number in range(-WARM_UP, count):
        if number == 0:
            window.start()
        place_order(f"N{number:08}", products, event)
    window.stop()
    wait_for(until, seconds=30, every=0.05)
    measured = window.measured(count)
    require(count + WARM_UP, Order.objects.count(), "orders")
    return measured


def new_products() -> list[Product]:
    """Return two products with enough stock."""
    from benchmarks.shop.models import Product

    return [Product.objects.create(name=name, stock=1_000_000) for name in ("tea", "fan")]


def serves_requests() -> None:
    """Make this a process that serves requests: such a one has a relay thread, unless RELAY_THREAD=0."""
    request_started.send(WSGIHandler, environ={})


BENCHMARK = Benchmark(
    question="One event in the transaction of an order: one process, one order after the other",
    unit="orders",
    reference="no event",
    count=3_000,
    quick_count=300,
    minutes=3,
    as_change=True,
    variants=(
        Variant("no event", nothing),
        Variant("Warren, relay thread", outbox, warren=True),
        Variant("Warren, relay elsewhere", outbox, environment={"RELAY_THREAD": "0"}, warren=True),
        Variant("Celery, confirmed, after the commit", celery),
    ),
)

"""How fast does the relay publish what waits in the outbox, from its first claim to its last mark?

The limit is a C program that publishes the same messages from memory: no database, 500 unconfirmed at most. Celery
publishes from memory too, one confirm after the other, as a request does. django-outbox-pattern publishes from a table;
STOMP without receipts, so nothing is confirmed.
"""

from __future__ import annotations

import subprocess
from contextlib import suppress

from benchmarks.harness.benchmark import Benchmark, Variant
from benchmarks.harness.clients import c_program, declare, manage, ready_in, running
from benchmarks.harness.window import Measured, Window, require, wait_for

WINDOW = 500
#: Events that one transaction adds, while the outbox is filled.
TOGETHER = 500


def warren(count: int) -> Measured:
    """Fill the outbox, start a relay, and wait until all is marked and in the queue."""
    from benchmarks.shop.consumers import QUEUE
    from messaging.models import OutboxMessage

    fill_outbox(count)
    first_id, *_, last_id = OutboxMessage.objects.order_by("pk").values_list("pk", flat=True)
    first = OutboxMessage.objects.filter(pk=first_id, state="pending", lease_token=None)
    last = OutboxMessage.objects.filter(pk=last_id, state="published")
    waiting = OutboxMessage.objects.filter(state="pending")
    with running(*manage("run_relay")) as relay:
        window = Window(relay)
        window.start()
        # A claim takes about 10 ms; the start of the process, before it, is not measured.
        wait_for(lambda: not first.exists(), every=0.002)
        window.start()
        wait_for(last.exists)
        wait_for(lambda: not waiting.exists())
        window.stop()
        measured = window.measured(count)
    require(count, OutboxMessage.objects.filter(state="published", published_at__isnull=False).count(), "rows marked")
    require(count, ready_in(QUEUE), "messages in the queue")
    return measured


def fill_outbox(count: int) -> None:
    """Add `count` events."""
    from django.db import transaction

    from benchmarks.shop.events import order_placed
    from messaging import outbox

    numbers = [f"N{number:08}" for number in range(count)]
    for start in range(0, count, TOGETHER):
        with transaction.atomic():
            for number in numbers[start : start + TOGETHER]:
                outbox.add(order_placed(number), subject=number)


def c(count: int) -> Measured:
    """Publish from C."""
    from benchmarks.shop.events import order_placed

    declare("bench.events", "limit", "order.placed")
    window = Window()
    window.start()
    command = c_program("bench.events", "order.placed", count, WINDOW, order_placed("N00000000").encode())
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    window.stop()
    seconds, cpu = map(float, done.stdout.split())
    measured = window.measured(count, seconds=seconds, client=cpu)
    wait_for(lambda: ready_in("limit") == count, seconds=5)
    return measured


def celery(count: int) -> Measured:
    """Publish with `apply_async`, confirmed one by one."""
    from benchmarks.shop.celery import QUEUE, receipts
    from benchmarks.shop.events import order_placed

    bodies = [order_placed(f"N{number:08}").model_dump() for number in range(count)]
    receipts.apply_async((bodies[0], "warm-up"))
    window = Window()
    window.start()
    for body in bodies:
        receipts.apply_async((body, body["number"]))
    window.stop()
    measured = window.measured(count)
    wait_for(lambda: ready_in(QUEUE) == count + 1, seconds=5)
    return measured


def django_outbox_pattern(count: int) -> Measured:
    """Fill its table, and let its producer publish once."""
    from django.db import transaction
    from django_outbox_pattern.choices import StatusChoice
    from django_outbox_pattern.factories import factory_producer
    from django_outbox_pattern.models import Published

    from benchmarks.shop.events import order_placed

    declare("bench.events", "limit", "order.placed")
    with transaction.atomic():
        for number in range(count):
            body = order_placed(f"N{number:08}").model_dump()
            Published(body=body, destination="/amq/queue/limit").save()
    producer = factory_producer()
    window = Window()
    window.start()
    producer.publish_message_from_database()
    window.stop()
    measured = window.measured(count)
    require(count, Published.objects.filter(status=StatusChoice.SUCCEEDED).count(), "rows marked")
    # It asks for no receipts and then disconnects: some of what it marked may never have reached the broker.
    with suppress(TimeoutError):
        wait_for(lambda: ready_in("limit") == count, seconds=5)
    measured.count = ready_in("limit")
    measured.more = {"marked, not in the queue": count - measured.count}
    return measured


BENCHMARK = Benchmark(
    question="The relay: rows that wait in the outbox, from the first claim to the last mark",
    unit="messages",
    reference="C",
    count=20_000,
    quick_count=2_000,
    variants=(
        Variant("C", c),
        Variant("Warren, PostgreSQL", warren, environment={"RELAY_THREAD": "0"}, warren=True),
        Variant("Warren, SQLite", warren, database="sqlite", environment={"RELAY_THREAD": "0"}, warren=True),
        Variant("Celery, confirmed", celery, share=0.2),
        Variant("django-outbox-pattern", django_outbox_pattern, share=0.2),
    ),
)

"""How fast does the relay publish what waits in the outbox, from its first claim to its last mark?

The limit is a C program that publishes the same messages from memory: no database, 500 unconfirmed at most. Celery
publishes from memory too, one confirm after the other, as a request does. django-outbox-pattern publishes from a table;
STOMP without receipts, so nothing is confirmed.
"""

from __future__ import annotations

from contextlib import suppress

from benchmarks.harness.benchmark import Benchmark, Variant
from benchmarks.harness.clients import declare, manage, publish, ready_in, running
from benchmarks.harness.window import Measured, Window, require, wait_for
from benchmarks.shop.waiting import fill_outbox


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


def c(count: int) -> Measured:
    """Publish from C."""
    from benchmarks.shop.events import order_placed

    declare("bench.events", "limit", "order.placed")
    window = Window()
    window.start()
    seconds, cpu = publish("bench.events", "order.placed", count, order_placed("N00000000").encode())
    measured = window.measured(count, seconds=seconds, client=cpu)
    wait_for(lambda: ready_in("limit") == count, seconds=30)
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
    count=100_000,
    quick_count=4_000,
    minutes=4,
    variants=(
        Variant("C", c),
        Variant("Warren, PostgreSQL", warren, environment={"RELAY_THREAD": "0"}, warren=True),
        Variant("Warren, SQLite", warren, database="sqlite", environment={"RELAY_THREAD": "0"}, warren=True),
        Variant("Celery, confirmed", celery, share=0.05),
        Variant("django-outbox-pattern", django_outbox_pattern, share=0.05),
    ),
)

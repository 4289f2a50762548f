"""How fast does one process handle messages: an inbox row and one insert of the ORM, each in a transaction of its own?

The queue is filled first. Who has no inbox keeps one by hand (`shop/work.py`): two statements between BEGIN and COMMIT.
pgbench runs the same four from C, without any broker: the database's own limit.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from functools import partial

from benchmarks.harness.benchmark import Benchmark, Variant
from benchmarks.harness.clients import manage, publish, ready_in, running
from benchmarks.harness.window import Measured, Window, require, wait_for

PGBENCH = """
BEGIN;
INSERT INTO shop_seen (message_id, seen_at) VALUES (gen_random_uuid()::text, now()) ON CONFLICT DO NOTHING;
INSERT INTO shop_receipt (number, phone, text) VALUES ('N00000000', '+8613800138000', '{text}') RETURNING id;
COMMIT;
"""


def warren(count: int, processes: int = 1, threads: int = 1) -> Measured:
    """Publish from C to the queue that `run_consumer` declares, then run it: so many processes, each with `threads`."""
    from benchmarks.shop.consumers import QUEUE
    from benchmarks.shop.events import order_placed
    from messaging.models import InboxMessage

    subprocess.run(manage("run_consumer", "receipts", "--burst"), check=True, capture_output=True)
    publish("bench.events", "order.placed", count, order_placed("N00000000").encode())
    command = manage("run_consumer", "receipts", f"--concurrency={threads}")
    measured = consume(QUEUE, count, *command, processes=processes)
    require(count, InboxMessage.objects.filter(state="handled").count(), "messages in the inbox")
    return measured


def celery(count: int, threads: int = 0) -> Measured:
    """Send tasks, then run a worker that handles one at a time, or so many in threads."""
    from benchmarks.shop.celery import QUEUE, receipts

    for number, body in bodies(count):
        receipts.apply_async((body, number))
    lean = ("--without-gossip", "--without-mingle", "--without-heartbeat") if os.environ.get("BENCH_TUNED") else ()
    pool = ("--pool=threads", f"--concurrency={threads}") if threads else ("--pool=solo",)
    worker = (sys.executable, "-m", "celery", "-A", "benchmarks.shop.celery", "worker", *pool, *lean)
    return by_hand(QUEUE, count, *worker, "--loglevel=INFO")


def dramatiq(count: int) -> Measured:
    """Send messages, then run one process with one thread."""
    from benchmarks.shop.dramatiq import QUEUE, receipts

    for number, body in bodies(count):
        receipts.send(body, number)
    return by_hand(
        QUEUE, count, sys.executable, "-m", "dramatiq", "benchmarks.shop.dramatiq", "--processes=1", "--threads=1"
    )


def pgbench(count: int) -> Measured:
    """Run the statements alone."""
    from benchmarks.shop.events import order_placed
    from benchmarks.shop.models import Receipt

    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(PGBENCH.format(text=order_placed("N00000000").note))
        script.flush()
        window = Window()
        window.start()
        options = ["-n", "-c", "1", "-t", str(count), "-M", "prepared", "-f", script.name]
        command = ["pgbench", *options, os.environ["DATABASE_URL"]]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        window.stop()
    found = re.search(r"tps = ([0-9.]+)", done.stdout)
    assert found, done.stdout
    require(count, Receipt.objects.count(), "receipts")
    return window.measured(count, seconds=count / float(found[1]))


def bodies(count: int) -> list[tuple[str, dict[str, object]]]:
    """Return ids of messages, and what each says."""
    from benchmarks.shop.events import order_placed

    return [(number, order_placed(number).model_dump()) for number in (f"N{each:08}" for each in range(count))]


def by_hand(queue: str, count: int, *command: str) -> Measured:
    """Consume where `shop/work.py` keeps the inbox."""
    from benchmarks.shop.models import Seen

    measured = consume(queue, count, *command)
    require(count, Seen.objects.count(), "messages noted")
    return measured


def consume(queue: str, count: int, *command: str, processes: int = 1) -> Measured:
    """Run consumers of a filled queue until all receipts are written, from the first one on."""
    from benchmarks.shop.models import Receipt

    wait_for(lambda: ready_in(queue) == count, seconds=10)
    with running(*command, processes=processes) as client:
        window = Window(client)
        wait_for(Receipt.objects.exists)
        window.start()
        begun = Receipt.objects.count()
        wait_for(lambda: Receipt.objects.count() >= count, every=0.02)
        window.stop()
        measured = window.measured(count - begun)
    require(count, Receipt.objects.count(), "receipts")
    require(0, ready_in(queue), "messages left in the queue")
    return measured


WHOLE = {"BENCH_BATCH": "50", "BENCH_WHOLE": "1"}
TUNED = {"BENCH_TUNED": "1", "dramatiq_queue_prefetch": "100"}
BENCHMARK = Benchmark(
    question="The consumer: an inbox row and one insert of the ORM, one process",
    unit="messages",
    reference="Celery, tuned",
    count=4_000,
    quick_count=500,
    minutes=5,
    variants=(
        Variant("Celery, tuned", celery, environment=TUNED),
        Variant("Celery, as shipped", celery, share=0.25),
        Variant("Celery, tuned, 4 threads", partial(celery, threads=4), environment=TUNED),
        Variant("Dramatiq", dramatiq, environment=TUNED),
        Variant("Warren", warren, warren=True),
        Variant("Warren, 4 threads", partial(warren, threads=4), warren=True),
        Variant("Warren, batch=50", warren, share=2, environment={"BENCH_BATCH": "50"}, warren=True),
        Variant("Warren, whole batch of 50", warren, share=4, environment=WHOLE, warren=True),
        Variant("pgbench, the same statements", pgbench, share=2),
    ),
)

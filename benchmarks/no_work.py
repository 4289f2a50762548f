"""How fast does one process consume and acknowledge, if the handler does nothing: no row is written anywhere?

The queue is filled first. A handler only raises a number in memory; C does not even decode the body. Celery and
Dramatiq acknowledge after the handler, as Warren does. Warren with its inbox shows what the inbox costs.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from functools import partial

from benchmarks.consumer import TUNED, bodies
from benchmarks.harness.benchmark import Benchmark, Variant
from benchmarks.harness.clients import c_program, declare, manage, publish, ready_in, running
from benchmarks.harness.window import Measured, Window, require, wait_for
from benchmarks.shop.count import SIZE, shared

PREFETCH = 500


def c(together: int, count: int) -> Measured:
    """Consume from C; so many messages share an ack."""
    from benchmarks.shop.events import order_placed

    declare("bench.events", "limit", "order.placed")
    publish("bench.events", "order.placed", count, order_placed("N00000000").encode())
    window = Window()
    window.start()
    command = c_program("consume", "limit", count, PREFETCH, together)
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    window.stop()
    seconds, cpu = map(float, done.stdout.split())
    measured = window.measured(count, seconds=seconds, client=cpu)
    _require_acknowledged("limit")
    return measured


def warren(count: int) -> Measured:
    """Publish from C to the queue that `run_consumer` declares, then run it."""
    from benchmarks.shop.events import order_placed

    subprocess.run(manage("run_consumer", "nothing", "--burst"), check=True, capture_output=True)
    publish("bench.events", "order.seen", count, order_placed("N00000000").encode())
    return consume("shop.nothing", count, *manage("run_consumer", "nothing"))


def celery(count: int) -> Measured:
    """Send tasks, then run a worker that handles one at a time."""
    from benchmarks.shop.celery import QUEUE, nothing

    for number, body in bodies(count):
        nothing.apply_async((body, number))
    lean = ("--without-gossip", "--without-mingle", "--without-heartbeat")
    worker = (sys.executable, "-m", "celery", "-A", "benchmarks.shop.celery", "worker", "--pool=solo", *lean)
    return consume(QUEUE, count, *worker, "--loglevel=INFO")


def dramatiq(count: int) -> Measured:
    """Send messages, then run one process with one thread."""
    from benchmarks.shop.dramatiq import QUEUE, nothing

    for number, body in bodies(count):
        nothing.send(body, number)
    worker = (sys.executable, "-m", "dramatiq", "benchmarks.shop.dramatiq", "--processes=1", "--threads=1")
    return consume(QUEUE, count, *worker)


def consume(queue: str, count: int, *command: str) -> Measured:
    """Run a consumer of a filled queue until all is handled, from the first message on."""
    wait_for(lambda: ready_in(queue) == count, seconds=30)
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(SIZE)
        handled = shared(file.name)
        with running(*command, BENCH_COUNT=file.name) as client:
            window = Window(client)
            wait_for(lambda: handled[0] > 0, every=0.002)
            begun = handled[0]
            window.start()
            if begun > count // 2:
                raise RuntimeError(f"{begun} of {count} messages were handled before the first look: take more")
            wait_for(lambda: handled[0] >= count, every=0.005)
            window.stop()
            measured = window.measured(count - begun)
        require(count, handled[0], "messages handled")
    _require_acknowledged(queue)
    return measured


def _require_acknowledged(queue: str) -> None:
    """Raise RuntimeError if more came back to the queue of a consumer that has left than it could hold unacknowledged.

    The last acks may be lost with the channel: a quorum queue takes them later than the channel does.
    """
    left = ready_in(queue)
    require(0, left // (PREFETCH + 1), f"times the prefetch left in the queue ({left} messages)")


BENCHMARK = Benchmark(
    question="The consumer without any work: one process",
    unit="messages",
    reference="Celery, late acks",
    count=20_000,
    quick_count=2_000,
    minutes=4,
    variants=(
        Variant("C, acks each", partial(c, 1), share=5),
        Variant("C, acks joined", partial(c, 50), share=5),
        Variant("Celery, late acks", celery, share=0.5, environment=TUNED),
        Variant("Dramatiq", dramatiq, share=0.5, environment=TUNED),
        Variant("Warren, no inbox", warren, environment={"BENCH_FENCED": "0"}, warren=True),
        Variant("Warren, with its inbox", warren, share=0.2, warren=True),
    ),
)

"""What does a second consumer process add? Each handles its messages in transactions of their own, as in `consumer`.

On two cores both processes share these with RabbitMQ and PostgreSQL: what they would do on cores of their own is more.
"""

from __future__ import annotations

from functools import partial

from benchmarks.consumer import warren
from benchmarks.harness.benchmark import Benchmark, Variant

BENCHMARK = Benchmark(
    question="The consumer: two processes beside one",
    unit="messages",
    reference="one process",
    count=4_000,
    quick_count=500,
    minutes=2.5,
    variants=(
        Variant("one process", warren, warren=True),
        Variant("two processes", partial(warren, processes=2), warren=True),
    ),
)

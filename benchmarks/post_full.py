"""Does an order wait for the broker if the machine is full? As `post`, beside programs that use every core."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

from benchmarks.harness.benchmark import Benchmark, Run, Variant
from benchmarks.harness.clients import running
from benchmarks.harness.window import Measured
from benchmarks.post import VARIANTS


def beside_others(variant: Variant) -> Variant:
    """Return the variant with a program on each core that never rests."""

    def run(count: int) -> Measured | dict[str, Measured]:
        with running(sys.executable, "-c", "while True: pass", processes=os.cpu_count() or 1):
            measured = variant.run(count)
        assert isinstance(measured, Measured)
        measured.others = 0.0  # on purpose
        return measured

    asked: Run = run
    return replace(variant, run=asked)


BENCHMARK = Benchmark(
    question="The order's POST, while other programs use every core",
    unit="orders",
    reference="broker running",
    count=160,
    quick_count=40,
    minutes=5,
    variants=tuple(map(beside_others, VARIANTS)),
)

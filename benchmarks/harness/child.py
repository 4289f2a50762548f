"""One run of one variant: `python -m benchmarks.harness.child BENCHMARK VARIANT COUNT` prints what was measured."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import asdict

import django

from benchmarks.harness.benchmark import Benchmark


def main(benchmark: str, name: str, count: int) -> None:
    """Run the variant called `name`; the last line is JSON."""
    django.setup()
    found: Benchmark = importlib.import_module(f"benchmarks.{benchmark}").BENCHMARK
    variant = next(each for each in found.variants if each.name == name)
    print(json.dumps(asdict(variant.run(count))))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))

"""One run of one variant: `python -m benchmarks.harness.child BENCHMARK VARIANT COUNT` prints what was measured."""

from __future__ import annotations

import importlib
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import django

import messaging
from benchmarks.harness.benchmark import Benchmark
from benchmarks.harness.servers import MESSAGING
from benchmarks.harness.window import Measured


def main(benchmark: str, name: str, count: int) -> None:
    """Run the variant called `name`; the last line is JSON: what it measured, by name; one thing has none."""
    django.setup()
    if Path(messaging.__file__).parent.resolve() != Path(os.environ[MESSAGING]):
        raise RuntimeError(f"{messaging.__file__} is not what was to be measured")
    found: Benchmark = importlib.import_module(f"benchmarks.{benchmark}").BENCHMARK
    variant = next(each for each in found.variants if each.name == name)
    measured = variant.run(count)
    parts = {"": measured} if isinstance(measured, Measured) else measured
    print(json.dumps({part: asdict(each) for part, each in parts.items()}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))

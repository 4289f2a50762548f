"""How many calls a second does one process make for 50 callers? See `rpc`."""

from __future__ import annotations

from benchmarks.rpc import benchmark

BENCHMARK = benchmark(50, 5_000)

"""Rounds: each variant once, in a process of its own, one after the other."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import psycopg

from benchmarks.harness.benchmark import Benchmark, Variant
from benchmarks.harness.results import Results
from benchmarks.harness.servers import Servers
from benchmarks.harness.window import Measured
from script.services.owned import tail

#: Seconds that one run may take.
PATIENCE = 1800


def measure(running: Servers, name: str, benchmark: Benchmark, rounds: int, log: Path) -> Results:
    """Run each variant `rounds` times; each round begins with another one. Say how each went.

    A variant that fails is missing in its round, and the others go on. `log` gets what the last run printed.
    """
    found: list[dict[str, Measured]] = []
    failures: dict[str, list[str]] = {}
    for number in range(rounds):
        measured: dict[str, dict[str, Measured]] = {}
        shift = number % len(benchmark.variants)
        for variant in (*benchmark.variants[shift:], *benchmark.variants[:shift]):
            try:
                measured[variant.name] = _run(running, name, benchmark, variant, log)
            except (subprocess.SubprocessError, OSError, psycopg.Error, ValueError) as error:
                failures.setdefault(variant.name, []).append(_reason(error, log))
                print(
                    f"{name} {number + 1}: {variant.name}: FAILED, {error}; {log} ends with\n{tail(log)}",
                    file=sys.stderr,
                )
                running.mend()
            else:
                for part, each in measured[variant.name].items():
                    print(f"{name} {number + 1}: {part}: {_in_short(benchmark, each)}", flush=True)
        # As the benchmark lists its variants, whichever ran first.
        found.append(
            {part: each for variant in benchmark.variants for part, each in measured.get(variant.name, {}).items()}
        )
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return Results(found, benchmark.count, now, running.versions(), failures)


def _run(running: Servers, name: str, benchmark: Benchmark, variant: Variant, log: Path) -> dict[str, Measured]:
    """Run one variant in a process of its own; return what it measured, by name. Raises SubprocessError if it fails."""
    original = variant.name if variant.checkout is None else variant.name.rpartition(" (")[0]
    count = str(int(benchmark.count * variant.share))
    with running.environment(variant) as environment:
        command = [sys.executable, "-m", "benchmarks.harness.child", name, original, count]
        with log.open("w") as output:
            done = subprocess.run(
                command,
                env=environment,
                cwd=running.directory,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                timeout=PATIENCE,
                check=True,
            )
    parts = json.loads(done.stdout.splitlines()[-1])
    return {f"{part}, {variant.name}" if part else variant.name: Measured(**each) for part, each in parts.items()}


def _in_short(benchmark: Benchmark, measured: Measured) -> str:
    figure = benchmark.figure
    return f"{measured.more[figure]:.1f} ({figure})" if figure else f"{measured.rate:,.0f}/s"


def _reason(error: Exception, log: Path) -> str:
    """Return the last line that a failed run printed, such as its error."""
    lines = log.read_text(errors="replace").split("\n") if isinstance(error, subprocess.CalledProcessError) else []
    return next((line.strip() for line in reversed(lines) if line.strip()), str(error))[:200]

"""docs/performance.md: the tables and plots of the newest results, and the table of all hops."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from benchmarks import hops
from benchmarks.harness import report
from benchmarks.harness.benchmark import Benchmark
from benchmarks.harness.results import Results
from script.environment import ROOT

PAGE = ROOT / "docs/performance.md"


def benchmark(name: str) -> Benchmark:
    """Return a benchmark by its name."""
    found: Benchmark = importlib.import_module(f"benchmarks.{name}").BENCHMARK
    return found


def write(names: Iterable[str], directory: Path) -> None:
    """Put into the page what `directory` holds of the benchmarks `names`."""
    results: dict[str, Results] = {}
    for name in names:
        with suppress(FileNotFoundError):
            results[name] = Results.load(directory / f"{name}.json")
    for name, found in results.items():
        asked = benchmark(name)
        (PAGE.parent / f"images/bench-{name}.svg").write_text(report.plot(asked, found))
        picture = f"![{asked.question}](images/bench-{name}.svg)"
        report.update(PAGE, name, f"{report.table(asked, found)}\n\nMeasured {found.measured_at}.\n\n{picture}")
    if results:
        report.update(PAGE, "versions", _versions(results))
        report.update(PAGE, "hops", hops.table(results))


def _versions(results: Mapping[str, Results]) -> str:
    """Return what was measured with, and every version of Warren that was."""
    newest = max(results.values(), key=lambda each: each.measured_at)
    ours = dict.fromkeys(each.versions["Warren"] for each in results.values())
    versions = {**newest.versions, "Warren": " and ".join(ours)}
    return ", ".join(f"{name} {value}" for name, value in versions.items()) + "."

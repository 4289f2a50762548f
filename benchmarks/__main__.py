"""script/bench: measure Warren beside its limits and peers."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import page
from benchmarks.harness import report, rounds, servers
from benchmarks.harness.benchmark import Benchmark
from benchmarks.harness.results import Results
from script.environment import ROOT
from script.programs.commands import stop_on_signals
from script.services.owned import ServiceError

NAMES = (
    "relay", "consumer", "processes", "no_work", "order", "post", "post_full", "latency", "rpc", "rpc_many", "memory",
    "idle", "growth",
)  # fmt: skip
#: What --quick measures if no names are given.
QUICK = ("relay", "consumer", "order", "latency")
ROUNDS = 3
RESULTS = ROOT / "var/bench"
#: What the last run printed.
LOG = RESULTS / "run.log"

EPILOG = """
benchmarks, and how long each takes on two cores with three rounds:
{benchmarks}

examples:
  script/bench                                all benchmarks
  script/bench relay --quick                  one, with fewer messages
  script/bench relay --compare ../before      Warren of another checkout beside this one
  script/bench --docs                         put the newest results into docs/performance.md as well
  script/bench --docs --rounds 0              only that: measure nothing

Results go to var/bench/NAME.json (every run), .md and .svg, each as soon as it is measured. A variant that fails is
told, and the others go on. Measure on a machine that does nothing else: a table says if other programs used the
processor.

Exit codes: 0 measured, 1 a variant did not do its work, 2 usage, 3 a server could not be started.
"""


def main(arguments: Sequence[str]) -> int:
    """Run the benchmarks that `arguments` name, or all; return the exit code."""
    options = _parser().parse_args(arguments)
    stop_on_signals()
    RESULTS.mkdir(parents=True, exist_ok=True)
    failed = False
    try:
        if options.rounds:
            names = options.names or (QUICK if options.quick else NAMES)
            failed = _measure(names, options)
    except (ServiceError, subprocess.SubprocessError) as error:
        print(f"script/bench: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 130
    if options.docs:
        page.write(NAMES, RESULTS)
    return int(failed)


def _measure(names: Sequence[str], options: argparse.Namespace) -> bool:
    """Run the benchmarks, and write the results of each at once; return whether any variant failed."""
    failed = False
    with servers.running() as running:
        for name in names:
            benchmark = _benchmark(name, options.quick, options.compare)
            start = time.monotonic()
            results = rounds.measure(running, name, benchmark, options.rounds, LOG)
            _write(name, benchmark, results)
            print(f"{name} took {(time.monotonic() - start) / 60:.1f} minutes.\n", flush=True)
            failed |= bool(results.failures)
    return failed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "script/bench",
        description=__doc__,
        epilog=EPILOG.format(benchmarks="\n".join(map(_line, NAMES))),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", type=_name, help="benchmarks to run (default: all)")
    parser.add_argument("--quick", action="store_true", help=f"fewer messages; in five minutes: {', '.join(QUICK)}")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"how often each variant runs (default {ROUNDS})")
    parser.add_argument("--compare", type=_checkout, metavar="PATH", help="also measure Warren of this checkout")
    parser.add_argument("--docs", action="store_true", help="put the newest results into docs/performance.md")
    return parser


def _line(name: str) -> str:
    benchmark = page.benchmark(name)
    return f"  {name:<11} {benchmark.minutes:>4g} min  {benchmark.question}"


def _name(given: str) -> str:
    if given not in NAMES:
        raise argparse.ArgumentTypeError(f"there is no benchmark {given!r}: {', '.join(NAMES)}")
    return given


def _checkout(given: str) -> Path:
    path = Path(given).resolve()
    if not (path / "messaging").is_dir():
        raise argparse.ArgumentTypeError(f"{given} is no checkout of Warren")
    return path


def _benchmark(name: str, quick: bool, other: Path | None) -> Benchmark:
    found = page.benchmark(name)
    if quick:
        found = replace(found, count=found.quick_count)
    if other:
        compared = [
            replace(each, name=f"{each.name} ({other.name})", checkout=other) for each in found.variants if each.warren
        ]
        found = replace(found, variants=(*found.variants, *compared))
    return found


def _write(name: str, benchmark: Benchmark, results: Results) -> None:
    """Write the results of a benchmark to var/bench."""
    table = report.table(benchmark, results)
    results.save(RESULTS / f"{name}.json")
    (RESULTS / f"{name}.md").write_text(f"{benchmark.question}\n\n{table}\n")
    (RESULTS / f"{name}.svg").write_text(report.plot(benchmark, results))
    print(f"\n{benchmark.question}\n\n{table}\n", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

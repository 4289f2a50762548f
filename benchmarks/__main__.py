"""script/bench: measure Warren beside its limits and peers."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.harness import report, servers
from benchmarks.harness.benchmark import Benchmark, Variant
from benchmarks.harness.figures import rows
from benchmarks.harness.servers import Servers
from benchmarks.harness.window import Measured
from script.environment import ROOT
from script.programs.commands import stop_on_signals
from script.services.owned import ServiceError, tail

NAMES = ("relay", "consumer", "order", "post", "latency", "rpc", "rpc_many")
#: What --quick measures if no names are given.
QUICK = ("relay", "consumer", "order", "latency")
ROUNDS = 3
#: Seconds that one run may take.
PATIENCE = 300
RESULTS = ROOT / "var/bench"
#: What the last run printed.
LOG = RESULTS / "run.log"
PAGE = ROOT / "docs/performance.md"

EPILOG = """
examples:
  script/bench                                all benchmarks
  script/bench relay --quick                  one, with fewer messages
  script/bench relay --compare ../before      Warren of another checkout beside this one
  script/bench --docs                         put the tables and plots into docs/performance.md

Results go to var/bench/NAME.json (every run), .md and .svg. Measure on a machine that does nothing else: a table says
if other programs used the processor.

Exit codes: 0 measured, 1 a variant did not do its work, 2 usage, 3 a server could not be started.
"""


def main(arguments: Sequence[str]) -> int:
    """Run the benchmarks that `arguments` name, or all; return the exit code."""
    options = _parser().parse_args(arguments)
    stop_on_signals()
    RESULTS.mkdir(parents=True, exist_ok=True)
    try:
        with servers.running() as running:
            versions = running.versions()
            for name in options.names or (QUICK if options.quick else NAMES):
                benchmark = _benchmark(name, options.quick, options.compare)
                rounds = [_round(running, name, benchmark, number) for number in range(options.rounds)]
                _write(name, benchmark, rounds, versions, docs=options.docs)
    except ServiceError as error:
        print(f"script/bench: {error}", file=sys.stderr)
        return error.exit_code
    except subprocess.SubprocessError as error:
        print(f"script/bench: {error}; {LOG} ends with\n{tail(LOG)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if options.docs:
        report.update(PAGE, "versions", ", ".join(f"{name} {value}" for name, value in versions.items()) + ".")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "script/bench", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", type=_name, help=f"benchmarks to run: {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help=f"fewer messages, in five minutes: {', '.join(QUICK)}")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"how often each variant runs (default {ROUNDS})")
    parser.add_argument("--compare", type=_checkout, metavar="PATH", help="also measure Warren of this checkout")
    parser.add_argument("--docs", action="store_true", help="put tables and plots into docs/performance.md")
    return parser


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
    found: Benchmark = importlib.import_module(f"benchmarks.{name}").BENCHMARK
    if quick:
        found = replace(found, count=found.quick_count)
    if other:
        compared = [
            replace(each, name=f"{each.name} ({other.name})", checkout=other) for each in found.variants if each.warren
        ]
        found = replace(found, variants=(*found.variants, *compared))
    return found


def _round(running: Servers, name: str, benchmark: Benchmark, number: int) -> dict[str, Measured]:
    """Run each variant once; each round begins with another one."""
    variants = benchmark.variants
    shift = number % len(variants)
    measured = {}
    for variant in (*variants[shift:], *variants[:shift]):
        measured[variant.name] = _run(running, name, benchmark, variant)
        print(f"{name} {number + 1}: {variant.name}: {_in_short(benchmark, measured[variant.name])}", flush=True)
    return {variant.name: measured[variant.name] for variant in variants}


def _in_short(benchmark: Benchmark, measured: Measured) -> str:
    figure = benchmark.figure
    return f"{measured.more[figure]:.1f} ({figure})" if figure else f"{measured.rate:,.0f}/s"


def _run(running: Servers, name: str, benchmark: Benchmark, variant: Variant) -> Measured:
    """Run one variant in a process of its own. Raises SubprocessError if it fails."""
    original = variant.name if variant.checkout is None else variant.name.rpartition(" (")[0]
    count = str(int(benchmark.count * variant.share))
    with running.environment(variant) as environment:
        command = [sys.executable, "-m", "benchmarks.harness.child", name, original, count]
        with LOG.open("w") as log:
            out, timeout = subprocess.PIPE, PATIENCE
            done = subprocess.run(
                command,
                env=environment,
                cwd=running.directory,
                stdout=out,
                stderr=log,
                text=True,
                timeout=timeout,
                check=True,
            )
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def _write(
    name: str, benchmark: Benchmark, rounds: Sequence[dict[str, Measured]], versions: dict[str, str], *, docs: bool
) -> None:
    """Write the results of a benchmark to var/bench, and to the documentation if asked."""
    found = rows(rounds, benchmark.reference, benchmark.figure)
    table, plot = report.table(benchmark, found, len(rounds)), report.plot(benchmark, found)
    (RESULTS / f"{name}.json").write_text(report.as_json(rounds, versions))
    (RESULTS / f"{name}.md").write_text(f"{benchmark.question}\n\n{table}\n")
    (RESULTS / f"{name}.svg").write_text(plot)
    print(f"\n{benchmark.question}\n\n{table}\n", flush=True)
    if docs:
        (PAGE.parent / f"images/bench-{name}.svg").write_text(plot)
        report.update(PAGE, name, f"{table}\n\n![{benchmark.question}](images/bench-{name}.svg)")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

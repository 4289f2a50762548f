"""script/mutate: small faults planted in the modules that decide, and those that no test notices."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from script.programs.commands import run, stop_on_signals
from script.services import packages
from script.services.owned import ServiceError
from script.services.rabbitmq import RabbitMQNode
from script.services.rabbitmq_directory import installed_scripts

USAGE = """\
Usage: script/mutate [MODULE…]

Changes one expression after the other in the modules that pyproject.toml names under [tool.mutmut], or in those given,
runs the tests that reach it, and lists the changes that no test noticed. For nights: all modules take many hours. What
was judged once is not judged again until its function or a test changes; `rm -r mutants` begins anew.

The tests run in one process, on SQLite and a private RabbitMQ. A change that only PostgreSQL, a killed process or a
broken broker can tell is listed too: look whether a test in tests/integration or tests/faults holds it.

examples:
  script/mutate                            everything
  script/mutate messaging.worker.ledger           one module
  .venv/bin/mutmut show messaging.worker.ledger.x_claim__mutmut_1

MUTATE_PROCESSES=2 says how many run at once (default: all cores).

Exit codes: 0 every change was judged, 1 a test failed before the first one, 3 RabbitMQ could not be started.
"""
MUTMUT = [sys.executable, "-m", "mutmut"]


def main(modules: Sequence[str]) -> int:
    """Judge the changes in `modules`, or in all that pyproject.toml names, and return the exit code."""
    if {"-h", "--help"}.intersection(modules):
        print(USAGE, end="")
        return 0
    stop_on_signals()
    processes = os.environ.get("MUTATE_PROCESSES") or str(os.cpu_count() or 1)
    # A change is named like its module, with an ending.
    changes = [f"{module}.*" for module in modules]
    try:
        if not installed_scripts():
            packages.install("rabbitmq-server")
        with (
            tempfile.TemporaryDirectory(prefix="warren-mutate-") as directory,
            RabbitMQNode(Path(directory), throwaway=True) as node,
        ):
            environment = {"DATABASE_URL": "sqlite:///:memory:", "WARREN_TEST_RABBITMQ": str(node.directory)}
            exit_code = run([*MUTMUT, "run", "--max-children", processes, *changes], environment)
    except ServiceError as error:
        print(f"script/mutate: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nInterrupted. What was judged is kept: the same command goes on.", file=sys.stderr)
        return 130
    if exit_code:
        print("script/mutate: a test fails without any change (see above), so nothing was judged.", file=sys.stderr)
        return 1
    print("Noticed by no test:")
    results = subprocess.run([*MUTMUT, "results"], capture_output=True, text=True, check=True)
    print(*(line for line in results.stdout.splitlines() if not line.endswith(": not checked")), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

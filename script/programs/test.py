"""script/test: every check and every test, on private services, with one line at the end that sums up."""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from script.programs.commands import run, stop_on_signals
from script.programs.selection import ROOT, Selection
from script.programs.tally import Tally
from script.services import foreign_clients, packages
from script.services.browser import installed_browser
from script.services.owned import ServiceError
from script.services.postgresql import PostgreSQLCluster, installed_programs
from script.services.rabbitmq import RabbitMQNode
from script.services.rabbitmq_directory import installed_scripts

FULL_VARIABLE = "WARREN_TEST_FULL"
#: Tests wait for most of their time: three at once use two cores, and many more would disturb each other's deadlines.
SEVERAL_AT_ONCE = ["--numprocesses=3", "--dist=worksteal"]
#: Browsers do not wait.
TWO_AT_ONCE = ["--numprocesses=2", "--dist=worksteal"]
#: A file system in memory, and the bytes that must be free there: tests then do not wait for a disk. What a killed
#: process has written stays there, too.
IN_MEMORY = Path("/dev/shm")  # noqa: S108 (each run makes a directory of its own there)
ROOM = 4 << 30
SQLITE = {"DATABASE_URL": "sqlite:///:memory:"}  # tests/conftest.py makes it a file


def main(arguments: Sequence[str]) -> int:
    """Run what was asked for and return the exit code."""
    os.chdir(ROOT)
    stop_on_signals()
    if "--full" in arguments:
        os.environ[FULL_VARIABLE] = "1"  # tests/support/repeats.py reads it
    selection = Selection.of([argument for argument in arguments if argument != "--full"])
    if selection.is_everything:
        _work_in_memory()
    tally = Tally(in_ci=bool(os.environ.get("CI")), everything=selection.is_everything)
    started = time.monotonic()
    try:
        if selection.is_everything:
            run_checks(tally)
        run_tests(selection, tally)
    except ServiceError as error:
        print(f"script/test: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    if tally.passed + tally.failed == 0:
        tally.notes.append("No test matches.")
    print(f"\n{time.monotonic() - started:.0f} s", *tally.notes, sep="\n")
    print(f"{tally.passed} passed, {tally.failed} failed", flush=True)
    return 0 if tally.passed and not tally.failed else 1


def _work_in_memory() -> None:
    """Keep temporary files, the services' too, in memory, if there is room and TMPDIR is not set."""
    if "TMPDIR" not in os.environ and IN_MEMORY.is_dir() and shutil.disk_usage(IN_MEMORY).free >= ROOM:
        os.environ["TMPDIR"] = str(IN_MEMORY)
        tempfile.tempdir = None  # it may have been read before


def run_checks(tally: Tally) -> None:
    """ruff, mypy, the directions of imports, and the check for missing migrations."""
    checks = {
        "ruff check": ["-m", "ruff", "check", "--quiet"],
        "ruff format": ["-m", "ruff", "format", "--check", "--quiet"],
        "missing migrations": ["manage.py", "makemigrations", "--check", "--dry-run", "--settings=tests.settings"],
        "mypy": ["-m", "mypy"],
        "imports": ["-c", "from importlinter.cli import lint_imports_command as main; main()"],
    }
    for name, command in checks.items():
        _heading(name)
        tally.check(name, run([sys.executable, *command], SQLITE))


def run_tests(selection: Selection, tally: Tally) -> None:
    """pytest on SQLite, on PostgreSQL and in a browser, on services that end with this function."""
    if not installed_scripts():
        packages.install("rabbitmq-server")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="warren-test-")))
        # When root runs this, PostgreSQL's own user must be able to pass.
        directory.chmod(0o711)
        _heading("Starting a private RabbitMQ")
        node = stack.enter_context(RabbitMQNode(directory / "rabbitmq", throwaway=True))
        broker = {"WARREN_TEST_RABBITMQ": str(node.directory)}
        plain, browser = selection.without_browser, selection.in_browser
        if selection.has_foreign_clients:
            _have_foreign_clients(tally)
        if selection.is_everything:
            plain = plain and [*SEVERAL_AT_ONCE, *plain]
            browser = browser and [*TWO_AT_ONCE, *browser]
        if plain is not None and not _have("PostgreSQL", "postgresql", lambda: installed_programs() is not None, tally):
            _pytest("Tests on SQLite", plain, {**broker, **SQLITE}, tally, directory)
        elif plain is not None:
            each = {**broker, "WARREN_TEST_ON_BOTH_DATABASES": "1"}
            _pytest("Tests on SQLite", plain, {**each, **SQLITE}, tally, directory)
            cluster = stack.enter_context(PostgreSQLCluster(directory / "postgresql"))
            _pytest("Tests on PostgreSQL", plain, {**each, "DATABASE_URL": cluster.url}, tally, directory)
        if browser is not None and _have("A browser", "chromium", lambda: installed_browser() is not None, tally):
            # Playwright's event loop makes Django take every query of these tests for an asynchronous one.
            environment = {**broker, **SQLITE, "DJANGO_ALLOW_ASYNC_UNSAFE": "true"}
            kept = ["--screenshot=only-on-failure", "--tracing=retain-on-failure", f"--output={ROOT / 'var' / 'e2e'}"]
            _pytest("Tests in a browser", [*browser, *kept], environment, tally, directory)


def _pytest(name: str, arguments: Sequence[str], environment: Mapping[str, str], tally: Tally, directory: Path) -> None:
    _heading(name)
    report = directory / f"{name}.xml"
    temporary = f"--basetemp={directory / name.replace(' ', '-')}"
    exit_code = run([sys.executable, "-m", "pytest", f"--junitxml={report}", temporary, *arguments], environment)
    tally.tests(name, exit_code, report)


def _have_foreign_clients(tally: Tally) -> None:
    _have("A client in C", "amqp-tools", foreign_clients.have_amqp_tools, tally)
    _have("nginx", "nginx-light", lambda: foreign_clients.installed_nginx() is not None, tally)
    if _have("Node with npm", "nodejs npm", foreign_clients.have_node, tally):
        foreign_clients.install_modules()


def _have(what: str, needed: str, is_there: Callable[[], bool], tally: Tally) -> bool:
    """Whether something that some tests need is there, once its packages were installed if that is possible."""
    if is_there():
        return True
    if packages.may_install():
        packages.install(*needed.split())
        return True
    tally.missing(
        f"{what} is missing: these tests did not run. On Debian and Ubuntu, as root: apt-get install {needed}"
    )
    return False


def _heading(text: str) -> None:
    print(f"\n=== {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

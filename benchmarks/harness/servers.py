"""The servers of a measurement: one RabbitMQ and one PostgreSQL, with a fresh vhost and database for each run."""

from __future__ import annotations

import itertools
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import psycopg

from benchmarks.harness.benchmark import Variant
from benchmarks.harness.window import BROKER, DATABASE
from script.environment import ROOT
from script.services import packages, rabbitmq_directory
from script.services.owned import ServiceError
from script.services.ports import free_port
from script.services.postgresql import PostgreSQLCluster, installed_programs
from script.services.rabbitmq import RabbitMQNode

#: Environment variables that name the directory of the C programs, the port for STOMP, and the folder of the Warren to
#: measure.
LIMITS, STOMP_PORT, MESSAGING = "BENCH_LIMITS", "BENCH_STOMP_PORT", "BENCH_MESSAGING"
PEERS = ("celery", "kombu", "dramatiq", "django-outbox-pattern", "faststream", "nameko")
LIBRARIES = ("django", "psycopg", "pika", "structlog", *PEERS)


@dataclass
class Servers:
    """Running servers. `environment` makes a place for one run of a variant."""

    directory: Path
    node: RabbitMQNode
    cluster: PostgreSQLCluster
    limits: Path
    stomp_port: int
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @contextmanager
    def environment(self, variant: Variant) -> Iterator[dict[str, str]]:
        """Inside, there is an empty vhost and a migrated, empty database for `variant`: the environment that names
        them."""
        vhost = f"run{next(self._numbers)}"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DJANGO", "CELERY"))}
        environment = {
            **inherited,
            "DJANGO_SETTINGS_MODULE": "benchmarks.shop.settings",
            "PYTHONPATH": self._python_path(variant),
            "AMQP_URL": self.node.add_vhost(vhost),
            "BENCH_PASSWORD": self.node.password,
            BROKER: str(self.node.directory),
            DATABASE: str(self.cluster.directory),
            LIMITS: str(self.limits),
            STOMP_PORT: str(self.stomp_port),
            MESSAGING: str((variant.checkout or ROOT) / "messaging"),
            **variant.environment,
        }
        try:
            with self._database(variant, environment) as url:
                yield {**environment, "DATABASE_URL": url}
        finally:
            # Of a queue with a million messages this takes longer than most questions to the broker.
            self.node.api("DELETE", f"/vhosts/{vhost}", timeout=120)

    def mend(self) -> None:
        """Let the broker run as before: a run that was killed may have left it frozen, stopped or alarmed."""
        self.node.launch()
        with suppress(ServiceError):  # it is booting
            self.node.ctl("start_app")
        self.node.wait_until_ready()
        self.node.ctl("set_vm_memory_high_watermark", "0.4")

    @contextmanager
    def _database(self, variant: Variant, environment: dict[str, str]) -> Iterator[str]:
        project = environment["DJANGO_SETTINGS_MODULE"].replace(".", "_")
        template = f"template_{_name_of(variant.checkout)}_{project}"
        if variant.database == "sqlite":
            migrated, copy = (self.directory / f"{name}.sqlite3" for name in (template, "run"))
            if not migrated.exists():
                _migrate(environment, f"sqlite:///{migrated}", self.directory)
            shutil.copy(migrated, copy)
            yield f"sqlite:///{copy}"
            for path in self.directory.glob("run.sqlite3*"):
                path.unlink()
            return
        server = self.cluster.url.rpartition("/")[0]
        with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [template]).fetchone():
                connection.execute(f"CREATE DATABASE {template}".encode())
                _migrate(environment, f"{server}/{template}", self.directory)
            connection.execute(f"CREATE DATABASE run TEMPLATE {template}".encode())
            connection.execute("CHECKPOINT")
            try:
                yield f"{server}/run"
            finally:
                connection.execute("DROP DATABASE run WITH (FORCE)")

    def _python_path(self, variant: Variant) -> str:
        """Return where a variant's processes find Python packages: of another checkout `messaging` alone."""
        if variant.checkout is None:
            return str(ROOT)
        others = self.directory / _name_of(variant.checkout)
        others.mkdir(exist_ok=True)
        if not (others / "messaging").exists():
            (others / "messaging").symlink_to(variant.checkout / "messaging")
        return f"{others}:{ROOT}"

    def versions(self) -> dict[str, str]:
        """Return what was measured with."""
        overview = self.node.api("GET", "/overview")
        with psycopg.connect(self.cluster.url) as connection:
            postgresql = str(connection.info.parameter_status("server_version"))
        git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
        return {
            "Warren": subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip(),
            "cores": str(os.cpu_count()),
            "Python": platform.python_version(),
            "RabbitMQ": f"{overview['rabbitmq_version']} (Erlang {overview['erlang_version']})",
            "PostgreSQL": postgresql.split()[0],
            **{name: version(name) for name in LIBRARIES},
        }


@contextmanager
def running() -> Iterator[Servers]:
    """Start the servers, with what is missing installed from Debian. They end, and leave nothing, with the block."""
    _install_missing()
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="warren-bench-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        directory.chmod(0o711)
        limits = _compiled(directory / "limits")
        node = stack.enter_context(RabbitMQNode(directory / "rabbitmq", throwaway=True))
        cluster = stack.enter_context(PostgreSQLCluster(directory / "postgresql"))
        stomp_port = free_port()
        _enable_stomp(node, stomp_port)
        yield Servers(directory, node, cluster, limits, stomp_port)


def _install_missing() -> None:
    needed = {
        "rabbitmq-server": rabbitmq_directory.installed_scripts(),
        "postgresql": installed_programs(),
        "postgresql-contrib": (installed_programs() or Path()) / "pgbench",
        "gcc": shutil.which("cc"),
        "libc6-dev": Path("/usr/include/stdio.h"),
        "librabbitmq-dev": Path("/usr/include/amqp.h"),
    }
    missing = [name for name, path in needed.items() if not (path and Path(path).exists())]
    if missing:
        packages.install(*missing)


def _compiled(directory: Path) -> Path:
    """Compile each program of `limits/` into `directory`."""
    directory.mkdir()
    for source in (ROOT / "benchmarks/limits").glob("*.c"):
        subprocess.run(["cc", "-O2", "-Wall", "-o", directory / source.stem, source, "-lrabbitmq"], check=True)
    return directory


def _enable_stomp(node: RabbitMQNode, port: int) -> None:
    """Let the node listen for STOMP, which django-outbox-pattern speaks."""
    options = "[{persistent, true}]"
    node.ctl("eval", f'application:set_env(rabbitmq_stomp, tcp_listeners, [{{"127.0.0.1", {port}}}], {options}).')
    node.enable_plugin("rabbitmq_stomp")


def _migrate(environment: dict[str, str], url: str, directory: Path) -> None:
    command = [sys.executable, "-m", "django", "migrate", "--run-syncdb", "--verbosity=0"]
    subprocess.run(command, env={**environment, "DATABASE_URL": url}, cwd=directory, check=True)


def _name_of(checkout: Path | None) -> str:
    return "other" if checkout else "own"

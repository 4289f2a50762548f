"""What does a system cost that has nothing to do? The shop runs, and its last orders are handled.

Of each process: the share of a core, and the statements that PostgreSQL logged for it in a second, BEGIN and COMMIT
included. SQLite logs none.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from django.db import connection

from benchmarks.harness.benchmark import Benchmark, Variant
from benchmarks.harness.clients import SHOP, manage, running
from benchmarks.harness.window import DATABASE, Measured, Window, wait_for
from script.services.ports import answers, free_port
from script.shopper import Shopper

CPU, STATEMENTS = "% of a core", "statements a second"
#: Orders before: enough that each of the site's two workers most likely serves some, and starts its relay thread.
ORDERS = 8
#: Seconds for what follows the last order: first connections, first looks.
SETTLE = 5


def idle(seconds: int) -> dict[str, Measured]:
    """Start the shop, place orders, and then only look."""
    for command in (("seed_demo",), ("collectstatic", "--noinput")):
        subprocess.run(manage(*command), check=True, capture_output=True)
    _log_statements()
    port = free_port()
    server = ("gunicorn", "project.wsgi", f"--bind=127.0.0.1:{port}", "--workers=2", "--threads=4")
    commands = {
        "web": (sys.executable, "-m", *server, "--no-control-socket"),
        "consumers": manage("run_consumer", "--all"),
        "relay": manage("run_relay"),
        "RPC worker": manage("run_rpc_worker"),
        "Celery": (sys.executable, "-m", "celery", "-A", "project", "worker", "--beat", "--schedule=beat", "-c1"),
    }
    with ExitStack() as stack:
        clients = {
            name: stack.enter_context(running(*command, PGAPPNAME=_application(name)))
            for name, command in commands.items()
        }
        wait_for(lambda: answers(port))
        for _ in range(ORDERS):
            Shopper(f"http://127.0.0.1:{port}").buy("jasmine-tea")
        wait_for(_all_handled, every=0.2)
        time.sleep(SETTLE)
        return _watch(clients, seconds)


def _all_handled() -> bool:
    from messaging import consumers
    from messaging.models import InboxMessage, OutboxMessage
    from orders.events import OrderPlaced

    receivers = [each for each in consumers.registered() if each.wants(OrderPlaced.event_type)]
    unpublished = OutboxMessage.objects.exclude(state="published").exists()
    return not unpublished and InboxMessage.objects.filter(state="handled").count() >= ORDERS * len(receivers)


def _watch(clients: dict[str, Path], seconds: int) -> dict[str, Measured]:
    """Measure all processes at once."""
    windows = {name: Window(client) for name, client in clients.items()}
    logged = _log().stat().st_size
    for window in windows.values():
        window.start()
    time.sleep(seconds)
    for window in windows.values():
        window.stop()
    measured = {name: window.measured(seconds) for name, window in windows.items()}
    statements = _statements(logged)
    whole = sum(each.client for each in measured.values())
    for name, each in measured.items():
        each.others = max(0.0, each.others - (whole - each.client) / each.seconds)
        each.more = {CPU: each.client / each.seconds * 100}
        if connection.vendor == "postgresql":
            each.more[STATEMENTS] = statements.count(_application(name)) / each.seconds
    return measured


def _log_statements() -> None:
    """Let PostgreSQL write every statement to its log, with the name of the application."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("ALTER DATABASE run SET log_statement = 'all'")
            cursor.execute("ALTER SYSTEM SET log_line_prefix = '%a|%d|'")
            cursor.execute("SELECT pg_reload_conf()")


def _statements(since: int) -> list[str]:
    """Return the application of each statement that was logged after so many bytes."""
    with _log().open("rb") as log:
        log.seek(since)
        return re.findall(
            r"^(\w+)\|run\|LOG:  (?:statement|execute)", log.read().decode(errors="replace"), re.MULTILINE
        )


def _log() -> Path:
    return Path(os.environ[DATABASE]) / "output.log"


def _application(name: str) -> str:
    """Return a process's name as PostgreSQL shows it."""
    return name.replace(" ", "_")


BENCHMARK = Benchmark(
    question="Idle: the processes of a running shop without work",
    unit="seconds",
    reference="",
    count=30,
    quick_count=10,
    figure=CPU,
    minutes=5,
    variants=(
        Variant("PostgreSQL", idle, environment=SHOP, warren=True),
        Variant("SQLite", idle, database="sqlite", environment=SHOP, warren=True),
    ),
)

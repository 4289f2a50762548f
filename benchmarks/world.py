"""A world to measure in: a private broker, a database, and the shop's processes as a person would run them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from django.core.management import call_command

from script.environment import ROOT, UNLIMITED_ORDERS
from script.programs.demo_site import prepare_site
from script.services.ports import answers, free_port
from script.services.postgresql import PostgreSQLCluster
from script.services.rabbitmq import RabbitMQNode

STOCK = 1_000_000


@dataclass(frozen=True)
class World:
    """Where things are. The processes of `start` end with the world."""

    url: str
    node: RabbitMQNode
    environment: dict[str, str]
    stack: ExitStack

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a program of the project; its output is thrown away."""
        process = subprocess.Popen(
            command, cwd=ROOT, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.stack.callback(_end, process)
        return process

    def manage(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a `manage.py` command."""
        return self.start(sys.executable, "manage.py", *arguments)


@contextmanager
def world(database: str) -> Iterator[World]:
    """Make a world on "sqlite" or "postgresql", with stock, and gunicorn answering; Django is set up to read its
    database from here."""
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="warren-bench-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        directory.chmod(0o711)
        node = stack.enter_context(RabbitMQNode(directory / "rabbitmq", throwaway=True))
        if database == "postgresql":
            database_url = stack.enter_context(PostgreSQLCluster(directory / "postgresql")).url
        else:
            database_url = f"sqlite:///{directory / 'db.sqlite3'}"
        os.environ.update(
            AMQP_URL=node.add_vhost("bench"),
            DATABASE_URL=database_url,
            DJANGO_SETTINGS_MODULE="project.settings",
            SECRET_KEY="benchmark",
            DEBUG="0",
            LOG_LEVEL="WARNING",
            **UNLIMITED_ORDERS,
        )
        made = World(f"http://127.0.0.1:{free_port()}", node, {**os.environ, "RELAY_THREAD": "1"}, stack)
        prepare_site()
        from orders.models import Product  # models can be imported only now

        call_command("collectstatic", verbosity=0, interactive=False)
        Product.objects.update(stock=STOCK)
        gunicorn = str(Path(sys.executable).with_name("gunicorn"))
        address = made.url.removeprefix("http://")
        made.start(
            gunicorn, "project.wsgi", f"--bind={address}", "--workers=1", "--threads=4",
            "--no-control-socket",
        )  # fmt: skip
        wait_for(lambda: answers(int(address.rpartition(":")[2])))
        yield made


def wait_for(condition: Callable[[], bool], seconds: float = 60, every: float = 0.0005) -> None:
    """Call `condition` until it is true; TimeoutError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s")
        time.sleep(every)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)

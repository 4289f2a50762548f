"""Processes that a run starts, and the broker seen from a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pika

from benchmarks.harness.servers import LIMITS
from script.environment import UNLIMITED_ORDERS
from script.services.owned import end_all, start_owned, tail

#: The environment of a variant that measures the project's own shop.
SHOP = {"DJANGO_SETTINGS_MODULE": "project.settings", "SECRET_KEY": "benchmark", "DEBUG": "0", **UNLIMITED_ORDERS}
#: Messages that the C program leaves unconfirmed at most.
WINDOW = 500
#: What Warren declares for its consumers' queues.
QUORUM = {
    "x-queue-type": "quorum",
    "x-delivery-limit": 1000,
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
    "x-dead-letter-exchange": "",
    "x-dead-letter-routing-key": "bench.dead_letters",
}


@contextmanager
def running(*command: str, processes: int = 1, **environment: str) -> Iterator[Path]:
    """Inside, a client runs, in so many processes; their directory, by which they are found. What they printed is shown
    if the block fails."""
    with tempfile.TemporaryDirectory(prefix="warren-bench-client-") as name:
        directory = Path(name).resolve()
        log = directory / "output.log"
        for _ in range(processes):
            start_owned(command, directory, log=log, environment={**os.environ, **environment})
        try:
            yield directory
        except BaseException:
            print(f"{' '.join(command)} printed:\n{tail(log)}", file=sys.stderr)
            raise
        finally:
            end_all(directory, how=signal.SIGTERM)


def manage(*arguments: str) -> tuple[str, ...]:
    """Return a command of Django."""
    return (sys.executable, "-m", "django", *arguments)


@contextmanager
def channel() -> Iterator[Any]:
    """Inside, there is a channel to the run's vhost."""
    connection = pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URL"]))
    try:
        yield connection.channel()
    finally:
        connection.close()


def declare(exchange: str, queue: str, key: str, arguments: dict[str, Any] = QUORUM) -> None:
    """Declare a durable queue, bound to a durable topic exchange."""
    with channel() as amqp:
        amqp.exchange_declare(exchange, "topic", durable=True)
        amqp.queue_declare(queue, durable=True, arguments=arguments)
        amqp.queue_bind(queue, exchange, key)


def ready_in(queue: str) -> int:
    """Return how many messages wait in a queue."""
    with channel() as amqp:
        return int(amqp.queue_declare(queue, passive=True).method.message_count)


def is_consumed(queue: str) -> bool:
    """Return whether a queue exists and has a consumer."""
    with suppress(pika.exceptions.ChannelClosedByBroker), channel() as amqp:
        return bool(amqp.queue_declare(queue, passive=True).method.consumer_count)
    return False


def c_program(name: str, *arguments: str | int) -> list[str]:
    """Return the command that runs a program of `limits/` with the run's vhost."""
    return [f"{os.environ[LIMITS]}/{name}", os.environ["AMQP_URL"], *map(str, arguments)]


def publish(exchange: str, key: str, count: int, body: bytes) -> tuple[float, float]:
    """Publish from C, 500 unconfirmed at most; return the seconds, and the seconds of CPU."""
    command = c_program("publish", exchange, key, count, WINDOW, body.decode())
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, cpu = map(float, done.stdout.split())
    return seconds, cpu

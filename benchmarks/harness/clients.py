"""Processes that a run starts, and the broker seen from a run."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pika

from benchmarks.harness.servers import PUBLISH
from script.services.owned import end_all, start_owned, tail

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
def running(*command: str, **environment: str) -> Iterator[Path]:
    """Inside, a client runs; its directory, by which its processes are found. What it printed is shown if the block
    fails."""
    with tempfile.TemporaryDirectory(prefix="warren-bench-client-") as name:
        directory = Path(name).resolve()
        log = directory / "output.log"
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


def c_program(exchange: str, key: str, count: int, window: int, body: bytes) -> list[str]:
    """Return the command that publishes from C; it prints seconds and seconds of CPU."""
    return [os.environ[PUBLISH], os.environ["AMQP_URL"], exchange, key, str(count), str(window), body.decode()]

"""Relays and workers in threads of the test."""

import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import pika
from django.db import connections, transaction
from django.utils import timezone

from messaging import outbox
from messaging.consumers import Consumer
from messaging.events import Event
from messaging.message import new_id
from messaging.models import OutboxMessage
from messaging.relay.relay import Relay
from messaging.topology import desired
from messaging.topology.declare import declare
from messaging.worker.service import Summary
from messaging.worker.worker import Worker
from tests.support.amqp import plain_channel

#: Deadlines short enough for a test to see them pass.
IMPATIENT = {
    "PUBLISH_TIMEOUT": 1.0,
    "LEASE": 3.0,
    "STOP_TIMEOUT": 5.0,
}


class InThread:
    """Runs a function in a thread. `join` raises its error, if it failed."""

    def __init__(self, run: Any, name: str) -> None:
        self._run = run
        self._error: BaseException | None = None
        self.result: Any = None
        self.thread = threading.Thread(target=self._guarded, name=name, daemon=True)
        self.thread.start()

    def _guarded(self) -> None:
        try:
            self.result = self._run()
        except BaseException as error:
            self._error = error
        finally:
            connections.close_all()

    def join(self, timeout: float = 15) -> Any:
        """Wait for the end and return what it returned."""
        self.thread.join(timeout)
        assert not self.thread.is_alive(), f"{self.thread.name} still runs"
        if self._error:
            raise self._error
        return self.result


def at_once(*functions: Callable[[], Any]) -> list[Any]:
    """Begin these functions in threads at the same moment; return what each returned."""
    start = threading.Barrier(len(functions), timeout=30)

    def begin(function: Callable[[], Any]) -> Any:
        start.wait()
        return function()

    threads = [InThread(partial(begin, function), "at once") for function in functions]
    return [each.join(60) for each in threads]


@contextmanager
def running_relay(drain_timeout: float = 2.0) -> Iterator[Relay]:
    """A relay at work; it has ended properly when the block is left."""
    relay = Relay()
    home = InThread(relay.run, "relay")
    try:
        yield relay
    finally:
        relay.stop(drain_timeout)
        home.join()


class RunningWorker:
    """A worker in a thread of the test, on a connection of its own to the database."""

    def __init__(self, consumers: Sequence[Consumer], **options: Any) -> None:
        self.worker = Worker(consumers, **options)
        self._stop = threading.Event()
        self._home = InThread(lambda: self.worker.run(self._stop.is_set), "worker")

    def stop(self) -> None:
        """Ask it to stop."""
        self._stop.set()

    def join(self, timeout: float = 20) -> Summary:
        """Wait for its end."""
        summary: Summary = self._home.join(timeout)
        return summary


@contextmanager
def running_worker(*consumers: Consumer, **options: Any) -> Iterator[Worker]:
    """A worker at work; it has ended properly when the block is left."""
    home = RunningWorker(consumers, **options)
    try:
        yield home.worker
    finally:
        home.stop()
        home.join()


def declare_queues(*consumers: Consumer) -> None:
    """Make the queues of these consumers, so that messages can wait in them."""
    assert not declare(desired.topology(consumers))


def add(*events: Event, **options: Any) -> list[OutboxMessage]:
    """Add events in a transaction of their own."""
    with transaction.atomic():
        return outbox.add(*events, **options)


def take_all(url: str, queue: str) -> list[tuple[pika.BasicProperties, bytes]]:
    """Every message of a queue, taken out of it."""
    found = []
    with plain_channel(url) as channel:
        while True:
            method, properties, body = channel.basic_get(queue, auto_ack=True)
            if method is None:
                return found
            found.append((properties, body))


def a_row(**changes: Any) -> OutboxMessage:
    """A row of the outbox that is due, written without a relay being told."""
    return OutboxMessage.objects.create(
        **{
            "message_id": new_id(), "type": "test.noted", "exchange": "orders.events", "routing_key": "test.noted",
            "body": b'{"text": "x"}', **changes,
        }
    )  # fmt: skip


def a_leased_row() -> OutboxMessage:
    return a_row(lease_token=uuid.uuid4(), lease_until=timezone.now() + timedelta(hours=1))

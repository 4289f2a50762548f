"""RPC for tests: a server in a thread of the test, and a client of plain pika."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pika
from django.conf import settings
from pika.adapters.blocking_connection import BlockingChannel

from messaging import procedures
from messaging.rpc.server import RpcServer
from messaging.worker.service import Summary
from tests.support.amqp import plain_channel
from tests.support.running import InThread
from tests.support.waiting import eventually


class RunningServer:
    """An `RpcServer` of all registered procedures, running in a thread."""

    def __init__(self, **options: Any) -> None:
        self._stop = threading.Event()
        self._serving = threading.Event()
        self._server = RpcServer(procedures.registered(), on_serving=self._serving.set, **options)
        self._home = InThread(lambda: self._server.run(self._stop.is_set), "rpc server")
        if not self._serving.wait(20):
            raise AssertionError("the RPC server did not begin to serve within 20 s")

    def stop(self) -> Summary:
        """Stop as the first signal does, and return what was done."""
        self._stop.set()
        summary: Summary = self._home.join(30)
        return summary


@contextmanager
def running_server(**options: Any) -> Iterator[RunningServer]:
    """A server at work; it has ended properly when the block is left."""
    server = RunningServer(**options)
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def raw_channel() -> Iterator[BlockingChannel]:
    """A channel of plain pika to the test's broker."""
    with plain_channel(settings.MESSAGING["AMQP_URLS"][0], confirms=False) as channel:
        yield channel


def raw_request(channel: BlockingChannel, queue: str, body: bytes, **properties: Any) -> tuple[Any, Any]:
    """Send `body` as any client does, and return the reply's properties and its decoded JSON."""
    if "reply_to" not in properties:
        properties["reply_to"] = channel.queue_declare("", exclusive=True).method.queue
    channel.basic_publish("", queue, body, pika.BasicProperties(**properties))
    answer = properties["reply_to"]
    _, found, reply = eventually(lambda: got(channel, answer))
    return found, json.loads(reply)


def got(channel: BlockingChannel, queue: str) -> tuple[Any, Any, bytes] | None:
    """Take the next message of `queue`: its method, properties and body; None where it is empty."""
    method, properties, body = channel.basic_get(queue, auto_ack=True)
    return None if method is None else (method, properties, body)

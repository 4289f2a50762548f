"""Clients and servers as the RabbitMQ tutorials write them, on plain pika: they know nothing of ours."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import Future
from typing import Any

import pika
from django.conf import settings
from pika.adapters.blocking_connection import BlockingChannel

#: How the tutorials declare hello, task_queue and rpc_queue today, in every language
#: (https://github.com/rabbitmq/rabbitmq-tutorials), and how the older ones declared hello and rpc_queue.
TODAY: dict[str, Any] = {"durable": True, "arguments": {"x-queue-type": "quorum"}}
OLDER: dict[str, Any] = {}


class ClassicCentre:
    """A client whose threads share one connection and one reply queue, and tell their replies by correlation id."""

    def __init__(self) -> None:
        self._connection = pika.BlockingConnection(pika.URLParameters(settings.MESSAGING["AMQP_URLS"][0]))
        self._channel = self._connection.channel()
        self.reply_queue: str = self._channel.queue_declare("", exclusive=True).method.queue
        self._channel.basic_consume(self.reply_queue, self._replied, auto_ack=True)
        self._waiting: dict[str, Future[bytes]] = {}
        self._thread = threading.Thread(target=self._channel.start_consuming, daemon=True)
        self._thread.start()

    def call(self, queue: str, body: str) -> str:
        """Ask, from any thread, and return the reply's body as text."""
        correlation_id = str(uuid.uuid4())
        answer = self._waiting[correlation_id] = Future()
        properties = pika.BasicProperties(reply_to=self.reply_queue, correlation_id=correlation_id)
        self._connection.add_callback_threadsafe(
            lambda: self._channel.basic_publish("", queue, body.encode(), properties)
        )
        return answer.result(30).decode()

    def close(self) -> None:
        self._connection.add_callback_threadsafe(self._channel.stop_consuming)
        self._thread.join(10)
        self._connection.close()

    def _replied(self, _: BlockingChannel, __: Any, properties: pika.BasicProperties, body: bytes) -> None:
        self._waiting.pop(properties.correlation_id).set_result(body)


class ClassicServer:
    """The tutorials' `rpc_server`: declares its queue, takes one at a time, replies, acknowledges. The first form that
    the tutorials show replies without a correlation id."""

    def __init__(self, queue: str, declares: dict[str, Any] = TODAY, *, correlates: bool = True) -> None:
        self._correlates = correlates
        self._connection = pika.BlockingConnection(pika.URLParameters(settings.MESSAGING["AMQP_URLS"][0]))
        self._channel = self._connection.channel()
        self._channel.queue_declare(queue=queue, **declares)
        self._channel.basic_qos(prefetch_count=1)
        self._channel.basic_consume(queue, self._on_request)
        self.served = 0
        self._thread = threading.Thread(target=self._channel.start_consuming, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._connection.add_callback_threadsafe(self._channel.stop_consuming)
        self._thread.join(10)
        self._connection.close()

    def _on_request(self, channel: BlockingChannel, method: Any, asked: pika.BasicProperties, body: bytes) -> None:
        self.served += 1
        answer = pika.BasicProperties(correlation_id=asked.correlation_id if self._correlates else None)
        channel.basic_publish("", str(asked.reply_to), str(_fib(int(body))).encode(), answer)
        channel.basic_ack(method.delivery_tag)


def _fib(number: int) -> int:
    return number if number < 2 else _fib(number - 1) + _fib(number - 2)

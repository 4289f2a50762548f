"""What `routing` says a binding takes is what RabbitMQ routes."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from messaging.routing import Binding, Exchange, matches, takes
from tests.support.amqp import plain_channel

PATTERNS = [
    "", "#", "*", "#.#", "*.*", "#.*", "*.#", "#.*.#", "kern.*", "kern.#", "old.#", "old.*", "*.orange.*", "lazy.#",
    "*.*.rabbit", "#.rabbit", "a.#.b", "a.*.#.b", "#.a.#", ".", "a.", ".a", "a..b", "*.", "#.a.#.b",
]  # fmt: skip
KEYS = [
    "", "a", "b", "a.b", "a.x.b", "a.x.y.b", "a.a", "b.a.b", "kern", "kern.critical", "kern.critical.test", "old",
    "old.boy", "old.boy.python", "quick.orange.rabbit", "lazy.orange.elephant", "lazy", "lazy.brown.fox",
    "orange", "quick.orange.male.rabbit", ".", "..", "a.", ".a", "a..b", "*", "#",
]  # fmt: skip
ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"x-match": "all"},
    {"x-match": "any"},
    {"format": "pdf"},
    {"x-match": "all", "format": "pdf", "type": "report"},
    {"x-match": "any", "format": "pdf", "type": "log"},
    {"x-match": "all", "format": None},
    {"x-match": "any", "copies": 2},
    {"x-match": "all", "urgent": True},
    {"x-match": "all", "x-secret": "1"},
    {"x-match": "all-with-x", "x-secret": "1"},
    {"x-match": "any-with-x", "x-secret": "1", "format": "pdf"},
]
HEADERS: list[dict[str, Any]] = [
    {},
    {"format": "pdf"},
    {"format": "zip", "type": "report"},
    {"format": "pdf", "type": "report", "more": "yes"},
    {"type": "log"},
    {"copies": 2},
    {"copies": "2"},
    {"urgent": True},
    {"urgent": 1},
    {"x-secret": "1"},
]


def received(channel: BlockingChannel, queue: str) -> set[str]:
    found: set[str] = set()
    while True:
        method, _, body = channel.basic_get(queue, auto_ack=True)
        if method is None:
            return found
        found.add(body.decode())


def test_a_topic_exchange_takes_what_the_patterns_say(vhost: str) -> None:
    with plain_channel(vhost) as channel:
        channel.exchange_declare("animals", "topic")
        queues = {pattern: channel.queue_declare("", exclusive=True).method.queue for pattern in PATTERNS}
        for pattern, queue in queues.items():
            channel.queue_bind(queue, "animals", pattern)
        for key in KEYS:
            channel.basic_publish("animals", key, key.encode())

        for pattern, queue in queues.items():
            assert received(channel, queue) == {key for key in KEYS if matches(pattern, key)}, pattern


def test_a_headers_exchange_takes_what_the_arguments_say(vhost: str) -> None:
    with plain_channel(vhost) as channel:
        channel.exchange_declare("papers", "headers")
        queues = [channel.queue_declare("", exclusive=True).method.queue for _ in ARGUMENTS]
        for queue, arguments in zip(queues, ARGUMENTS, strict=True):
            channel.queue_bind(queue, "papers", "", arguments)
        for headers in HEADERS:
            channel.basic_publish("papers", "", json.dumps(headers).encode(), pika.BasicProperties(headers=headers))

        for queue, arguments in zip(queues, ARGUMENTS, strict=True):
            binding = Binding("papers", queue, arguments=arguments)
            expected = {json.dumps(headers) for headers in HEADERS if takes("headers", binding, "", headers)}
            assert received(channel, queue) == expected, arguments


@pytest.mark.parametrize("type", ["direct", "fanout"])
def test_direct_compares_keys_and_fanout_does_not(vhost: str, type: str) -> None:
    keys = ["error", "info", "", "#"]
    with plain_channel(vhost) as channel:
        channel.exchange_declare("lines", type)
        queues = {key: channel.queue_declare("", exclusive=True).method.queue for key in keys}
        for key, queue in queues.items():
            channel.queue_bind(queue, "lines", key)
        for key in keys:
            channel.basic_publish("lines", key, key.encode())

        for bound, queue in queues.items():
            assert received(channel, queue) == {
                key for key in keys if takes(type, Binding("lines", queue, bound), key, {})
            }


def test_many_wildcards_take_no_longer_than_few() -> None:
    pattern = ".".join(itertools.islice(itertools.cycle("#*"), 100))

    assert not matches(f"{pattern}.end", ".".join("a" * 200))
    assert matches(pattern, ".".join("a" * 200))


@pytest.mark.parametrize(("name", "type"), [("", "topic"), ("x" * 256, "topic"), ("logs", "fan"), ("logs", "")])
def test_an_exchange_that_cannot_be_is_refused(name: str, type: Any) -> None:
    with pytest.raises(ValueError, match=r"exchange"):
        Exchange(name, type)

"""The least that a consumer can do: `python -m benchmarks.shop.direct` notes the time of each message, and acks it."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import pika

QUEUE = "limit"


def entered(number: str) -> None:
    """Note that the handling of an order begins, if anyone asks."""
    if path := os.environ.get("BENCH_ENTRIES"):
        with open(path, "a") as entries:
            entries.write(f"{number} {time.monotonic()}\n")


def main() -> None:
    """Consume until stopped."""
    amqp = pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URL"])).channel()
    amqp.basic_qos(prefetch_count=50)
    amqp.basic_consume(QUEUE, _received)
    amqp.start_consuming()


def _received(channel: Any, method: Any, properties: Any, body: bytes) -> None:
    entered(json.loads(body)["number"])
    channel.basic_ack(method.delivery_tag)


if __name__ == "__main__":
    main()

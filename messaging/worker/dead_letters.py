"""Dead letters: what RabbitMQ or an RPC server gives up becomes a dead inbox row.

RabbitMQ does so at the delivery limit, or over a queue's length; an RPC server with requests that it cannot answer.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from messaging import consumers, encoding
from messaging.consumers import Consumer
from messaging.logs import get_logger
from messaging.message import Delivery
from messaging.topology import desired
from messaging.worker import inbox

log = get_logger(__name__)

NAME = desired.DEAD_LETTERS
#: RabbitMQ's reasons. An RPC server has reasons of its own.
BY_THE_BROKER = {"delivery_limit", "expired", "maxlen", "rejected"}


def consumer() -> Consumer:
    """Return the built-in consumer of the dead-letter queue, which `run_consumer --all` runs with the others."""
    return Consumer(name=NAME, queue=desired.dead_letter_queue(), events=(), handler=record, fenced=False)


def record(_: None, delivery: Delivery) -> None:
    """Make the message dead at the consumer of the queue that gave it up.

    A message that is handled there, or waits for a later attempt, stays as it is.
    """
    queue, cause, routing_key = _death(delivery)
    message = encoding.named(delivery.message, routing_key)
    there = replace(delivery, queue=queue, consumer=_consumer_of(queue), message=message)
    reason = f"{'the broker gave it' if cause in BY_THE_BROKER else 'given'} up in queue {queue}: {cause}"
    if inbox.bury(there, reason) is not None:
        log.error("message.dead", message_id=there.message_id, consumer=there.consumer, reason=reason)


def _death(delivery: Delivery) -> tuple[str, str, str]:
    """Return the queue of the latest death, its cause, and the message's routing key there.

    RabbitMQ writes the header, newest death first (https://www.rabbitmq.com/docs/dlx#effects). A client that publishes
    to the dead-letter queue directly may have written anything.
    """
    deaths: Any = delivery.message.headers.get("x-death")
    latest = deaths[0] if isinstance(deaths, list) and deaths else None
    if not isinstance(latest, dict):
        return delivery.queue, "published to the dead-letter queue directly", ""
    keys = latest.get("routing-keys")
    routing_key = keys[0] if isinstance(keys, list) and keys and isinstance(keys[0], str) else ""
    return str(latest.get("queue", delivery.queue))[:255], str(latest.get("reason", "unknown"))[:100], routing_key


def _consumer_of(queue: str) -> str:
    return next((each.name for each in consumers.registered() if each.queue == queue), queue)

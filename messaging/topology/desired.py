"""Topology: the exchanges, queues and bindings that the registered consumers need, computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from messaging import conf
from messaging.consumers import Consumer, exchange_of
from messaging.events import registered as registered_events
from messaging.routing import Binding, Exchange


@dataclass(frozen=True, slots=True)
class Queue:
    name: str
    arguments: dict[str, Any] = field(hash=False)


@dataclass(frozen=True, slots=True)
class Topology:
    """What must exist on the broker. Everything in it is durable."""

    exchanges: tuple[Exchange, ...]
    queues: tuple[Queue, ...]
    bindings: tuple[Binding, ...]


def topology(consumers: Iterable[Consumer]) -> Topology:
    """Return what `consumers`, and every registered event, need on the broker."""
    consumers = list(consumers)
    exchanges = {exchange_of(event) for event in registered_events()}
    exchanges |= {exchange_of(event) for each in consumers for event in each.events}
    if conf.get().log_to_broker:
        exchanges.add(log_exchange())
    lasting = [each for each in consumers if not each.broadcast]
    bindings = [binding for each in lasting for binding in each.bindings]
    return Topology(
        exchanges=tuple(sorted(exchanges, key=lambda exchange: exchange.name)),
        queues=(
            Queue(dead_letter_queue(), _dead_letter_queue_arguments()),
            *(Queue(each.queue, queue_arguments(each)) for each in lasting if each.queue != dead_letter_queue()),
        ),
        bindings=tuple(dict.fromkeys(bindings)),
    )


def dead_letter_queue() -> str:
    """Return the name of the queue for what the broker itself gives up: over the delivery limit, or too long."""
    return f"{conf.get().app_id}.dead_letters"


def log_exchange() -> Exchange:
    """Return the exchange that processes write their logs to, where LOG_TO_BROKER says so."""
    return Exchange(f"{conf.get().app_id}.logs")


def _dead_letter_queue_arguments() -> dict[str, Any]:
    if conf.get().queue_type == "classic":
        return {"x-queue-type": "classic"}
    # Without a limit of its own RabbitMQ 4 gives it one of 20, and then drops the message: there is no further place.
    return {"x-queue-type": "quorum", "x-delivery-limit": 2**31 - 1}


def queue_arguments(consumer: Consumer | None = None) -> dict[str, Any]:
    """Return the arguments of a consumer's queue; without one, those that all have in common.

    They cannot be changed on a queue that exists, so only what correctness needs is here, and what the consumer asks
    for. At-least-once dead-lettering needs a quorum queue that rejects publishes when full
    (https://www.rabbitmq.com/docs/quorum-queues#activating-at-least-once-dead-lettering).
    """
    own: dict[str, Any] = dict(consumer.arguments) if consumer else {}
    if consumer and consumer.max_priority:
        own["x-max-priority"] = consumer.max_priority
    dead_letters = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead_letter_queue()}
    if ((consumer and consumer.queue_type) or conf.get().queue_type) == "classic":
        return {"x-queue-type": "classic", **dead_letters, **own}
    return {
        "x-queue-type": "quorum",
        # Explicit and positive: -1 means no limit to RabbitMQ 4 and no second delivery to 3.10.
        "x-delivery-limit": conf.get().delivery_limit,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
        **dead_letters,
        **own,
    }


def describe(binding: Binding) -> str:
    """Return in words what a binding takes: its key, or the headers that it asks for."""
    asked = "" if binding.arguments == {"x-match": "all"} else _in_words(binding.arguments)
    return binding.key or asked or "everything"


def _in_words(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in arguments.items())

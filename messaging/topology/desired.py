"""The exchanges, queues and bindings that the registered events and consumers need, computed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from messaging import conf
from messaging.consumers import Consumer, exchange_of
from messaging.events import registered as registered_events
from messaging.routing import Binding, Exchange

#: Name of the built-in consumer that records what the broker gives up.
DEAD_LETTERS = "dead_letters"


@dataclass(frozen=True, slots=True)
class Queue:
    name: str
    arguments: dict[str, Any] = field(hash=False)


@dataclass(frozen=True, slots=True)
class Topology:
    """What must exist on the broker. Everything in it is durable."""

    exchanges: tuple[Exchange, ...] = ()
    queues: tuple[Queue, ...] = ()
    bindings: tuple[Binding, ...] = ()

    def declarations(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Return name, AMQP method and arguments of each exchange and queue, in the order of declaration."""
        return [
            *(
                (each.name, "exchange_declare", {"exchange": each.name, "exchange_type": each.type, "durable": True})
                for each in self.exchanges
            ),
            *(
                (each.name, "queue_declare", {"queue": each.name, "durable": True, "arguments": each.arguments})
                for each in self.queues
            ),
        ]

    def part(self, name: str) -> Topology:
        """Return the exchange or queue of that name, with its bindings."""
        return Topology(
            exchanges=tuple(each for each in self.exchanges if each.name == name),
            queues=tuple(each for each in self.queues if each.name == name),
            bindings=tuple(each for each in self.bindings if name in (each.queue, each.exchange)),
        )


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
    """Return the queue of the messages that the broker gives up: over the delivery limit, expired, too many."""
    return f"{conf.get().app_id}.{DEAD_LETTERS}"


def log_exchange() -> Exchange:
    """Return the exchange that processes write their logs to, with LOG_TO_BROKER."""
    return Exchange(f"{conf.get().app_id}.logs")


def _dead_letter_queue_arguments() -> dict[str, Any]:
    if conf.get().queue_type == "classic":
        return {"x-queue-type": "classic"}
    # RabbitMQ 4 has a default limit of 20, and then drops the message: it has nowhere else to go.
    return {"x-queue-type": "quorum", "x-delivery-limit": 2**31 - 1}


def queue_arguments(consumer: Consumer | None = None) -> dict[str, Any]:
    """Return the arguments of a consumer's queue; without a consumer, those that all have in common.

    RabbitMQ does not change those of an existing queue, so here is only what correctness needs, and what the consumer
    asks for. At-least-once dead-lettering needs a quorum queue that rejects publishes when full
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
    asked = {} if binding.arguments == {"x-match": "all"} else binding.arguments
    return binding.key or ", ".join(f"{name}={value}" for name, value in asked.items()) or "everything"

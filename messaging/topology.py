"""Topology: the exchanges, queues and bindings that the registered consumers need, computed and declared."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import structlog

from messaging import conf
from messaging.broker.connection import Connection
from messaging.consumers import Consumer, exchange_of
from messaging.events import registered as registered_events
from messaging.exceptions import ChannelClosed

log = structlog.get_logger(__name__)

ACCESS_REFUSED = 403
NOT_FOUND = 404
PRECONDITION_FAILED = 406


@dataclass(frozen=True, slots=True)
class Exchange:
    name: str
    type: str = "topic"


@dataclass(frozen=True, slots=True)
class Queue:
    name: str
    arguments: dict[str, Any] = field(hash=False)


@dataclass(frozen=True, slots=True)
class Binding:
    exchange: str
    queue: str
    key: str


@dataclass(frozen=True, slots=True)
class Topology:
    """What must exist on the broker. Everything in it is durable."""

    exchanges: tuple[Exchange, ...]
    queues: tuple[Queue, ...]
    bindings: tuple[Binding, ...]


def wanted(consumers: Iterable[Consumer]) -> Topology:
    """Return what `consumers`, and every registered event, need on the broker."""
    consumers = list(consumers)
    exchanges = {exchange_of(event) for event in registered_events()}
    bindings = [Binding(exchange, each.queue, key) for each in consumers for exchange, key in each.bindings]
    return Topology(
        exchanges=tuple(Exchange(name) for name in sorted(exchanges | {binding.exchange for binding in bindings})),
        queues=(
            Queue(dead_letter_queue(), _dead_letter_queue_arguments()),
            *(Queue(each.queue, queue_arguments()) for each in consumers if each.queue != dead_letter_queue()),
        ),
        bindings=tuple(dict.fromkeys(bindings)),
    )


def dead_letter_queue() -> str:
    """Return the name of the queue for what the broker itself gives up: over the delivery limit, or too long."""
    return f"{conf.get().app_id}.dead_letters"


def _dead_letter_queue_arguments() -> dict[str, Any]:
    if conf.get().queue_type == "classic":
        return {"x-queue-type": "classic"}
    # Without a limit of its own RabbitMQ 4 gives it one of 20, and then drops the message: there is no further place.
    return {"x-queue-type": "quorum", "x-delivery-limit": 2**31 - 1}


def queue_arguments() -> dict[str, Any]:
    """Return the arguments of a consumer's queue.

    They cannot be changed on a queue that exists, so only what correctness needs is here. At-least-once
    dead-lettering needs a quorum queue that rejects publishes when full
    (https://www.rabbitmq.com/docs/quorum-queues#activating-at-least-once-dead-lettering).
    """
    dead_letters = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead_letter_queue()}
    if conf.get().queue_type == "classic":
        return {"x-queue-type": "classic", **dead_letters}
    return {
        "x-queue-type": "quorum",
        # Explicit and positive: -1 means no limit to RabbitMQ 4 and no second delivery to 3.10.
        "x-delivery-limit": conf.get().delivery_limit,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
        **dead_letters,
    }


def declare(connection: Connection, topology: Topology) -> dict[str, str]:
    """Declare `topology`; return {name of exchange or queue: reason} for what does not stand as it should.

    Where this user may not configure, it is looked for passively. An existing queue with other arguments is left
    as it is, and reported. Raises BrokerUnavailable.
    """
    problems: dict[str, str] = {}
    for exchange in topology.exchanges:
        _declare_one(
            problems, connection, exchange.name, "exchange_declare",
            {"exchange": exchange.name}, {"exchange_type": exchange.type, "durable": True},
        )  # fmt: skip
    for queue in topology.queues:
        _declare_one(
            problems, connection, queue.name, "queue_declare",
            {"queue": queue.name}, {"durable": True, "arguments": queue.arguments},
        )  # fmt: skip
    for binding in topology.bindings:
        _bind(problems, connection, binding)
    return problems


def _declare_one(
    problems: dict[str, str],
    connection: Connection,
    name: str,
    method: str,
    what: dict[str, Any],
    how: dict[str, Any],
) -> None:
    try:
        connection.call(method, **what, **how)
    except ChannelClosed as error:
        if error.code == ACCESS_REFUSED:
            _look(problems, connection, name, method, what)
        elif error.code == PRECONDITION_FAILED:
            # It stands and works, but not as this code wants it: say so, and go on with what is there.
            log.error("topology.differs", name=name, reason=error.text)
        else:
            problems[name] = str(error)


def _look(problems: dict[str, str], connection: Connection, name: str, method: str, what: dict[str, Any]) -> None:
    try:
        connection.call(method, **what, passive=True)
    except ChannelClosed as error:
        problems[name] = f"this user may not declare it, and it cannot be found: {error}"


def _bind(problems: dict[str, str], connection: Connection, binding: Binding) -> None:
    try:
        connection.call("queue_bind", queue=binding.queue, exchange=binding.exchange, routing_key=binding.key)
    except ChannelClosed as error:
        if error.code == ACCESS_REFUSED:
            # AMQP has no way to look at a binding; an unbound key shows as a returned message.
            log.info("topology.may_not_bind", queue=binding.queue, key=binding.key)
        else:
            problems.setdefault(binding.queue, f"binding {binding.key} of {binding.exchange} failed: {error}")

"""Topology: the exchanges, queues and bindings that the registered consumers need, computed and declared."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog

from messaging import conf
from messaging.broker.connection import Connection
from messaging.broker.reply_codes import ACCESS_REFUSED, PRECONDITION_FAILED
from messaging.consumers import Consumer, exchange_of
from messaging.events import registered as registered_events
from messaging.exceptions import ChannelClosed
from messaging.routing import Binding, Exchange

log = structlog.get_logger(__name__)

#: Seconds between the end of a queue and its declaring anew. RabbitMQ tells the consumers of a deleted quorum queue a
#: moment later (3.10: some 10 ms). If a queue of that name is there again by then, it takes that for the old one come
#: back, counts them as its consumers, and sends them nothing.
NOTICE = 0.25
#: Seconds after which what was refused is asked for again: somebody may have granted it.
ASK_AGAIN = 30.0


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


def wanted(consumers: Iterable[Consumer]) -> Topology:
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


def declare(connection: Connection, topology: Topology) -> dict[str, str]:
    """Declare `topology` once; see `Declarer.declare`."""
    return Declarer(connection).declare(topology)


class Declarer:
    """Declares topologies over one connection, again and again.

    What this user may not declare, or what stands otherwise than wanted, is looked for instead. It is not declared
    again before ASK_AGAIN has passed, or on a fresh connection, or until it is gone: each refusal costs a channel, and
    the broker a line in its log.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._generation = connection.generation
        self._forget_at = 0.0
        #: What this user may not declare, by name; a binding by exchange, key and queue.
        self.refused: dict[str, str] = {}
        #: What stands otherwise than wanted, and what the broker said about it.
        self.differing: dict[str, str] = {}
        #: What did not stand as it should the last time, and why.
        self.problems: dict[str, str] = {}

    def declare(self, topology: Topology) -> dict[str, str]:
        """Declare `topology`; return {name of exchange or queue: reason} for what does not stand as it should.

        An existing queue with other arguments is left as it is, and logged; so is each new problem, once for as long
        as it lasts. Raises BrokerUnavailable.
        """
        if self._generation != self._connection.generation or time.monotonic() >= self._forget_at:
            self._generation, self._forget_at = self._connection.generation, time.monotonic() + ASK_AGAIN
            self.refused.clear()
            self.differing.clear()
        known = set(self.refused)
        problems: dict[str, str] = {}
        for exchange in topology.exchanges:
            self._declare(
                problems, exchange.name, "exchange_declare",
                {"exchange": exchange.name}, {"exchange_type": exchange.type, "durable": True},
            )  # fmt: skip
        for queue in topology.queues:
            self._declare(
                problems, queue.name, "queue_declare",
                {"queue": queue.name}, {"durable": True, "arguments": queue.arguments},
            )  # fmt: skip
        for binding in topology.bindings:
            self._bind(problems, binding)
        if new := [name for name in self.refused if name not in known]:
            log.info("topology.may_not_declare", names="; ".join(new))
        self._tell(problems)
        return problems

    def _tell(self, problems: dict[str, str]) -> None:
        for name, reason in problems.items():
            if self.problems.get(name) != reason:
                log.error("topology.problem", name=name, reason=reason)
        self.problems = problems

    def _declare(
        self, problems: dict[str, str], name: str, method: str, what: dict[str, Any], how: dict[str, Any]
    ) -> None:
        if name in self.refused or name in self.differing:
            self._look(problems, name, method, what)
            return
        try:
            self._connection.call(method, **what, **how)
        except ChannelClosed as error:
            if error.code == ACCESS_REFUSED:
                self.refused[name] = error.text
                self._look(problems, name, method, what)
            elif error.code == PRECONDITION_FAILED:
                # It stands and works, but not as this code wants it: say so, and go on with what is there.
                self.differing[name] = error.text
                log.error("topology.differs", name=name, reason=error.text)
            else:
                problems[name] = str(error)

    def _look(self, problems: dict[str, str], name: str, method: str, what: dict[str, Any]) -> None:
        try:
            self._connection.call(method, **what, passive=True)
        except ChannelClosed as error:
            # From 4.3.1 on RabbitMQ shows nothing to those who may do nothing with it: then nobody knows.
            if refused := self.differing.pop(name, None):
                # It stood otherwise, and was deleted since; or its arguments are none that the broker knows.
                problems[name] = f"it is not there, and when it was declared the broker said: {refused}"
            elif error.code != ACCESS_REFUSED:
                problems[name] = f"this user may not declare it, and it cannot be found: {error}"

    def _bind(self, problems: dict[str, str], binding: Binding) -> None:
        name = f"binding {binding.exchange} → {describe(binding)} → {binding.queue}"
        if name in self.refused:
            return
        try:
            self._connection.call(
                "queue_bind",
                queue=binding.queue,
                exchange=binding.exchange,
                routing_key=binding.key,
                arguments=dict(binding.arguments),
            )
        except ChannelClosed as error:
            if error.code == ACCESS_REFUSED:
                # AMQP has no way to look at a binding; an unbound key shows as a returned message.
                self.refused[name] = error.text
            else:
                problems.setdefault(binding.queue, f"binding {describe(binding)} of {binding.exchange} failed: {error}")

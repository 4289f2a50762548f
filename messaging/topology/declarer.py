"""Declarer: makes a topology stand on the broker, and keeps it standing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from messaging.broker.connection import Connection
from messaging.broker.queue_answers import CURE
from messaging.broker.reply_codes import ACCESS_REFUSED, NOT_FOUND, PRECONDITION_FAILED
from messaging.exceptions import ChannelClosed, QueueSilent
from messaging.loggers import get_logger
from messaging.news import News
from messaging.routing import Binding
from messaging.topology.desired import Topology, describe

log = get_logger(__name__)

#: Seconds between the end of a queue and its declaring anew. RabbitMQ tells the consumers of a deleted quorum queue a
#: moment later (3.10: some 10 ms). If a queue of that name is there again by then, it takes that for the old one come
#: back, counts them as its consumers, and sends them nothing.
NOTICE = 0.25
#: Seconds after which what was refused is asked for again: somebody may have granted it. The shorter while something is
#: missing for it.
ASK_AGAIN = 300.0
ASK_AGAIN_SOON = 30.0


class Declarer:
    """Declares topologies over one connection, again and again.

    What this user may not declare, or what stands otherwise than wanted, is looked for instead. It is not declared
    again before ASK_AGAIN has passed, or on a fresh connection, or until it is gone: each refusal costs a channel, and
    the broker a line in its log.

    What does not stand as wanted is logged, and again each minute while it stays so; what this user may not declare is
    logged once. A `quiet` one leaves that to its owner.
    """

    def __init__(self, connection: Connection, *, quiet: bool = False) -> None:
        self._connection = connection
        self._quiet = quiet
        self._generation = connection.generation
        self._asked_at = time.monotonic()
        #: What was logged of each name, by event.
        self._told: dict[str, dict[str, News]] = {}
        self._told_refused: set[str] = set()
        #: What this user may not declare, by name; a binding by exchange, key and queue.
        self.refused: dict[str, str] = {}
        #: What stands otherwise than wanted, and what the broker said about it.
        self.differing: dict[str, str] = {}
        #: Queues that exist and do not answer, and what was asked. They are asked again after ASK_AGAIN_SOON.
        self.silent: dict[str, str] = {}
        self._silent_until: dict[str, float] = {}
        #: What did not stand, or not as it should, the last time, and why.
        self.problems: dict[str, str] = {}

    def declare(self, topology: Topology) -> dict[str, str]:
        """Declare `topology`; return {name of exchange or queue: reason} for what does not stand as it should.

        An existing queue with other arguments is left as it is. Raises BrokerUnavailable.
        """
        self._forget()
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
        self.problems = problems
        self._tell()
        return problems

    def _forget(self) -> None:
        """Let what was refused be asked for again, where it is time."""
        fresh = self._generation != self._connection.generation
        if fresh or time.monotonic() >= self._asked_at + (ASK_AGAIN_SOON if self.problems else ASK_AGAIN):
            self._generation, self._asked_at = self._connection.generation, time.monotonic()
            self.refused.clear()
            self.differing.clear()

    def _declare(
        self, problems: dict[str, str], name: str, method: str, what: dict[str, Any], how: dict[str, Any]
    ) -> None:
        if name not in self.refused:
            if name in self.differing and self._stands(method, what):
                return
            self.differing.pop(name, None)
            if time.monotonic() < self._silent_until.get(name, 0.0):
                return
            self.silent.pop(name, None)
            try:
                self._connection.call(method, **what, **how)
            except QueueSilent as error:
                self.silent[name] = str(error)
                self._silent_until[name] = time.monotonic() + ASK_AGAIN_SOON
            except ChannelClosed as error:
                self._take_no(problems, name, error, stands=lambda: self._stands(method, what))
            else:
                return
        if name in self.refused and not self._stands(method, what):
            problems[name] = "this user may not declare it, and it is not there"

    def _take_no(
        self, problems: dict[str, str], name: str, error: ChannelClosed, *, stands: Callable[[], bool]
    ) -> None:
        if error.code == ACCESS_REFUSED:
            self.refused[name] = error.text
        elif error.code != PRECONDITION_FAILED:
            problems[name] = str(error)
        elif stands():
            # It works, but not as this code wants it: go on with what is there.
            self.differing[name] = error.text
        else:
            # Its arguments are none that the broker knows.
            problems[name] = f"it is not there, and when it was declared the broker said: {error.text}"

    def _stands(self, method: str, what: dict[str, Any]) -> bool:
        """Whether there is such a thing, as far as this user may know."""
        try:
            self._connection.call(method, **what, passive=True)
        except ChannelClosed as error:
            # From 4.3.1 on RabbitMQ shows nothing to those who may do nothing with it: then nobody knows.
            return error.code != NOT_FOUND
        return True

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

    def _tell(self) -> None:
        if self._quiet:
            return
        for name, reason in self._news("differs", self.differing):
            log.error("topology.differs", name=name, reason=reason)
        for name, reason in self._news("silent", self.silent):
            log.error("topology.queue_silent", name=name, reason=reason, cure=CURE)
        for name, reason in self._news("problem", self.problems):
            log.error("topology.problem", name=name, reason=reason)
        new = [name for name in self.refused if name not in self._told_refused]
        self._told_refused = set(self.refused)
        if new:
            log.info("topology.may_not_declare", names="; ".join(new))

    def _news(self, what: str, now: Mapping[str, str]) -> list[tuple[str, str]]:
        # What was well in between is new again.
        before = self._told.get(what, {})
        told = self._told[what] = {name: before.get(name, News()) for name in now}
        return [(name, reason) for name, reason in now.items() if told[name].is_due(reason)]

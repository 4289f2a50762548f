"""Declare a topology on the broker: again and again by a running process, once for a person, and anew what differs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from messaging import consumers
from messaging.broker.connection import Connection, opened
from messaging.broker.queue_answers import CURE, is_stream
from messaging.exceptions import (
    AccessRefused,
    MessagingError,
    NotFound,
    OperationRefused,
    PreconditionFailed,
    QueueSilent,
)
from messaging.logs import Throttle, get_logger
from messaging.routing import Binding
from messaging.topology import desired
from messaging.topology.desired import Topology

log = get_logger(__name__)

#: Seconds between the deletion of a queue and its new declaration. RabbitMQ tells the consumers of a deleted quorum
#: queue a moment later (3.10: some 10 ms). If a queue of that name exists again by then, RabbitMQ takes it for the old
#: one, counts them as its consumers, and sends them nothing: its messages wait until those connections end.
PAUSE_AFTER_DELETION = 0.25
#: Seconds after which a refused declaration is tried again: an administrator may have granted it. The second applies
#: while something is missing.
TRY_AGAIN = 300.0
TRY_AGAIN_SOON = 30.0
#: Seconds between two looks at a queue that is not empty yet.
LOOK_EVERY = 0.02


class NotReplaced(MessagingError):
    """Nothing was deleted; the text says why."""


class Declaration:
    """Declares topologies over one connection, again and again.

    If a declaration is refused, or the object differs, only its existence is checked from then on: each refusal costs
    a channel, and a line in the broker's log. It is declared again after TRY_AGAIN, on a fresh connection, or once the
    object is gone.

    If somebody has deleted a queue since the last time, it waits for PAUSE_AFTER_DELETION before it declares it again.

    A problem is logged at once and then every minute; a refusal for want of rights is logged once. With `quiet`
    nothing is logged.
    """

    def __init__(self, connection: Connection, *, quiet: bool = False) -> None:
        self._connection = connection
        self._quiet = quiet
        self._generation = connection.generation
        self._tried_at = time.monotonic()
        #: What was logged of each name, by log event.
        self._logged: dict[str, dict[str, Throttle]] = {}
        self._logged_refused: set[str] = set()
        #: Queues that were there when they were last declared.
        self._declared: set[str] = set()
        #: Whether this round of declarations has waited PAUSE_AFTER_DELETION.
        self._has_rested = False
        #: What this account may not declare, by name; a binding by exchange, key and queue.
        self.refused: dict[str, str] = {}
        #: What exists with other properties, and how RabbitMQ says so.
        self.differing: dict[str, str] = {}
        #: Queues that exist and do not answer, and what was asked. They are asked again after TRY_AGAIN_SOON.
        self.silent: dict[str, str] = {}
        self._silent_until: dict[str, float] = {}
        #: What is missing, or not as it should be, since the last declaration, and why.
        self.problems: dict[str, str] = {}

    def declare(self, topology: Topology) -> dict[str, str]:
        """Declare `topology`; return {name of exchange or queue: reason} for what is missing or cannot be bound.

        An existing queue with other arguments is used unchanged. Raises BrokerUnavailable.
        """
        self._forget_refusals()
        self._has_rested = False
        problems: dict[str, str] = {}
        for declaration in topology.declarations():
            self._declare(problems, *declaration)
        for binding in topology.bindings:
            self._bind(problems, binding)
        self.problems = problems
        self._log()
        return problems

    def _forget_refusals(self) -> None:
        is_fresh = self._generation != self._connection.generation
        if is_fresh or time.monotonic() >= self._tried_at + (TRY_AGAIN_SOON if self.problems else TRY_AGAIN):
            self._generation, self._tried_at = self._connection.generation, time.monotonic()
            self.refused.clear()
            self.differing.clear()

    def _declare(self, problems: dict[str, str], name: str, method: str, arguments: dict[str, Any]) -> None:
        if name not in self.refused:
            if name in self.differing and self._exists(method, name):
                return
            self.differing.pop(name, None)
            if time.monotonic() < self._silent_until.get(name, 0.0):
                return
            self.silent.pop(name, None)
            try:
                if name in self._declared and not self._has_rested and not self._exists(method, name):
                    time.sleep(PAUSE_AFTER_DELETION)
                    self._has_rested = True  # once for all that went together
                self._connection.call(method, **arguments)
            except QueueSilent as error:
                self.silent[name] = str(error)
                self._silent_until[name] = time.monotonic() + TRY_AGAIN_SOON
            except OperationRefused as error:
                self._note_refusal(problems, name, method, error)
            else:
                if method == "queue_declare":
                    self._declared.add(name)
                return
            self._declared.discard(name)
        if name in self.refused and not self._exists(method, name):
            problems[name] = "this user may not declare it, and it does not exist"

    def _note_refusal(self, problems: dict[str, str], name: str, method: str, error: OperationRefused) -> None:
        if isinstance(error, AccessRefused):
            self.refused[name] = error.text
        elif not isinstance(error, PreconditionFailed):
            problems[name] = str(error)
        elif self._exists(method, name):
            self.differing[name] = error.text
        else:
            # RabbitMQ does not know one of its arguments.
            problems[name] = f"it does not exist, and RabbitMQ refused its declaration: {error.text}"

    def _exists(self, method: str, name: str) -> bool:
        """Whether it exists, as far as this account may know."""
        try:
            self._connection.call(method, **{method.partition("_")[0]: name}, passive=True)
        except NotFound:
            return False
        except OperationRefused:
            # From 4.3.1 on RabbitMQ shows nothing to an account without any right to the object: it may exist.
            return True
        return True

    def _bind(self, problems: dict[str, str], binding: Binding) -> None:
        name = f"binding {binding.exchange} → {desired.describe(binding)} → {binding.queue}"
        if name in self.refused:
            return
        try:
            self._connection.call("queue_bind", **_binding_arguments(binding))
        except AccessRefused as error:
            # AMQP cannot tell whether a binding exists; a missing one shows as a returned message.
            self.refused[name] = error.text
        except OperationRefused as error:
            problems.setdefault(
                binding.queue, f"binding {desired.describe(binding)} of {binding.exchange} failed: {error}"
            )

    def _log(self) -> None:
        if self._quiet:
            return
        for name, reason in self._due("differs", self.differing):
            log.error("topology.differs", name=name, reason=reason)
        for name, reason in self._due("silent", self.silent):
            log.error("topology.queue_silent", name=name, reason=reason, cure=CURE)
        for name, reason in self._due("problem", self.problems):
            log.error("topology.problem", name=name, reason=reason)
        new = [name for name in self.refused if name not in self._logged_refused]
        self._logged_refused = set(self.refused)
        if new:
            log.info("topology.may_not_declare", names="; ".join(new))

    def _due(self, kind: str, reasons: Mapping[str, str]) -> list[tuple[str, str]]:
        # A reason that had gone in between is logged again.
        before = self._logged.get(kind, {})
        logged = self._logged[kind] = {name: before.get(name, Throttle()) for name in reasons}
        return [(name, reason) for name, reason in reasons.items() if logged[name].allows(reason)]


def declare(topology: Topology) -> dict[str, str]:
    """Declare `topology` once; return {name: reason} for what is not as declared, or what this account may not declare.

    Raises BrokerUnavailable.
    """
    with opened("topology") as connection:
        declaration = Declaration(connection, quiet=True)
        problems = declaration.declare(topology)
        return {
            **{name: f"{reason} {CURE[0].upper()}{CURE[1:]}." for name, reason in declaration.silent.items()},
            **declaration.differing,
            **dict.fromkeys(declaration.refused, "this user may not declare it"),
            **problems,
        }


def replace(name: str, patience: float) -> bool:
    """Delete the exchange or queue `name` and declare it with its bindings; return False where it did not differ.

    RabbitMQ changes no object that exists. A queue is deleted only while no message waits in it: `patience` is how many
    seconds to wait for that. The outbox keeps what is published in between, and reconcile sends it again.

    Raises NotReplaced, OperationRefused for what this account may not do, BrokerUnavailable.
    """
    topology = desired.topology(consumers.registered())
    part = topology.part(name)
    if not part.declarations():
        raise NotReplaced(f"{name} is neither a queue nor an exchange that this project declares.")
    with opened("topology") as connection:
        differing = {method for _, method, how in part.declarations() if _differs(connection, method, how)}
        if "exchange_declare" in differing:
            _delete_exchange(connection, name, part.bindings, topology)
        if "queue_declare" in differing:
            _delete_queue(connection, name, patience)
        # A binding needs its exchange, and the queues that were bound to a deleted exchange.
        bound = {each.queue for each in part.bindings}
        problems = Declaration(connection, quiet=True).declare(
            Topology(
                exchanges=part.exchanges or topology.exchanges,
                queues=part.queues or tuple(each for each in topology.queues if each.name in bound),
                bindings=part.bindings,
            )
        )
    if problems:
        raise NotReplaced("; ".join(f"{each}: {reason}" for each, reason in problems.items()))
    return bool(differing)


def _delete_queue(connection: Connection, name: str, patience: float) -> None:
    if is_stream(connection, name):
        raise NotReplaced(
            f"Queue {name} is a stream, which this project does not declare: it is never empty, and other applications "
            "may read it. Give the consumer another queue, or delete the stream by hand."
        )
    # Not by the broker's own `if-empty`: for a quorum queue it would close the whole connection (540).
    deadline = time.monotonic() + patience
    while waiting := connection.call("queue_declare", queue=name, passive=True).messages:
        if time.monotonic() > deadline:
            raise NotReplaced(
                f"Queue {name} still has {waiting} messages, which would be lost with it: let its consumer run until "
                "it has caught up, then repeat this."
            )
        time.sleep(LOOK_EVERY)
    connection.call("queue_delete", queue=name)
    time.sleep(PAUSE_AFTER_DELETION)


def _delete_exchange(connection: Connection, name: str, bindings: Sequence[Binding], topology: Topology) -> None:
    """Delete an exchange to which only our own queues are bound. Raises NotReplaced."""
    for each in bindings:
        with suppress(NotFound):
            connection.call("queue_unbind", **_binding_arguments(each))
    try:
        connection.call("exchange_delete", exchange=name, if_unused=True)
    except OperationRefused as error:
        # Our own bindings are made again, whatever the exchange is.
        Declaration(connection, quiet=True).declare(Topology(queues=topology.queues, bindings=tuple(bindings)))
        if not isinstance(error, PreconditionFailed):
            raise
        raise NotReplaced(
            f"Exchange {name} has bindings that this project does not declare, which would be lost with it. `manage.py "
            f"mq bindings {name}` lists them: let their owners remove them, then repeat this."
        ) from None


def _differs(connection: Connection, method: str, arguments: dict[str, Any]) -> bool:
    try:
        connection.call(method, **arguments)
    except PreconditionFailed:
        return True
    return False


def _binding_arguments(binding: Binding) -> dict[str, Any]:
    at = {"queue": binding.queue, "exchange": binding.exchange, "routing_key": binding.key}
    return {**at, "arguments": dict(binding.arguments)}

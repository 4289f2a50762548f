"""What can differ between the broker and the declarations, with its cure; and what is found of declared objects.

`manage.py check` knows each kind by the same id. Nothing that a cure says loses a message of ours: an event published
while a queue was missing, deleted or not bound is in the outbox with the names of the consumers that must receive it,
and `messages reconcile` compares that with the inbox.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from messaging import conf, consumers, procedures, routing
from messaging.broker.queue_answers import CURE
from messaging.broker.request_queue import ARGUMENTS as REQUEST_QUEUE_ARGUMENTS
from messaging.topology import desired
from messaging.topology.existing import Exchange, Queue

#: The argument of an exchange that sends unroutable events elsewhere: each would count as arrived.
ALTERNATE = "alternate-exchange"
#: Arguments that RabbitMQ compares when a queue is declared again; others make no difference.
COMPARED = {
    "x-dead-letter-exchange", "x-dead-letter-routing-key", "x-dead-letter-strategy", "x-delivery-limit", "x-expires",
    "x-max-length", "x-max-length-bytes", "x-max-priority", "x-message-ttl", "x-overflow", "x-queue-mode",
    "x-queue-version", "x-single-active-consumer", "x-quorum-initial-group-size",
}  # fmt: skip
#: Types that a consumer's queue can have.
_TYPES = {"quorum", "classic"}

DECLARE = "Run `manage.py mq topology declare`; a running relay does it by itself, if it may."


class Kind(StrEnum):
    """What is wrong; the value is its id."""

    UNWANTED_EVENT = "messaging.W006"
    MISSING_EXCHANGE = "messaging.W007"
    OTHER_EXCHANGE = "messaging.W008"
    MISSING_QUEUE = "messaging.W009"
    OTHER_QUEUE = "messaging.W010"
    MISSING_BINDING = "messaging.W011"
    EXTRA_BINDING = "messaging.W012"
    UNCONSUMED_QUEUE = "messaging.W013"
    UNROUTED_EVENT = "messaging.W014"
    ABANDONED_QUEUE = "messaging.W015"
    HARMFUL_POLICY = "messaging.W017"
    SILENT_QUEUE = "messaging.W018"
    FOREIGN_BINDING = "messaging.I003"

    @property
    def words(self) -> str:
        """In two words."""
        return self.name.lower().replace("_", " ")


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference. `hint` says what to do about it."""

    kind: Kind
    #: Of the exchange, the queue or the type of event that it is about.
    name: str
    text: str
    hint: str
    #: False: a note, which may be as it should be.
    is_wrong: bool = True


def consumer_of(queue: str) -> str:
    """Return the name of the registered consumer that reads `queue`; empty where none does."""
    return next((each.name for each in consumers.registered() if each.queue == queue), "")


def reconcile(consumer: str) -> str:
    """Return the sentence that says how to send again what a consumer missed; empty: any consumer."""
    chosen = f" --consumer {consumer}" if consumer else ""
    return (
        f"Then run `manage.py messages reconcile --repair --since 1d{chosen}` twice, {conf.get().reconcile_after:g} s "
        "apart (RECONCILE_AFTER): it sends again what was missed."
    )


def delete_queue(name: str) -> str:
    """Return the command that deletes a queue."""
    return f"`{shlex.join(['rabbitmqctl', 'delete_queue', '-p', conf.get().brokers[0].vhost, name])}`"


def _replace(name: str) -> str:
    return f"`manage.py mq topology declare --replace {shlex.quote(name)}`"


# --- Exchanges -----------------------------------------------------------------------------------------------


def of_exchanges(topology: desired.Topology, existing: Mapping[str, Exchange]) -> Iterator[Finding]:
    """Yield a finding for each declared exchange that is missing or differs."""
    for exchange in topology.exchanges:
        found = existing.get(exchange.name)
        if found is None:
            missing = f"there is no exchange {exchange.name} ({exchange.type})"
            yield Finding(Kind.MISSING_EXCHANGE, exchange.name, missing, f"{DECLARE} {reconcile('')}")
        elif difference := _exchange_difference(exchange, found):
            yield _other_exchange(exchange.name, difference)


def _other_exchange(name: str, difference: str) -> Finding:
    return Finding(
        Kind.OTHER_EXCHANGE,
        name,
        f"exchange {name} differs: {difference}",
        "First let every process run this code, and let other applications remove their bindings (`manage.py mq "
        f"bindings {shlex.quote(name)}`). Then {_replace(name)} deletes it and declares it again; RabbitMQ 4.3 forgets "
        "its topic permissions, so give those of `manage.py mq grants` again. "
        f"{reconcile('')}",
    )


def _exchange_difference(expected: routing.Exchange, found: Exchange) -> str:
    differences = _property_differences({"type": expected.type, "durable": True, "internal": False}, found)
    if elsewhere := found.arguments.get(ALTERNATE):
        differences.append(_pair(ALTERNATE, elsewhere, None))
    return "; ".join(differences)


# --- Queues --------------------------------------------------------------------------------------------------


def of_queues(topology: desired.Topology, existing: Mapping[str, Queue]) -> Iterator[Finding]:
    """Yield a finding for each queue of a consumer or procedure that is missing, differs, is unresponsive, or is not
    consumed."""
    for queue in topology.queues:
        found, consumer = existing.get(queue.name), consumer_of(queue.name)
        if found is None:
            missing = f"there is no queue {queue.name}"
            yield Finding(Kind.MISSING_QUEUE, queue.name, missing, f"{DECLARE} {reconcile(consumer)}")
        elif found.silent:
            yield _silent_queue(found, consumer)
        else:
            if difference := _queue_difference(queue.arguments, found):
                yield _other_queue(queue.name, difference, consumer, is_ours=was_declared_here(found))
            yield from _unconsumed(found, consumer)
    for procedure in procedures.registered():
        found = existing.get(procedure.queue)
        # One that is missing only means that no server runs now.
        if found is not None and found.silent:
            yield _silent_queue(found, "")
        elif found is not None and not procedure.plain_queue:
            yield from _request_queue(procedure, found)


def was_declared_here(queue: Queue) -> bool:
    """Whether a queue has the arguments that only this project declares queues with: those of its dead letters."""
    arguments = queue.arguments
    dead_letters = (arguments.get("x-dead-letter-exchange"), arguments.get("x-dead-letter-routing-key"))
    is_ours = dead_letters == ("", desired.dead_letter_queue())
    return is_ours and queue.type in _TYPES and arguments.get("x-queue-type") == queue.type


def _other_queue(name: str, difference: str, consumer: str, *, is_ours: bool) -> Finding:
    if is_ours:
        cure = (
            "First let every process run this code; leave the consumers running, so that they empty it, and stop "
            f"clients of other applications that publish to it. Then {_replace(name)} waits until it is empty, deletes "
            f"it and declares it again. {reconcile(consumer)}"
        )
    else:
        cure = (
            "Another application declared it: ask its owner before you delete it, or give consumer "
            f"{consumer or 'dead_letters'} another queue, @consumer(..., queue=...). If nothing else uses it, "
            f"{_replace(name)} makes it as declared."
        )
    return Finding(Kind.OTHER_QUEUE, name, f"queue {name} differs: {difference}", f"It is used unchanged. {cure}")


def _request_queue(procedure: procedures.Procedure, found: Queue) -> Iterator[Finding]:
    if difference := _queue_difference(REQUEST_QUEUE_ARGUMENTS, found, auto_delete=True):
        yield Finding(
            Kind.OTHER_QUEUE,
            procedure.queue,
            f"queue {procedure.queue} differs: {difference}",
            "It is used unchanged. To change it, stop every RPC worker, delete the queue unless something else "
            f"uses it ({delete_queue(procedure.queue)}), and start them again: they declare it.",
            # A queue of the project's choice may be another application's, whose servers it shares.
            is_wrong=procedure.queue == f"{procedures.QUEUE_PREFIX}{procedure.name}",
        )


def _silent_queue(queue: Queue, consumer: str) -> Finding:
    text = f"queue {queue.name} exists but does not answer ({queue.silent.rstrip('.')})"
    lost = "" if consumer else " What it holds is then lost."
    hint = f"{CURE[0].upper()}{CURE[1:]}. To delete it: {delete_queue(queue.name)}.{lost}"
    return Finding(Kind.SILENT_QUEUE, queue.name, text, hint)


def _unconsumed(queue: Queue, consumer: str) -> Iterator[Finding]:
    if queue.consumers != 0 or (not consumer and not queue.ready):
        return
    waits = f", and {queue.ready} wait{'s' if queue.ready == 1 else ''} in it" if queue.ready else ""
    text, hint = f"no process consumes {queue.name}{waits}", f"Run `manage.py run_consumer {consumer or '--all'}`."
    yield Finding(Kind.UNCONSUMED_QUEUE, queue.name, text, hint, is_wrong=bool(queue.ready))


def _queue_difference(arguments: Mapping[str, Any], found: Queue, *, auto_delete: bool = False) -> str:
    expected = {"durable": True, "auto_delete": auto_delete, "exclusive": False,
                "type": arguments.get("x-queue-type", "classic")}  # fmt: skip
    differences = _property_differences(expected, found)
    for name in sorted(COMPARED & {*arguments, *found.arguments}):
        if found.arguments.get(name) != arguments.get(name):
            differences.append(_pair(name, found.arguments.get(name), arguments.get(name)))
    return "; ".join(differences)


def _property_differences(expected: Mapping[str, Any], found: Exchange | Queue) -> list[str]:
    existing = {name: getattr(found, name) for name in expected}
    return [
        _pair(name, existing[name], value)
        for name, value in expected.items()
        if existing[name] is not None and existing[name] != value
    ]


def _pair(name: str, found: Any, expected: Any) -> str:
    """Return "x-delivery-limit=20, expected x-delivery-limit=1000"; None is an argument that is not given."""
    return f"{_valued(name, found)}, expected {_valued(name, expected)}"


def _valued(name: str, value: Any) -> str:
    if value is None:
        return f"no {name}"
    return f"{name}={str(value).lower() if isinstance(value, bool) else value}"

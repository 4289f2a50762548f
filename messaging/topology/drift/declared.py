"""Exchanges and queues that are missing or stand otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from messaging import procedures, routing
from messaging.broker.errors import difference
from messaging.broker.queue_answers import CURE
from messaging.broker.request_queue import ARGUMENTS as REQUEST_QUEUE_ARGUMENTS
from messaging.exceptions import AccessRefused, OperationRefused
from messaging.topology import desired
from messaging.topology import existing as standing
from messaging.topology.drift.abandoned import was_declared_here
from messaging.topology.drift.findings import Drift, Finding, Kind, consumer_of
from messaging.topology.existing import ByAmqp

#: The argument of an exchange that sends elsewhere what reaches no queue: an event that nobody gets counts as arrived.
ALTERNATE = "alternate-exchange"
#: Arguments that RabbitMQ compares when a queue is declared anew; what else a queue has makes no difference.
COMPARED = {
    "x-dead-letter-exchange", "x-dead-letter-routing-key", "x-dead-letter-strategy", "x-delivery-limit", "x-expires",
    "x-max-length", "x-max-length-bytes", "x-max-priority", "x-message-ttl", "x-overflow", "x-queue-mode",
    "x-queue-version", "x-single-active-consumer", "x-quorum-initial-group-size",
}  # fmt: skip


def exchanges(wanted: desired.Topology, live: Mapping[str, standing.Exchange]) -> Iterator[Finding]:
    """Yield a finding for each exchange that is missing, or was seen to stand otherwise."""
    for exchange in wanted.exchanges:
        there = live.get(exchange.name)
        if there is None:
            yield Finding(
                kind=Kind.MISSING_EXCHANGE,
                name=exchange.name,
                said=f"there is no exchange {exchange.name} ({exchange.type})",
                hint="Run `manage.py mq topology declare`; a running relay does it by itself, where it may.",
            )
        elif said := _other_exchange_properties(exchange, there):
            yield _other_exchange(exchange.name, said)


def _other_exchange(name: str, said: str) -> Finding:
    return Finding(
        kind=Kind.OTHER_EXCHANGE,
        name=name,
        said=f"exchange {name} stands otherwise: {said}",
        hint="`manage.py mq topology plan` prints the steps to make it as wanted.",
    )


def queues(wanted: desired.Topology, live: Mapping[str, standing.Queue]) -> Iterator[Finding]:
    """The same for queues, those of procedures too; and for those that nobody consumes."""
    for queue in wanted.queues:
        there, consumer = live.get(queue.name), consumer_of(queue.name)
        if there is None:
            yield Finding(
                kind=Kind.MISSING_QUEUE,
                name=queue.name,
                said=f"there is no queue {queue.name}",
                hint="Run `manage.py mq topology declare`; a running relay does it by itself, where it may. Then "
                "`manage.py messages reconcile --repair` sends again what it held.",
                consumer=consumer,
            )
            continue
        if there.silent:
            yield _silent_queue(there, consumer)
            continue
        if said := _other_queue_properties(queue.arguments, there):
            # By AMQP alone the arguments cannot be seen, and the name has to do.
            is_ours = there.arguments is None or was_declared_here(there)
            yield _other_queue(queue.name, said, consumer, is_ours=is_ours)
        yield from _unconsumed(there, consumer)
    for procedure in procedures.registered():
        there = live.get(procedure.queue)
        # That it is not there only means that nobody serves it now.
        if there is not None and there.silent:
            yield _silent_queue(there, "")
            continue
        if there is None or procedure.plain_queue:
            continue
        if said := _other_queue_properties(REQUEST_QUEUE_ARGUMENTS, there, auto_delete=True):
            # A queue of the project's choice may be another application's, whose servers it shares.
            is_ours = procedure.queue == f"{procedures.QUEUE_PREFIX}{procedure.name}"
            yield replace(_other_queue(procedure.queue, said, "", is_ours=is_ours), is_wrong=is_ours)


def _other_queue(name: str, said: str, consumer: str, *, is_ours: bool = True) -> Finding:
    return Finding(
        kind=Kind.OTHER_QUEUE,
        name=name,
        said=f"queue {name} stands otherwise: {said}",
        hint="It is used as it is. `manage.py mq topology plan` prints the steps to make it as wanted."
        if is_ours
        else "It is used as it is. Another application declared it: ask its owner before you delete it.",
        consumer=consumer,
        is_ours=is_ours,
    )


def _silent_queue(queue: standing.Queue, consumer: str) -> Finding:
    return Finding(
        kind=Kind.SILENT_QUEUE,
        name=queue.name,
        said=f"queue {queue.name} exists but does not answer ({queue.silent.rstrip('.')})",
        hint=f"{CURE[0].upper()}{CURE[1:]}.",
        consumer=consumer,
    )


def _unconsumed(queue: standing.Queue, consumer: str) -> Iterator[Finding]:
    if queue.consumers != 0 or (not consumer and not queue.ready):
        return
    waits = f", and {queue.ready} wait{'s' if queue.ready == 1 else ''} in it" if queue.ready else ""
    yield Finding(
        kind=Kind.UNCONSUMED_QUEUE,
        name=queue.name,
        said=f"nobody consumes {queue.name}{waits}",
        hint=f"Run `manage.py run_consumer {consumer or '--all'}`.",
        consumer=consumer,
        is_wrong=bool(queue.ready),
    )


def _other_exchange_properties(wanted: routing.Exchange, there: standing.Exchange) -> str:
    said = [_other_properties({"type": wanted.type, "durable": True, "internal": False}, there)]
    if elsewhere := (there.arguments or {}).get(ALTERNATE):
        said.append(f"{_valued(ALTERNATE, elsewhere)}, wanted {_valued(ALTERNATE, None)}")
    return "; ".join(each for each in said if each)


def _other_queue_properties(arguments: Mapping[str, Any], there: standing.Queue, *, auto_delete: bool = False) -> str:
    if there.arguments is None:
        return ""
    said = [_other_properties({"durable": True, "auto_delete": auto_delete, "exclusive": False}, there)]
    kind = arguments.get("x-queue-type", "classic")
    if there.type is not None and there.type != kind:
        said.append(f"it is {there.type}, wanted {kind}")
    for name in sorted(COMPARED & {*arguments, *there.arguments}):
        is_there, is_wanted = there.arguments.get(name), arguments.get(name)
        if is_there != is_wanted:
            said.append(f"{_valued(name, is_there)}, wanted {_valued(name, is_wanted)}")
    return "; ".join(each for each in said if each)


def _valued(name: str, value: Any) -> str:
    return f"no {name}" if value is None else f"{name}={value}"


def _other_properties(wanted: Mapping[str, Any], there: object) -> str:
    found = {name: getattr(there, name) for name in wanted}
    return "; ".join(
        f"{name}={_word(found[name])}, wanted {name}={_word(value)}"
        for name, value in wanted.items()
        if found[name] is not None and found[name] != value
    )


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def told_by_refusals(
    seen: ByAmqp, wanted: desired.Topology, drift: Drift, exchanges: set[str], queues: set[str]
) -> Iterator[Finding]:
    """Yield how what is there differs: AMQP says so to whoever declares it again, which changes nothing."""
    for exchange in wanted.exchanges:
        if exchange.name in exchanges:
            how = {"exchange": exchange.name, "exchange_type": exchange.type, "durable": True}
            if said := _refusal(seen, "exchange_declare", exchange.name, how, drift):
                yield _other_exchange(exchange.name, said)
    for queue in wanted.queues:
        if queue.name in queues:
            how = {"queue": queue.name, "durable": True, "arguments": queue.arguments}
            if said := _refusal(seen, "queue_declare", queue.name, how, drift):
                yield _other_queue(queue.name, said, consumer_of(queue.name))


def _refusal(seen: ByAmqp, method: str, name: str, how: Mapping[str, Any], drift: Drift) -> str:
    try:
        seen.connection.call(method, **how)
    except OperationRefused as error:
        if found := difference(error):
            return f"{_valued(found.property, found.found)}, wanted {_valued(found.property, found.asked)}"
        if isinstance(error, AccessRefused):
            drift.unseen.append(f"{name}: how it was declared; this user may not declare it")
            return ""
        return str(error)
    return ""

"""Bindings that are missing, and those that no consumer declares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from messaging import routing
from messaging.topology import desired
from messaging.topology import existing as standing
from messaging.topology.drift.findings import Finding, Kind, consumer_of


def missing(
    wanted: desired.Topology,
    live: Iterable[standing.Binding],
    exchanges: Mapping[str, standing.Exchange],
    queues: Mapping[str, standing.Queue],
) -> Iterator[Finding]:
    """Yield a finding for each wanted binding that is not there though both its ends are."""
    there = {_identity(each) for each in live}
    for binding in wanted.bindings:
        ends_stand = binding.exchange in exchanges and binding.queue in queues
        if ends_stand and _wanted_identity(binding) not in there:
            what = desired.describe(binding)
            yield Finding(
                kind=Kind.MISSING_BINDING,
                name=binding.queue,
                said=f"queue {binding.queue} is not bound to {binding.exchange} by {what}",
                hint="Run `manage.py mq topology declare`; a running relay does it by itself, where it may. Then "
                "`manage.py messages reconcile --repair` sends again what was missed.",
                consumer=consumer_of(binding.queue),
            )


def surplus(wanted: desired.Topology, live: Iterable[standing.Binding]) -> Iterator[Finding]:
    """Yield a finding for each binding of a queue of ours that no consumer declares. One to an exchange of another
    application is a note: that application may have made it."""
    queues = {queue.name for queue in wanted.queues}
    exchanges = {exchange.name for exchange in wanted.exchanges}
    declared = {_wanted_identity(each) for each in wanted.bindings}
    for binding in live:
        if binding.kind == "queue" and binding.destination in queues and _identity(binding) not in declared:
            yield _surplus(binding, is_ours=binding.source in exchanges)


def _surplus(binding: standing.Binding, *, is_ours: bool) -> Finding:
    what = binding.key or desired.describe(
        routing.Binding(binding.source, binding.destination, arguments=binding.arguments)
    )
    said = f"queue {binding.destination} is also bound to {binding.source} by {what}"
    consumer = consumer_of(binding.destination)
    if is_ours:
        return Finding(
            kind=Kind.EXTRA_BINDING,
            name=binding.destination,
            said=f"{said}, which no consumer declares",
            hint="What comes by it is dead there. `manage.py mq topology plan` prints how to take it away.",
            consumer=consumer,
            binding=binding,
        )
    return Finding(
        kind=Kind.FOREIGN_BINDING,
        name=binding.destination,
        said=f"{said}, an exchange of another application",
        hint=f"Messages that consumer {consumer or 'dead_letters'} does not handle are dead there. Ask whoever owns "
        f"{binding.source} before you take it away.",
        consumer=consumer,
        is_wrong=False,
    )


def _identity(binding: standing.Binding) -> tuple[str, str, str, str]:
    return binding.source, binding.destination, binding.key, repr(sorted(binding.arguments.items()))


def _wanted_identity(binding: routing.Binding) -> tuple[str, str, str, str]:
    return binding.exchange, binding.queue, binding.key, repr(sorted(binding.arguments.items()))

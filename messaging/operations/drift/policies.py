"""Policies by which messages can leave before a consumer has had them.

An administrator sets them on the broker, beside all code, for whatever a pattern fits. What they say holds beside a
queue's own arguments; of two limits the lower (https://www.rabbitmq.com/docs/parameters#policies).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from messaging import topology
from messaging.operations import standing
from messaging.operations.drift.findings import Finding, Kind, consumer_of

#: What a policy can say of a queue, and what that does to a message.
OF_QUEUES = {
    "max-length": "what is too much leaves it, or is refused",
    "max-length-bytes": "what is too much leaves it, or is refused",
    "message-ttl": "what waits longer leaves it",
    "expires": "it is deleted while nobody consumes",
    "delivery-limit": "what was delivered so often leaves it",
}
#: The same of an exchange.
OF_EXCHANGES = {
    "alternate-exchange": "an event that reaches no queue of ours counts as arrived",
}


def harmful(
    wanted: topology.Topology, exchanges: Mapping[str, standing.Exchange], queues: Mapping[str, standing.Queue]
) -> Iterator[Finding]:
    """Yield a finding for each exchange and queue of ours with such a policy."""
    for exchange in wanted.exchanges:
        if there := exchanges.get(exchange.name):
            yield from _found("exchange", there, {}, OF_EXCHANGES)
    for queue in wanted.queues:
        if live := queues.get(queue.name):
            yield from _found("queue", live, queue.arguments, OF_QUEUES)


def _found(
    kind: str,
    there: standing.Exchange | standing.Queue,
    arguments: Mapping[str, Any],
    effects: Mapping[str, str],
) -> Iterator[Finding]:
    said = [
        f"{name}={value}: {effects[name]}"
        for name, value in sorted((there.policy_definition or {}).items())
        if name in effects and not _changes_nothing(value, arguments.get(f"x-{name}"))
    ]
    if said:
        yield Finding(
            kind=Kind.HARMFUL_POLICY,
            name=there.name,
            said=f"policy {there.policy} says of {kind} {there.name} {'; '.join(said)}",
            hint="Take that out of the policy, or let its pattern leave our names out; `rabbitmqctl list_policies` and "
            "`list_operator_policies` show both.",
            consumer=consumer_of(there.name) if kind == "queue" else "",
        )


def _changes_nothing(value: Any, argument: Any) -> bool:
    """Whether the queue's own argument is the lower limit, and holds."""
    return isinstance(value, int) and isinstance(argument, int) and 0 <= argument <= value

"""Policies by which messages can leave before a consumer has had them.

An administrator sets them on the broker, beside all code, for whatever a pattern fits. What they say holds beside a
queue's own arguments; of two limits the lower (https://www.rabbitmq.com/docs/parameters#policies).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from messaging.topology import desired
from messaging.topology import existing as standing
from messaging.topology.drift.findings import Finding, Kind, consumer_of

#: What a policy can say of a queue, and what that does to a message.
OF_QUEUES = {
    "max-length": "what is too much leaves it",
    "max-length-bytes": "what is too much leaves it",
    "message-ttl": "what waits longer leaves it",
    "expires": "it is deleted while nobody consumes",
    "delivery-limit": "what was delivered so often leaves it",
}
#: The same of an exchange.
OF_EXCHANGES = {
    "alternate-exchange": "an event that reaches no queue of ours counts as arrived",
}


def harmful(
    wanted: desired.Topology,
    exchanges: Mapping[str, standing.Exchange],
    queues: Mapping[str, standing.Queue],
    policies: Mapping[str, Mapping[str, Any]],
) -> Iterator[Finding]:
    """Yield a finding for each exchange of ours, each consumer's queue and that of dead letters with such a policy.

    `policies` are the definitions by name. What a policy does to requests is told to their callers, who time out.
    """
    for exchange in wanted.exchanges:
        there = exchanges.get(exchange.name)
        if there and there.policy:
            said = _harm(policies.get(there.policy, {}), OF_EXCHANGES, {})
            yield from _found(f"policy {there.policy} says of exchange", exchange.name, said, "")
    for queue in wanted.queues:
        live = queues.get(queue.name)
        if live and (names := [name for name in (live.policy, live.operator_policy) if name]):
            arguments = live.arguments if live.arguments is not None else queue.arguments
            said = _harm(live.policy_definition or {}, OF_QUEUES, arguments)
            who = f"policy {' and '.join(names)} says of queue"
            yield from _found(who, queue.name, said, consumer_of(queue.name))


def _found(who: str, name: str, said: Sequence[str], consumer: str) -> Iterator[Finding]:
    if said:
        yield Finding(
            kind=Kind.HARMFUL_POLICY,
            name=name,
            said=f"{who} {name} {'; '.join(said)}",
            hint="Take that out of the policy, or let its pattern leave our names out; `rabbitmqctl list_policies` and "
            "`list_operator_policies` show both.",
            consumer=consumer,
        )


def _harm(definition: Mapping[str, Any], effects: Mapping[str, str], arguments: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}={value}: {effects[name]}"
        for name, value in sorted(definition.items())
        if name in effects and not _is_harmless(name, value, arguments)
    ]


def _is_harmless(name: str, value: Any, arguments: Mapping[str, Any]) -> bool:
    """Whether nothing leaves a queue with these arguments by it."""
    if name == "delivery-limit" and arguments.get("x-queue-type") != "quorum":
        return True
    if name.startswith("max-length") and arguments.get("x-overflow") == "reject-publish":
        return True  # what is too much is refused, and waits in the outbox
    argument = arguments.get(f"x-{name}")
    return isinstance(value, int) and isinstance(argument, int) and 0 <= argument <= value

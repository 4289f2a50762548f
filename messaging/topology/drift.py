"""Drift: where the broker differs from what this project declares, by the management API."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from django.apps import apps

from messaging import conf, consumers, events, procedures, routing
from messaging.events import Event
from messaging.topology import desired, findings
from messaging.topology.desired import Topology
from messaging.topology.existing import Binding, Exchange, Existing, Queue, counted_now, opened_existing
from messaging.topology.findings import DECLARE, Finding, Kind, consumer_of, reconcile

#: What a policy can do to the messages of a queue, and of an exchange. A policy holds beside a queue's own arguments;
#: of two limits the lower counts (https://www.rabbitmq.com/docs/parameters#policies).
OF_QUEUES = {
    "max-length": "messages over it leave the queue",
    "max-length-bytes": "messages over it leave the queue",
    "message-ttl": "messages that wait longer leave the queue",
    "expires": "the queue is deleted while it has no consumer",
    "delivery-limit": "messages delivered so often leave the queue",
}
OF_EXCHANGES = {findings.ALTERNATE: "an event that reaches no queue of ours counts as arrived"}


def look() -> list[Finding]:
    """Return where the broker differs from what the registered events, consumers and procedures declare, the worst
    first.

    Raises ManagementUnavailable, BrokerUnavailable.
    """
    with opened_existing() as existing:
        found = [*_compare(existing), *unwanted_events()]
    return sorted(found, key=lambda finding: (not finding.is_wrong, finding.kind, finding.name))


def _compare(existing: Existing) -> Iterator[Finding]:
    topology = desired.topology(consumers.registered())
    queues = existing.queues()
    exchanges = {exchange.name: exchange for exchange in existing.exchanges()}
    # Bindings last: what is declared meanwhile must not count as unbound.
    bindings = existing.bindings()
    # The API's counts are up to five seconds old, and some findings depend on them.
    counted = _declared(topology) | {queue.name for queue in _left_behind(topology, queues)}
    now = counted_now(existing.connection, [queue for queue in queues if queue.name in counted])
    by_name = {queue.name: queue for queue in [*queues, *now]}
    yield from findings.of_exchanges(topology, exchanges)
    yield from findings.of_queues(topology, by_name)
    yield from _missing_bindings(topology, bindings, exchanges, by_name)
    yield from _extra_bindings(topology, bindings)
    yield from _unrouted_events(exchanges, bindings)
    yield from _harmful_policies(topology, exchanges, by_name, existing.policies())
    yield from _abandoned_queues(topology, by_name.values(), bindings)


# --- Events --------------------------------------------------------------------------------------------------


def unwanted_events() -> list[Finding]:
    """Return the events of the installed apps that no consumer handles. The broker is not asked."""
    every_consumer = [*consumers.registered(), *consumers.broadcasting()]
    return [
        Finding(
            Kind.UNWANTED_EVENT,
            event.event_type,
            f"no consumer handles {event.__qualname__} ({event.event_type}): each would wait as unroutable",
            f"Declare a @consumer(…, {event.__name__}), or do not add such events to the outbox.",
        )
        for event in events.registered()
        if apps.get_containing_app_config(event.__module__)
        and not any(each.wants(event.event_type) for each in every_consumer)
    ]


def _unrouted_events(exchanges: Mapping[str, Exchange], bindings: Iterable[Binding]) -> Iterator[Finding]:
    """Yield a finding for each event whose exchange routes it to no queue. Events for broadcasts alone need none."""
    lasting = consumers.registered()
    for event in events.registered():
        exchange = consumers.exchange_of(event)
        found = exchanges.get(exchange.name)
        if found is None or not any(each.wants(event.event_type) for each in lasting):
            continue
        of_exchange = [each for each in bindings if each.source == exchange.name]
        if not any(_may_take(found.type or exchange.type, each, event) for each in of_exchange):
            key = event.event_key or event.event_type
            text = f"{event.__qualname__} reaches no queue: no binding of {exchange.name} takes the key {key}"
            hint = f"{DECLARE} Until then each waits as unroutable."
            yield Finding(Kind.UNROUTED_EVENT, event.event_type, text, hint)


def _may_take(exchange_type: str, binding: Binding, event: type[Event]) -> bool:
    if binding.kind != "queue" or exchange_type == "headers" or routing.fields_in(event.event_key):
        return True  # it depends on the message, or on another exchange
    return routing.takes(exchange_type, binding.declared, event.event_key or event.event_type, {})


# --- Bindings ------------------------------------------------------------------------------------------------


def _missing_bindings(
    topology: Topology, bindings: Iterable[Binding], exchanges: Mapping[str, Exchange], queues: Mapping[str, Queue]
) -> Iterator[Finding]:
    """Yield a finding for each declared binding that is missing while its exchange and its queue exist."""
    existing = {_identity(each.declared) for each in bindings}
    for binding in topology.bindings:
        both_exist = binding.exchange in exchanges and binding.queue in queues
        if both_exist and _identity(binding) not in existing:
            text = f"queue {binding.queue} is not bound to {binding.exchange} by {desired.describe(binding)}"
            hint = f"{DECLARE} {reconcile(consumer_of(binding.queue))}"
            yield Finding(Kind.MISSING_BINDING, binding.queue, text, hint)


def _extra_bindings(topology: Topology, bindings: Iterable[Binding]) -> Iterator[Finding]:
    """Yield a finding for each binding of our queues that no consumer declares, and a note where it leads from an
    exchange of another application, which may have made it."""
    queues = {queue.name for queue in topology.queues}
    exchanges = {exchange.name for exchange in topology.exchanges}
    declared = {_identity(each) for each in topology.bindings}
    for binding in bindings:
        if binding.kind != "queue" or binding.destination not in queues or _identity(binding.declared) in declared:
            continue
        queue, is_ours = binding.destination, binding.source in exchanges
        text = f"queue {queue} is also bound to {binding.source} by {desired.describe(binding.declared)}"
        dead = f"Messages that consumer {consumer_of(queue) or 'dead_letters'} does not handle are dead there."
        if is_ours:
            hint = f"{dead} If nothing else needs it, unbind it on the queue's page of RabbitMQ's management UI."
            yield Finding(Kind.EXTRA_BINDING, queue, f"{text}, which no consumer declares", hint)
        else:
            text += ", an exchange of another application"
            hint = f"{dead} Ask the owner of {binding.source} before you remove it."
            yield Finding(Kind.FOREIGN_BINDING, queue, text, hint, is_wrong=False)


def _identity(binding: routing.Binding) -> tuple[str, str, str, str]:
    return binding.exchange, binding.queue, binding.key, repr(sorted(binding.arguments.items()))


# --- Policies ------------------------------------------------------------------------------------------------


def _harmful_policies(
    topology: Topology,
    exchanges: Mapping[str, Exchange],
    queues: Mapping[str, Queue],
    policies: Mapping[str, Mapping[str, Any]],
) -> Iterator[Finding]:
    """Yield a finding for each policy by which messages can leave a declared queue unhandled, or by which unroutable
    events count as arrived. Callers of procedures notice one on request queues by themselves: they time out."""
    for name in (each.name for each in topology.exchanges if each.name in exchanges):
        policy = exchanges[name].policy or ""
        harm = [_effect(OF_EXCHANGES, *each) for each in policies.get(policy, {}).items() if each[0] in OF_EXCHANGES]
        yield from _harmful(policy, f"exchange {name}", name, harm)
    for queue in (queues[each.name] for each in topology.queues if each.name in queues):
        policy = " and ".join(filter(None, (queue.policy, queue.operator_policy)))
        yield from _harmful(policy, f"queue {queue.name}", queue.name, _harm(queue))


def _harmful(policy: str, what: str, name: str, harm: Sequence[str]) -> Iterator[Finding]:
    if policy and harm:
        hint = (
            "Remove that from the policy, or exclude our names from its pattern; `rabbitmqctl list_policies` and "
            "`list_operator_policies` show both."
        )
        yield Finding(Kind.HARMFUL_POLICY, name, f"policy {policy} applies to {what}: {'; '.join(harm)}", hint)


def _harm(queue: Queue) -> list[str]:
    definition = sorted(queue.policy_definition.items())
    return [_effect(OF_QUEUES, *each) for each in definition if not _is_harmless(*each, queue.arguments)]


def _effect(effects: Mapping[str, str], name: str, value: Any) -> str:
    return f"{name}={value}: {effects[name]}"


def _is_harmless(name: str, value: Any, arguments: Mapping[str, Any]) -> bool:
    """Whether no message leaves a queue with these arguments because of it."""
    if name not in OF_QUEUES or (name == "delivery-limit" and arguments.get("x-queue-type") != "quorum"):
        return True
    if name.startswith("max-length") and arguments.get("x-overflow") == "reject-publish":
        return True  # RabbitMQ refuses what is over it, and that waits in the outbox
    argument = arguments.get(f"x-{name}")
    return isinstance(value, int) and isinstance(argument, int) and 0 <= argument <= value


# --- Queues that nothing declares ----------------------------------------------------------------------------


def _left_behind(topology: Topology, queues: Iterable[Queue]) -> list[Queue]:
    """Return the queues that this project declared once and declares no more.

    A name proves nothing: any application may name a queue `orders.analytics`. Its arguments do. Another project may
    have our APP_ID, by default: a queue without one of our apps' labels in front is left to it.
    """
    prefixes = (f"{conf.get().app_id}.", *(f"{app.label}." for app in apps.get_app_configs()))
    named = [queue for queue in queues if queue.name.startswith(prefixes) and queue.name not in _declared(topology)]
    lasting = [queue for queue in named if queue.durable and not (queue.exclusive or queue.auto_delete)]
    return [queue for queue in lasting if findings.was_declared_here(queue)]


def _abandoned_queues(topology: Topology, queues: Iterable[Queue], bindings: Iterable[Binding]) -> Iterator[Finding]:
    exchanges = {exchange.name for exchange in topology.exchanges}
    bound = {each.destination for each in bindings if each.kind == "queue" and each.source in exchanges}
    for queue in _left_behind(topology, queues):
        still_bound = ", and it is still bound to our exchange" if queue.name in bound else ""
        waits = f"; {queue.ready} in it" if queue.ready else ""
        yield Finding(
            Kind.ABANDONED_QUEUE,
            queue.name,
            f"no consumer declares queue {queue.name} any more{still_bound}{waits}",
            f"Messages may pile up in it. Look with `manage.py mq peek {queue.name}`; if neither people nor older "
            f"code need it: {findings.delete_queue(queue.name)}.",
            # An older version of this project may still consume it.
            is_wrong=not queue.consumers,
        )


def _declared(topology: Topology) -> set[str]:
    return {queue.name for queue in topology.queues} | {each.queue for each in procedures.registered()}

"""Drift: where the broker stands otherwise than the code of this project wants it.

Each kind has an id of its own, under which `manage.py check` knows it too, and can be told to be silent about it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from django.apps import apps
from django.conf import settings

from messaging import conf, consumers, events, routing, topology
from messaging.broker.differences import difference
from messaging.broker.reply_codes import ACCESS_REFUSED
from messaging.broker.request_queue import ARGUMENTS as REQUEST_QUEUE_ARGUMENTS
from messaging.consumers import exchange_of
from messaging.events import Event
from messaging.exceptions import ChannelClosed
from messaging.operations import standing
from messaging.operations.standing import ByAmqp, CannotBeSeen, Standing
from messaging.rpc import procedures

#: Arguments that RabbitMQ compares when a queue is declared anew; what else a queue has makes no difference.
COMPARED = {
    "x-dead-letter-exchange", "x-dead-letter-routing-key", "x-dead-letter-strategy", "x-delivery-limit", "x-expires",
    "x-max-length", "x-max-length-bytes", "x-max-priority", "x-message-ttl", "x-overflow", "x-queue-mode",
    "x-queue-version", "x-single-active-consumer", "x-quorum-initial-group-size",
}  # fmt: skip


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

    @property
    def words(self) -> str:
        """In two words."""
        return self.name.lower().replace("_", " ")


#: What `manage.py check` says where nobody could look at the broker.
NOT_LOOKED_AT = "messaging.W016"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is not as wanted."""

    kind: Kind
    #: Of the exchange, the queue or the type of event that it is about.
    name: str
    said: str
    hint: str
    #: The consumer whose messages it may have cost; empty: none, or several.
    consumer: str = ""
    #: False: it need not be wrong.
    is_wrong: bool = True
    #: For an extra binding.
    binding: standing.Binding | None = None


@dataclass(slots=True)
class Drift:
    """What was found, and what nobody could see."""

    how: str
    findings: list[Finding] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> list[Finding]:
        """Return the findings that somebody should do something about."""
        return [finding for finding in self.findings if finding.is_wrong]


def unwanted_events() -> list[Finding]:
    """Return the events of the installed apps that no consumer wants. No broker is asked."""
    everybody = [*consumers.registered(), *consumers.broadcasting()]
    return [
        Finding(
            kind=Kind.UNWANTED_EVENT,
            name=event.event_type,
            said=f"no consumer wants {event.__qualname__} ({event.event_type}): each would wait as unroutable",
            hint=f"Declare a @consumer(…, {event.__name__}), or do not add such events to the outbox.",
        )
        for event in events.registered()
        if apps.get_containing_app_config(event.__module__)
        and not any(each.wants(event.event_type) for each in everybody)
    ]


def look() -> Drift:
    """Compare what stands with what the registered events, consumers and procedures want.

    Raises BrokerUnavailable.
    """
    with standing.looking() as seen:
        return compare(seen)


def compare(seen: Standing) -> Drift:
    """Return how what was seen differs from what is wanted."""
    wanted = topology.wanted(consumers.registered())
    drift = Drift(seen.how)
    live_queues = {queue.name: queue for queue in seen.queues()}
    live_exchanges = {exchange.name: exchange for exchange in seen.exchanges()}
    drift.findings += _exchanges(wanted, live_exchanges)
    drift.findings += _queues(wanted, live_queues)
    if isinstance(seen, ByAmqp):
        drift.findings += _told_by_refusals(seen, wanted, drift, set(live_exchanges), set(live_queues))
        drift.findings = [each for each in drift.findings if each.name not in seen.unseen]
        drift.unseen += [f"{name}: this user may not look at it" for name in sorted(seen.unseen)]
    try:
        bindings = seen.bindings()
    except CannotBeSeen:
        drift.unseen += [
            "bindings: missing ones, extra ones, keys that match none",
            "queues of ours that nobody declares",
        ]
    else:
        drift.findings += _missing_bindings(wanted, bindings, live_exchanges, live_queues)
        drift.findings += _extra_bindings(wanted, bindings)
        drift.findings += _unrouted_events(live_exchanges, bindings)
        drift.findings += _abandoned_queues(wanted, live_queues.values(), bindings)
    drift.findings += unwanted_events()
    drift.findings.sort(key=lambda finding: (not finding.is_wrong, finding.kind, finding.name))
    return drift


# --- Exchanges and queues ----------------------------------------------------------------------------------


def _exchanges(wanted: topology.Topology, live: Mapping[str, standing.Exchange]) -> Iterator[Finding]:
    for exchange in wanted.exchanges:
        there = live.get(exchange.name)
        if there is None:
            yield Finding(
                kind=Kind.MISSING_EXCHANGE,
                name=exchange.name,
                said=f"there is no exchange {exchange.name} ({exchange.type})",
                hint="Run `manage.py mq topology declare`; a running relay does it by itself, where it may.",
            )
        elif said := _other_properties({"type": exchange.type, "durable": True, "internal": False}, there):
            yield _other_exchange(exchange.name, said)


def _other_exchange(name: str, said: str) -> Finding:
    return Finding(
        kind=Kind.OTHER_EXCHANGE,
        name=name,
        said=f"exchange {name} stands otherwise: {said}",
        hint="`manage.py mq topology plan` prints the steps to make it as wanted.",
    )


def _queues(wanted: topology.Topology, live: Mapping[str, standing.Queue]) -> Iterator[Finding]:
    names = _consumers_by_queue()
    for queue in wanted.queues:
        there, consumer = live.get(queue.name), names.get(queue.name, "")
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
        if said := _other_queue_properties(queue.arguments, there):
            yield _other_queue(queue.name, said, consumer)
        yield from _unconsumed(there, consumer)
    for procedure in procedures.registered():
        there = live.get(procedure.queue)
        # That it is not there only means that nobody serves it now.
        if there is None or procedure.plain_queue:
            continue
        if said := _other_queue_properties(REQUEST_QUEUE_ARGUMENTS, there, auto_delete=True):
            yield _other_queue(procedure.queue, said, "")


def _other_queue(name: str, said: str, consumer: str) -> Finding:
    return Finding(
        kind=Kind.OTHER_QUEUE,
        name=name,
        said=f"queue {name} stands otherwise: {said}",
        hint="It is used as it is. `manage.py mq topology plan` prints the steps to make it as wanted.",
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


def _told_by_refusals(
    seen: ByAmqp, wanted: topology.Topology, drift: Drift, exchanges: set[str], queues: set[str]
) -> Iterator[Finding]:
    """Yield how what is there differs: AMQP says so to whoever declares it again, which changes nothing."""
    names = _consumers_by_queue()
    for exchange in wanted.exchanges:
        if exchange.name in exchanges:
            how = {"exchange": exchange.name, "exchange_type": exchange.type, "durable": True}
            if said := _refusal(seen, "exchange_declare", exchange.name, how, drift):
                yield _other_exchange(exchange.name, said)
    for queue in wanted.queues:
        if queue.name in queues:
            how = {"queue": queue.name, "durable": True, "arguments": queue.arguments}
            if said := _refusal(seen, "queue_declare", queue.name, how, drift):
                yield _other_queue(queue.name, said, names.get(queue.name, ""))


def _refusal(seen: ByAmqp, method: str, name: str, how: Mapping[str, Any], drift: Drift) -> str:
    try:
        seen.connection.call(method, **how)
    except ChannelClosed as error:
        if found := difference(error):
            return f"{_valued(found.property, found.found)}, wanted {_valued(found.property, found.wanted)}"
        if error.code == ACCESS_REFUSED:
            drift.unseen.append(f"{name}: how it was declared; this user may not declare it")
            return ""
        return str(error)
    return ""


# --- Bindings ----------------------------------------------------------------------------------------------


def _missing_bindings(
    wanted: topology.Topology,
    live: Iterable[standing.Binding],
    exchanges: Mapping[str, standing.Exchange],
    queues: Mapping[str, standing.Queue],
) -> Iterator[Finding]:
    there = {_identity(each) for each in live}
    names = _consumers_by_queue()
    for binding in wanted.bindings:
        ends_stand = binding.exchange in exchanges and binding.queue in queues
        if ends_stand and _wanted_identity(binding) not in there:
            what = topology.describe(binding)
            yield Finding(
                kind=Kind.MISSING_BINDING,
                name=binding.queue,
                said=f"queue {binding.queue} is not bound to {binding.exchange} by {what}",
                hint="Run `manage.py mq topology declare`; a running relay does it by itself, where it may. Then "
                "`manage.py messages reconcile --repair` sends again what was missed.",
                consumer=names.get(binding.queue, ""),
            )


def _extra_bindings(wanted: topology.Topology, live: Iterable[standing.Binding]) -> Iterator[Finding]:
    ours = {queue.name for queue in wanted.queues}
    declared = {_wanted_identity(each) for each in wanted.bindings}
    for binding in live:
        if binding.kind == "queue" and binding.destination in ours and _identity(binding) not in declared:
            what = binding.key or topology.describe(
                routing.Binding(binding.source, binding.destination, arguments=binding.arguments)
            )
            yield Finding(
                kind=Kind.EXTRA_BINDING,
                name=binding.destination,
                said=f"queue {binding.destination} is also bound to {binding.source} by {what}, which nobody wants",
                hint="What comes by it is dead there. `manage.py mq topology plan` prints how to take it away.",
                consumer=_consumers_by_queue().get(binding.destination, ""),
                binding=binding,
            )


def _unrouted_events(exchanges: Mapping[str, standing.Exchange], live: Iterable[standing.Binding]) -> Iterator[Finding]:
    live = list(live)
    lasting = consumers.registered()
    for event in events.registered():
        exchange = exchange_of(event)
        there = exchanges.get(exchange.name)
        # What nobody wants, or only broadcasts do, has no queue by right.
        if there is None or not any(each.wants(event.event_type) for each in lasting):
            continue
        if not any(
            _may_take(there.type or exchange.type, each, event) for each in live if each.source == exchange.name
        ):
            key = event.event_key or event.event_type
            yield Finding(
                kind=Kind.UNROUTED_EVENT,
                name=event.event_type,
                said=f"{event.__qualname__} reaches no queue: no binding of {exchange.name} takes the key {key}",
                hint="Run `manage.py mq topology declare`. Until then each waits as unroutable.",
            )


def _may_take(exchange_type: str, binding: standing.Binding, event: type[Event]) -> bool:
    if binding.kind != "queue" or exchange_type == "headers" or events.fields_in(event.event_key):
        return True  # it depends on the message, or on another exchange
    asked = routing.Binding(binding.source, binding.destination, binding.key, binding.arguments)
    return routing.takes(exchange_type, asked, event.event_key or event.event_type, {})


def _identity(binding: standing.Binding) -> tuple[str, str, str, str]:
    return binding.source, binding.destination, binding.key, repr(sorted(binding.arguments.items()))


def _wanted_identity(binding: routing.Binding) -> tuple[str, str, str, str]:
    return binding.exchange, binding.queue, binding.key, repr(sorted(binding.arguments.items()))


# --- Queues that were ours ---------------------------------------------------------------------------------


def _abandoned_queues(
    wanted: topology.Topology, live: Iterable[standing.Queue], bindings: Iterable[standing.Binding]
) -> Iterator[Finding]:
    declared = {queue.name for queue in wanted.queues} | {each.queue for each in procedures.registered()}
    # Celery's own, where it shares the virtual host.
    declared.add(str(getattr(settings, "CELERY_TASK_DEFAULT_QUEUE", "")))
    exchanges = {exchange.name for exchange in wanted.exchanges}
    bound = {each.destination for each in bindings if each.kind == "queue" and each.source in exchanges}
    prefixes = _prefixes()
    for queue in live:
        passing = queue.exclusive or queue.auto_delete
        if passing or queue.name in declared or not (queue.name in bound or queue.name.startswith(prefixes)):
            continue
        waits = f"; {queue.ready} in it" if queue.ready else ""
        bound_still = ", and is bound to our exchange still" if queue.name in bound else ""
        yield Finding(
            kind=Kind.ABANDONED_QUEUE,
            name=queue.name,
            said=f"no consumer declares queue {queue.name} any more{bound_still}{waits}",
            hint="Messages may pile up in it. `manage.py mq topology plan` prints how to look at it and take it away.",
            # Somebody reads it: older code that still runs, or somebody else's.
            is_wrong=not queue.consumers,
        )


def _prefixes() -> tuple[str, ...]:
    """Return what the names of our queues begin with: APP_ID, and the labels of apps that declare something here."""
    handlers = [each.handler.__module__ for each in [*consumers.registered(), *consumers.broadcasting()]]
    modules = [*handlers, *(event.__module__ for event in events.registered())]
    found = (apps.get_containing_app_config(module) for module in modules)
    return tuple(sorted({f"{conf.get().app_id}.", *(f"{app.label}." for app in found if app)}))


def _consumers_by_queue() -> dict[str, str]:
    return {each.queue: each.name for each in consumers.registered()}

"""Events that nobody wants, and those that reach no queue."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from django.apps import apps

from messaging import consumers, events, routing
from messaging.consumers import exchange_of
from messaging.events import Event
from messaging.topology import existing as standing
from messaging.topology.drift.findings import Finding, Kind


def unwanted() -> list[Finding]:
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


def unrouted(exchanges: Mapping[str, standing.Exchange], live: Iterable[standing.Binding]) -> Iterator[Finding]:
    """Yield a finding for each wanted event whose exchange passes it on to no queue."""
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
    if binding.kind != "queue" or exchange_type == "headers" or routing.fields_in(event.event_key):
        return True  # it depends on the message, or on another exchange
    asked = routing.Binding(binding.source, binding.destination, binding.key, binding.arguments)
    return routing.takes(exchange_type, asked, event.event_key or event.event_type, {})

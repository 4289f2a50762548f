"""Queues that were ours, and that no code declares any more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from django.apps import apps
from django.conf import settings

from messaging import conf, consumers, events, topology
from messaging.operations import standing
from messaging.operations.drift.findings import Finding, Kind
from messaging.rpc import procedures


def queues(
    wanted: topology.Topology, live: Iterable[standing.Queue], bindings: Iterable[standing.Binding]
) -> Iterator[Finding]:
    """Yield a finding for each lasting queue that was ours, by its name or its bindings."""
    bindings = list(bindings)
    bound = _bound(wanted, bindings)
    for queue in among(wanted, live, bindings):
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


def among(
    wanted: topology.Topology, live: Iterable[standing.Queue], bindings: Iterable[standing.Binding]
) -> list[standing.Queue]:
    """Return those of the `live` queues that last, were ours, and nobody declares."""
    declared = {queue.name for queue in wanted.queues} | {each.queue for each in procedures.registered()}
    # Celery's own, where it shares the virtual host.
    declared.add(str(getattr(settings, "CELERY_TASK_DEFAULT_QUEUE", "")))
    bound, prefixes = _bound(wanted, bindings), _prefixes()
    return [
        queue
        for queue in live
        if not (queue.exclusive or queue.auto_delete or queue.name in declared)
        and (queue.name in bound or queue.name.startswith(prefixes))
    ]


def _bound(wanted: topology.Topology, bindings: Iterable[standing.Binding]) -> set[str]:
    exchanges = {exchange.name for exchange in wanted.exchanges}
    return {each.destination for each in bindings if each.kind == "queue" and each.source in exchanges}


def _prefixes() -> tuple[str, ...]:
    """Return what the names of our queues begin with: APP_ID, and the labels of apps that declare something here."""
    handlers = [each.handler.__module__ for each in [*consumers.registered(), *consumers.broadcasting()]]
    modules = [*handlers, *(event.__module__ for event in events.registered())]
    found = (apps.get_containing_app_config(module) for module in modules)
    return tuple(sorted({f"{conf.get().app_id}.", *(f"{app.label}." for app in found if app)}))

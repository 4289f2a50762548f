"""Queues that a consumer of this project left behind, and queues of other applications that get our events.

A name proves nothing: any application may name a queue `orders.analytics`. What a queue was declared with does: only
our declarations make a queue dead-letter into our own queue of dead letters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from django.apps import apps

from messaging import conf, procedures
from messaging.topology import desired
from messaging.topology import existing as standing
from messaging.topology.drift.findings import Finding, Kind

#: What every consumer's queue is declared with: where the broker puts what it gives up.
_OUR_DEAD_LETTERS = ("x-dead-letter-exchange", "x-dead-letter-routing-key")
#: Types that a consumer's queue can have.
_OUR_TYPES = {"quorum", "classic"}


def queues(
    wanted: desired.Topology, live: Iterable[standing.Queue], bindings: Iterable[standing.Binding]
) -> Iterator[Finding]:
    """Yield a finding for each queue that a consumer left behind, and a note for each that another application bound
    to an exchange of ours."""
    live, bound = list(live), _bound(wanted, bindings)
    left_behind = among(wanted, live)
    for queue in left_behind:
        waits = f"; {queue.ready} in it" if queue.ready else ""
        bound_still = ", and is bound to our exchange still" if queue.name in bound else ""
        yield Finding(
            kind=Kind.ABANDONED_QUEUE,
            name=queue.name,
            said=f"no consumer declares queue {queue.name} any more{bound_still}{waits}",
            hint="Messages may pile up in it. `manage.py mq topology plan` prints how to look at it and take it away.",
            # An older version of this project may still consume it.
            is_wrong=not queue.consumers,
        )
    known = {queue.name for queue in left_behind} | _declared(wanted)
    for queue in live:
        if queue.name in bound and queue.name not in known and _lasts(queue):
            yield Finding(
                kind=Kind.FOREIGN_QUEUE,
                name=queue.name,
                said=f"queue {queue.name} is bound to {', '.join(sorted(bound[queue.name]))} by another application",
                hint="It gets events of this project. Nothing needs to be done.",
                is_wrong=False,
            )


def among(wanted: desired.Topology, live: Iterable[standing.Queue]) -> list[standing.Queue]:
    """Return those of the `live` queues that this project declared once, and declares no more."""
    declared, prefixes = _declared(wanted), _prefixes()
    return [
        queue
        for queue in live
        if queue.name not in declared and queue.name.startswith(prefixes) and _lasts(queue) and was_declared_here(queue)
    ]


def was_declared_here(queue: standing.Queue) -> bool:
    """Whether a queue has the arguments that only this project declares queues with."""
    arguments = queue.arguments or {}
    ours = ("", desired.dead_letter_queue())
    dead_letters = tuple(arguments.get(name) for name in _OUR_DEAD_LETTERS)
    return dead_letters == ours and queue.type in _OUR_TYPES and arguments.get("x-queue-type") == queue.type


def _lasts(queue: standing.Queue) -> bool:
    return bool(queue.durable) and not (queue.exclusive or queue.auto_delete)


def _declared(wanted: desired.Topology) -> set[str]:
    return {queue.name for queue in wanted.queues} | {each.queue for each in procedures.registered()}


def _bound(wanted: desired.Topology, bindings: Iterable[standing.Binding]) -> dict[str, set[str]]:
    """Return which of our exchanges each queue is bound to."""
    exchanges = {exchange.name for exchange in wanted.exchanges}
    found: dict[str, set[str]] = {}
    for each in bindings:
        if each.kind == "queue" and each.source in exchanges:
            found.setdefault(each.destination, set()).add(each.source)
    return found


def _prefixes() -> tuple[str, ...]:
    """Return how the names of consumers' queues begin. Another project may have the same APP_ID, by default: what
    begins with none of our apps' labels is left to it."""
    return (f"{conf.get().app_id}.", *(f"{app.label}." for app in apps.get_app_configs()))

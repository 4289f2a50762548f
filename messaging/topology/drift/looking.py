"""Looking: what stands, held against what is wanted."""

from __future__ import annotations

from messaging import consumers
from messaging.topology import desired
from messaging.topology import existing as standing
from messaging.topology.drift import abandoned, bindings, declared, events, policies
from messaging.topology.drift.findings import Drift
from messaging.topology.existing import Binding, ByAmqp, CannotBeSeen, Queue, Standing


def look() -> Drift:
    """Compare what stands with what the registered events, consumers and procedures want.

    Raises BrokerUnavailable.
    """
    with standing.looking() as seen:
        return compare(seen)


def compare(seen: Standing) -> Drift:
    """Return how what was seen differs from what is wanted."""
    wanted = desired.topology(consumers.registered())
    drift = Drift(seen.how, seen.address)
    queues = seen.queues()
    live_exchanges = {exchange.name: exchange for exchange in seen.exchanges()}
    # Last: whatever was declared meanwhile is not taken for an end without its bindings.
    live_bindings = _bindings(seen)
    if live_bindings is not None:
        queues = _counted_now(seen, queues, wanted)
    live_queues = {queue.name: queue for queue in queues}
    drift.findings += declared.exchanges(wanted, live_exchanges)
    drift.findings += declared.queues(wanted, live_queues)
    if isinstance(seen, ByAmqp):
        answering = {queue.name for queue in queues if not queue.silent}
        drift.findings += declared.told_by_refusals(seen, wanted, drift, set(live_exchanges), answering)
        drift.findings = [each for each in drift.findings if each.name not in seen.unseen]
        drift.unseen += [f"{name}: this user may not look at it" for name in sorted(seen.unseen)]
    if live_bindings is None:
        drift.unseen += [
            "bindings: missing ones, extra ones, keys that match none",
            "queues that our consumers left behind",
            "policies",
        ]
    else:
        drift.findings += bindings.missing(wanted, live_bindings, live_exchanges, live_queues)
        drift.findings += bindings.surplus(wanted, live_bindings)
        drift.findings += events.unrouted(live_exchanges, live_bindings)
        drift.findings += policies.harmful(wanted, live_exchanges, live_queues, seen.policies())
        drift.findings += abandoned.queues(wanted, live_queues.values(), live_bindings)
    drift.findings += events.unwanted()
    drift.findings.sort(key=lambda finding: (not finding.is_wrong, finding.kind, finding.name))
    return drift


def _bindings(seen: Standing) -> list[Binding] | None:
    """Return what is bound; None where nobody can see it."""
    try:
        return seen.bindings()
    except CannotBeSeen:
        return None


def _counted_now(seen: Standing, queues: list[Queue], wanted: desired.Topology) -> list[Queue]:
    """Return the queues, with the counts of this moment where these say whether something is wrong: what has just been
    sent is found now, and not in five seconds."""
    asked = {queue.name for queue in wanted.queues}
    asked |= {queue.name for queue in abandoned.among(wanted, queues)}
    counted = {queue.name: queue for queue in seen.counted_now([each for each in queues if each.name in asked])}
    return [counted.get(queue.name, queue) for queue in queues]

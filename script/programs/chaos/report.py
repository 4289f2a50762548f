"""The certificate for people and for programs."""

import json
from collections.abc import Mapping
from typing import Any

from script.programs.chaos.run import Outcomes, Scenario

WIDTH = 18


def as_table(scenario: Scenario, came: Outcomes) -> str:
    """Return counts, then all findings, then the result."""
    drain = "did not come to rest" if came.drain_seconds is None else f"{came.drain_seconds:.1f} s to come to rest"
    lines = [
        f"Chaos on {came.database}, seed {scenario.seed}: {scenario.orders} orders over {scenario.seconds:g} s, "
        f"gateway: {scenario.gateway}",
        "",
        *(_line(section.replace("_", " "), _written(counts)) for section, counts in came.certificate.counts.items()),
        _line("faults", f"{sum(came.done.values())} of {came.planned} planned: {_listed(came.done)}"),
        _line("", f"not possible at their time: {_listed(came.missed)}"),
        _line(
            "reconcile", f"{len(came.reconciled.lost)} lost before, {len(came.reconciled.named)} named and sent again"
        ),
        _line("ended unasked", _listed(came.own_ends)),
        _line("our own errors", f"{came.own_faults} in the logs{', which is OFF' if came.own_faults else ''}"),
        _line("time", f"{came.ordering_seconds:.1f} s of orders and faults, {drain}"),
        "",
    ]
    for finding in came.certificate.findings:
        mark = f"OFF  {finding.examples}" if finding.found else "ok"
        lines.append(f"{finding.name:<22}{len(finding.found):>6}  {finding.meaning:<55}{mark}")
    lines += ["", "Clean." if came.is_clean else "Something is off."]
    return "\n".join(lines)


def as_json(scenario: Scenario, came: Outcomes) -> str:
    """Return everything, for programs."""
    content: dict[str, Any] = {
        "clean": came.is_clean,
        "database": came.database,
        "seed": scenario.seed,
        "wanted": {"orders": scenario.orders, "seconds": scenario.seconds, "every": scenario.every},
        "gateway": scenario.gateway,
        "counts": came.certificate.counts,
        "findings": {finding.name: list(finding.found) for finding in came.certificate.findings},
        "faults": {"planned": came.planned, "done": dict(came.done), "not_possible": dict(came.missed)},
        "reconcile": {"lost_before": len(came.reconciled.lost), "named": len(came.reconciled.named)},
        "ended_unasked": dict(came.own_ends),
        "own_faults": came.own_faults,
        "ordering_seconds": round(came.ordering_seconds, 1),
        "drain_seconds": None if came.drain_seconds is None else round(came.drain_seconds, 1),
    }
    return json.dumps(content, indent=2)


def _line(label: str, text: str) -> str:
    return f"{label:<{WIDTH}}{text}"


def _written(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())


def _listed(counter: Mapping[str, int]) -> str:
    return ", ".join(f"{times} {name}" for name, times in sorted(counter.items(), key=lambda each: -each[1])) or "none"

"""The table of all hops: of each, what was measured, beside its peers and its limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.harness import report
from benchmarks.harness.figures import Spread, ratio, values
from benchmarks.harness.results import Results

#: Figures by which less is better, and how they are written.
P50, P99 = "p50, ms", "p99, ms"


@dataclass(frozen=True)
class Hop:
    """A line: what `variant` of a `benchmark` did, as a ratio to other variants of it."""

    title: str
    benchmark: str
    variant: str
    peers: Sequence[str] = ()
    limits: Sequence[str] = ()
    #: One of the further figures; empty: the rate.
    figure: str = ""
    #: What is counted.
    unit: str = "messages"
    #: Whether the ratio to the limit is told as a change.
    as_change: bool = False


C, POST, FULL = ("C",), "Order POST, 8 clients", "Order POST, other programs use both cores"
RUNNING = ("broker running",)
CONSUMER_PEERS = ("Celery, tuned", "Dramatiq")
RPC_PEERS = ("Celery", "FastStream", "nameko")
GROWING = (
    "claim 500 rows, and give them back", "place an order", "list of the outbox", "list of the inbox",
    "mq status: outbox, inbox, effects", "messages reconcile", "messages prune --dry-run",
)  # fmt: skip
HOPS = (
    Hop("Relay, PostgreSQL", "relay", "Warren, PostgreSQL", ("django-outbox-pattern", "Celery, confirmed"), C),
    Hop("Relay, SQLite", "relay", "Warren, SQLite", limits=C),
    Hop(
        "Order with one event, relay thread on", "order", "Warren, relay thread",
        ("Celery, confirmed, after the commit",), ("no event",), unit="orders", as_change=True,
    ),
    Hop(
        "Order with one event, relay elsewhere", "order", "Warren, relay elsewhere",
        ("Celery, confirmed, after the commit",), ("no event",), unit="orders", as_change=True,
    ),
    Hop("Consumer, each its own transaction", "consumer", "Warren", CONSUMER_PEERS, ("pgbench, the same statements",)),
    Hop("Consumer, batch=50", "consumer", "Warren, batch=50", CONSUMER_PEERS, ("pgbench, the same statements",)),
    Hop("Consumer, whole batch of 50", "consumer", "Warren, whole batch of 50", CONSUMER_PEERS),
    Hop("Consumer, two processes", "processes", "two processes", limits=("one process",)),
    Hop(
        "Consumer, no work, no inbox", "no_work", "Warren, no inbox", ("Celery, late acks", "Dramatiq"),
        ("C, acks each", "C, acks joined"),
    ),
    *(
        Hop(f"Commit to handler, {database}, {figure.split(',')[0]}", "latency", f"Warren, {database}",
            ("Celery, confirmed",), ("pika, direct",), figure)
        for database in ("PostgreSQL", "SQLite") for figure in (P50, P99)
    ),
    Hop(POST, "post", "broker running", ("Celery, confirmed",), ("publishing nothing",), unit="orders"),
    *(
        Hop(f"{title}, {state}{', p99' if figure else ''}", benchmark, state, limits=RUNNING, figure=figure,
            unit="orders")
        for title, benchmark in ((POST, "post"), (FULL, "post_full"))
        for state in ("broker frozen", "broker stopped", "broker alarmed") for figure in ("", P99)
    ),
    *(
        Hop(f"RPC, {callers}{', p99' if figure else ''}", benchmark, "Warren", RPC_PEERS, C, figure, unit="calls")
        for callers, benchmark in (("1 caller", "rpc"), ("50 callers", "rpc_many")) for figure in ("", P99)
    ),
    *(
        Hop(f"Memory, {process}: what 1,000,000 waiting add to 1,000", "memory", process, figure="growth, MB")
        for process in ("relay, PostgreSQL", "relay, SQLite", "consumer, PostgreSQL")
    ),
    *(
        Hop(f"Idle, {process}", "idle", f"{process}, PostgreSQL", figure=figure)
        for process in ("web", "consumers", "relay", "RPC worker")
        for figure in ("% of a core", "statements a second")
    ),
    *(
        Hop(f"Growth: {work}, beside a million rows", "growth", f"{work}, PostgreSQL", figure="times as long")
        for work in GROWING
    ),
)  # fmt: skip


def table(results: Mapping[str, Results]) -> str:
    """Return the table; what was not measured says so."""
    head = ("hop", "measured", "ratio to peer", "ratio to limit", "spread, low to high")
    lines = [head, ("---",) * len(head), *(_line(hop, results.get(hop.benchmark)) for hop in HOPS)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _line(hop: Hop, results: Results | None) -> Sequence[str]:
    found = values(results.rounds, hop.variant, hop.figure) if results else []
    if not (results and found):
        return (hop.title, "not measured", "", "", "")
    spread = Spread.of(found)
    return (
        hop.title,
        _measured(hop, results, spread),
        "; ".join(_ratios(hop, results, hop.peers, "×")),
        "; ".join(_ratios(hop, results, hop.limits, "×" if hop.figure else "of")),
        f"{_number(hop, spread.low)} to {_number(hop, spread.high)}, {len(found)} rounds",
    )


def _measured(hop: Hop, results: Results, spread: Spread) -> str:
    """Return the figure in words; a rate with the CPU of one message."""
    if hop.figure:
        unit = hop.figure.rpartition(", ")[2]
        return f"{_number(hop, spread.median)} {unit}"
    runs = [each[hop.variant] for each in results.rounds if hop.variant in each]
    cpu = median(run.client / run.count * 1e6 for run in runs)
    return f"{_number(hop, spread.median)} {hop.unit} a second, {cpu:,.0f} µs of CPU each"


def _number(hop: Hop, value: float) -> str:
    return f"{value:,.2f}" if hop.figure else f"{value:,.0f}"


def _ratios(hop: Hop, results: Results, others: Sequence[str], word: str) -> list[str]:
    found = {name: ratio(results.rounds, hop.variant, name, hop.figure) for name in others}
    change = hop.as_change and word == "of"
    return [
        f"{report.change(each)} against {name}" if change else f"{report.spread(each, '{:.2f}')} {word} {name}"
        for name, each in found.items()
        if each
    ]

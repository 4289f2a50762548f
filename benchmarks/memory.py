"""How much more memory does a process need if a million messages wait, instead of a thousand?

A relay beside rows of the outbox, a consumer beside messages in its queue: of each the most memory that it ever held,
once with 1,000 waiting and once with all, after it has worked off a part of them.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness.benchmark import Benchmark, Variant
from benchmarks.harness.clients import manage, publish, ready_in, running
from benchmarks.harness.window import Measured, Window, require, wait_for
from benchmarks.shop.waiting import fill_outbox
from script.services.owned import owned_pids

FEW = 1_000
#: So many are worked off before the memory is read, if so many wait.
RELAYED, CONSUMED = 20_000, 3_000


def relay(count: int) -> Measured:
    """Let relays publish."""
    from messaging.models import OutboxMessage

    published = OutboxMessage.objects.filter(state="published")
    measured = _twice(count, RELAYED, fill_outbox, published.count, *manage("run_relay"))
    require(FEW + count, OutboxMessage.objects.count(), "rows")
    return measured


def consumer(count: int) -> Measured:
    """Let consumers handle what is in their queue."""
    from benchmarks.shop.consumers import QUEUE
    from benchmarks.shop.events import order_placed
    from benchmarks.shop.models import Receipt

    subprocess.run(manage("run_consumer", "receipts", "--burst"), check=True, capture_output=True)

    def fill_queue(waiting: int) -> None:
        # The ids of the first thousand come again: they are handled once.
        publish("bench.events", "order.placed", waiting, order_placed("N00000000").encode())
        wait_for(lambda: ready_in(QUEUE) == waiting, seconds=30)

    return _twice(count, CONSUMED, fill_queue, Receipt.objects.count, *manage("run_consumer", "receipts"))


def _twice(count: int, most: int, fill: Callable[[int], None], done: Callable[[], int], *command: str) -> Measured:
    """Run `command` with FEW and with `count` waiting, each until all or `most` of them are `done`."""
    sizes = []
    for waiting in (FEW, count):
        fill(waiting)
        until = done() + min(waiting, most)
        with running(*command) as client:
            window = Window(client)
            window.start()
            wait_for(lambda until=until: done() >= until, every=0.1)  # type: ignore[misc]
            window.stop()
            sizes.append(_most_memory(client))
            measured = window.measured(min(waiting, most))
    measured.more = {"with 1,000 waiting, MB": sizes[0], "with all waiting, MB": sizes[1], GROWTH: sizes[1] - sizes[0]}
    return measured


def _most_memory(directory: Path) -> float:
    """Return the most megabytes that the processes of a directory ever held."""
    found = [Path(f"/proc/{pid}/status").read_text() for pid in owned_pids(directory)]
    return sum(int(status.partition("VmHWM:")[2].split()[0]) for status in found) / 1024


GROWTH = "growth, MB"
ELSEWHERE = {"RELAY_THREAD": "0"}
BENCHMARK = Benchmark(
    question="Memory: a process with 1,000 messages waiting, and with a million",
    unit="messages",
    reference="",
    count=1_000_000,
    quick_count=10_000,
    figure=GROWTH,
    minutes=7,
    variants=(
        Variant("relay, PostgreSQL", relay, environment=ELSEWHERE, warren=True),
        Variant("relay, SQLite", relay, database="sqlite", environment=ELSEWHERE, warren=True),
        Variant("consumer, PostgreSQL", consumer, warren=True),
    ),
)

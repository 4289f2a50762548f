"""The time between two moments, and the CPU that client, broker, database and others used in it."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from script.services.owned import owned_pids

_TICKS = os.sysconf("SC_CLK_TCK")
#: Environment variables that name the directories of the servers.
BROKER, DATABASE = "BENCH_BROKER", "BENCH_POSTGRESQL"


@dataclass
class Measured:
    """What one run of a variant did. CPU of client, broker and database is in seconds."""

    count: int
    seconds: float
    client: float
    broker: float = 0.0
    database: float = 0.0
    #: Cores that everything else on the machine used: it disturbs the figures.
    others: float = 0.0
    #: Further figures by name, such as a latency in milliseconds.
    more: dict[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """How many a second."""
        return self.count / self.seconds

    def as_json(self) -> dict[str, Any]:
        """Return the figures, and the rate."""
        return {**asdict(self), "rate": self.rate}


class Window:
    """Measures from `start` to `stop`. The client is the process group of `client` (a directory), or this process."""

    def __init__(self, client: Path | None = None) -> None:
        self._client = client
        self._before: dict[str, float] = {}
        self._start = self.seconds = 0.0

    def start(self) -> None:
        self._before = self._cpu()
        self._start = time.perf_counter()

    def stop(self) -> None:
        self.seconds = time.perf_counter() - self._start

    def measured(self, count: int, **changes: Any) -> Measured:
        """Return the figures; CPU counts up to now, so that work left behind by the client counts too."""
        used = {name: now - self._before[name] for name, now in self._cpu().items()}
        known = used["client"] + used["broker"] + used["database"] + (used["self"] if self._client else 0)
        figures: dict[str, Any] = {
            "seconds": self.seconds,
            "client": used["client"],
            "broker": used["broker"],
            "database": used["database"],
            "others": max(0.0, used["machine"] - known) / (time.perf_counter() - self._start),
        }
        return Measured(count, **{**figures, **changes})

    def _cpu(self) -> dict[str, float]:
        own = sum(os.times()[:4])
        return {
            "client": _cpu_of(self._client) if self._client else own,
            "self": own,
            "broker": _cpu_of(Path(os.environ[BROKER])),
            "database": _cpu_of(Path(os.environ[DATABASE])),
            "machine": _machine(),
        }


def _cpu_of(directory: Path) -> float:
    """Return the seconds of CPU that the processes of a directory used, with their children that have ended."""
    total = 0
    owned = set(owned_pids(directory))
    # PostgreSQL's processes overwrite their environment with their title, and so lose the mark of the directory.
    children = {child for pid in owned for child in _children(pid)}
    for pid in owned | children:
        with suppress(OSError):
            stat = Path(f"/proc/{pid}/stat").read_text()
            total += sum(map(int, stat.rpartition(")")[2].split()[11:15]))
    return total / _TICKS


def _children(pid: int) -> list[int]:
    try:
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except OSError:
        return []


def _machine() -> float:
    """Return the seconds of CPU that all processes used."""
    user, nice, system, _idle, _waiting, irq, softirq, *_ = Path("/proc/stat").read_text().split("\n")[0].split()[1:]
    return sum(map(int, (user, nice, system, irq, softirq))) / _TICKS


def wait_for(condition: Callable[[], bool], seconds: float = 120, every: float = 0.01) -> None:
    """Call `condition` until it is true; TimeoutError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s")
        time.sleep(every)  # asking again costs CPU, which is measured


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return the median and the 99th percentile of at least two durations, in milliseconds."""
    percent = statistics.quantiles(seconds, n=100, method="inclusive")
    return {"p50, ms": percent[49] * 1e3, "p99, ms": percent[98] * 1e3}


def require(expected: int, found: int, what: str) -> None:
    """Raise RuntimeError if the work was not done: then there is no figure."""
    if found != expected:
        raise RuntimeError(f"{found} {what}, not {expected}: nothing was measured")

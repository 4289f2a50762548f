"""One run: orders and faults together, then rest, then the certificate."""

import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from django.db import DatabaseError, connections

from script.programs.chaos.faults import FAULTS, available
from script.programs.chaos.monkey import Monkey, plan
from script.programs.chaos.reconciling import LOOKS, TIMES, Reconciled, reconcile
from script.programs.chaos.shoppers import AT_ONCE, Outcome, Shoppers, hunters
from script.programs.chaos.world import World, private_world

if TYPE_CHECKING:
    # Its models can be imported only once Django is set up.
    from script.programs.chaos.certificate import Certificate

#: Pieces of the product that never sells out.
PLENTY = 1_000_000
#: Seconds that the first orders may take before faults begin.
WARMING = 20.0
#: Seconds for which ordering may go on after its time, and in which a world has to come to rest.
LATE_ORDERS = 180.0
REST_PATIENCE = 300.0
#: Seconds after which what has not come counts as lost; see the settings.
YOUNG = 3.0
#: Seconds between two lines of progress, and between two checks whether all is at rest.
PROGRESS_EVERY = 5.0
LOOK_EVERY = 0.25
#: What a log says of an error in our own code, which no fault of the surroundings may bring out.
OWN_FAULT = re.compile(r"\b(?:relay|consumer|upkeep|rpc)\.fault\b")


@dataclass(frozen=True)
class Scenario:
    """What a run is asked to do."""

    orders: int
    seconds: float
    seed: int
    #: Seconds between two faults, on average.
    every: float
    #: Names of the faults to choose from; empty: all that are possible.
    faults: Sequence[str]
    database: str
    #: The kind of SMS gateway.
    gateway: str
    #: Settings module of the product's processes.
    settings: str


@dataclass(frozen=True)
class Outcomes:
    """What was done, how long it took, and the certificate."""

    database: str
    planned: int
    done: Mapping[str, int]
    missed: Mapping[str, int]
    #: Ends of processes that no fault caused directly, by name and exit code.
    own_ends: Mapping[str, int]
    #: Errors in our own code that the logs tell of.
    own_faults: int
    ordering_seconds: float
    #: None: it did not come to rest.
    drain_seconds: float | None
    reconciled: Reconciled
    certificate: "Certificate"

    @property
    def is_clean(self) -> bool:
        """Whether it came to rest, nothing is off, and no log tells of an error in our own code."""
        return self.drain_seconds is not None and self.certificate.is_clean and not self.own_faults


def say(text: str) -> None:
    """Print progress on standard error; standard output is for the certificate."""
    print(text, file=sys.stderr, flush=True)


def carry_out(scenario: Scenario, directory: Path) -> Outcomes:
    """Do it in `directory`; nothing is left running. Raises `ServiceError` if a service cannot be started."""
    pieces = {"plenty": PLENTY, "scarce": hunters(scenario.orders) // 2}
    with ExitStack() as stack:
        say("Starting RabbitMQ, the database, the SMS gateway and the shop ...")
        with private_world(
            stack,
            directory,
            database=scenario.database,
            pieces=pieces,
            gateway=scenario.gateway,
            settings=scenario.settings,
        ) as world:
            kind = world.database.kind
            planned = plan(scenario.seed, scenario.seconds, scenario.every, scenario.faults or available(kind))
            shoppers, monkey = Shoppers(world.url, scenario.orders, scenario.seconds), Monkey(world, planned)
            ordering_seconds = _order_under_faults(world, shoppers, monkey, scenario.seconds)
            say("Quiet: nothing more is broken.")
            drain_seconds = _come_to_rest(world)
            reconciled = _reconcile(world)
        # Nothing of the product runs any more.
        from script.programs.chaos import certificate

        return Outcomes(
            kind,
            len(planned),
            monkey.done,
            monkey.missed,
            _own_ends(world),
            _own_faults(world),
            ordering_seconds,
            drain_seconds,
            reconciled,
            certificate.judge(
                shoppers.attempts,
                world.gateway,
                pieces,
                # Messages that a fault threw away can be restored only by the command.
                [] if any(FAULTS[each.fault].loses for each in planned) else reconciled.needed,
                reconciled.wrong,
            ),
        )


def _order_under_faults(world: World, shoppers: Shoppers, monkey: Monkey, seconds: float) -> float:
    """Let the shoppers order while the monkey breaks things; return how many seconds it took."""
    began = time.monotonic()
    progress = _Progress(began, lambda: f"{_told(shoppers)}; {sum(monkey.done.values())} faults")
    shoppers.start()
    # Until the shop is warm there is little to break.
    world.tend_until(lambda: shoppers.outcomes().total() >= min(AT_ONCE, len(shoppers.attempts)), WARMING)
    monkey.start()
    try:
        world.tend_until(lambda: progress.print_if_due() or shoppers.done, seconds + LATE_ORDERS)
        return time.monotonic() - began
    finally:
        shoppers.stop()
        monkey.stop()


def _told(shoppers: Shoppers) -> str:
    outcomes = shoppers.outcomes()
    return ", ".join(f"{outcomes[outcome]} {outcome.value}" for outcome in Outcome if outcomes[outcome]) or "no orders"


def _come_to_rest(world: World) -> float | None:
    """Wait until all is at rest. Return how many seconds that took, or None if it took over `REST_PATIENCE`."""
    began = time.monotonic()
    moving: dict[str, int] = {}
    progress = _Progress(began, lambda: ", ".join(f"{count} {what}" for what, count in moving.items()) or "looking")

    def at_rest() -> bool:
        progress.print_if_due()
        moving.clear()
        moving.update(_still_moving(world))
        return not moving

    rests = world.tend_until(world.is_whole, REST_PATIENCE) and world.tend_until(at_rest, REST_PATIENCE, LOOK_EVERY)
    return time.monotonic() - began if rests else None


def _reconcile(world: World) -> Reconciled:
    """Have lost messages sent again, and wait until they have come."""
    from script.programs.chaos.certificate import lost

    reconciled = Reconciled(lost())
    say(f"{len(reconciled.lost)} lost. messages reconcile --repair ...")
    # A broker that was slow a moment ago is not yet seen empty; what is young does not count as lost yet.
    while reconciled.runs < LOOKS or (reconciled.runs < TIMES and lost()):
        world.tend_until(lambda: False, YOUNG)
        reconcile(world, reconciled)
        _come_to_rest(world)
    connections.close_all()
    return reconciled


def _still_moving(world: World) -> dict[str, int]:
    from script.programs.chaos.certificate import still_moving

    try:
        if moving := still_moving():
            return moving
        queued = world.queued()
        if queued != 0:
            return {"in queues": -1 if queued is None else queued}
        # Messages that left the queues since may have changed rows.
        return still_moving()
    except DatabaseError:
        return {"unknown: the database does not answer": 1}
    finally:
        # The server may be restarted between two looks.
        connections.close_all()


def _own_ends(world: World) -> Counter[str]:
    return Counter(
        {
            f"{member.name} with {code}": times
            for member in world.members.values()
            for code, times in member.own_ends.items()
        }
    )


def _own_faults(world: World) -> int:
    logs = (member.log for member in world.members.values())
    return sum(len(OWN_FAULT.findall(log.read_text(errors="replace"))) for log in logs if log.exists())


class _Progress:
    """Prints a line of progress now and then."""

    def __init__(self, began: float, text: Callable[[], str]) -> None:
        self._began = began
        self._text = text
        self._due = began + PROGRESS_EVERY

    def print_if_due(self) -> bool:
        """Print it if it is time; always False, so that it fits into a condition."""
        now = time.monotonic()
        if now >= self._due:
            self._due = now + PROGRESS_EVERY
            say(f"{now - self._began:5.0f} s  {self._text()}")
        return False

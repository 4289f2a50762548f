"""The monkey: a plan of faults made from a seed, and the threads that carry it out."""

import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from script.programs.chaos import all_faults  # noqa: F401  (importing registers them)
from script.programs.chaos.faults import FAULTS, UNREACHABLE, Circumstances
from script.programs.chaos.world import World

#: Seconds before the first fault, so that there is something to break.
CALM_BEFORE = 1.0


@dataclass(frozen=True)
class Planned:
    """A fault at a time (seconds from the start), with its length and a number that picks its target."""

    at: float
    fault: str
    seconds: float
    pick: float


def plan(seed: int, seconds: float, every: float, names: Sequence[str]) -> list[Planned]:
    """Return faults of these names for `seconds`, one every `every` seconds on average. One seed, one plan."""
    dice = random.Random(seed)  # noqa: S311 (not a secret)
    weights = [FAULTS[name].weight for name in names]
    planned: list[Planned] = []
    at = CALM_BEFORE
    while at < seconds:
        name = dice.choices(names, weights)[0]
        planned.append(Planned(at, name, dice.uniform(*FAULTS[name].seconds), dice.random()))
        at += dice.uniform(0.5, 1.5) * every
    return planned


class Monkey:
    """Carries out a plan in its own threads, and counts what was done."""

    def __init__(self, world: World, planned: Sequence[Planned]) -> None:
        self.planned = planned
        #: A line for each fault: when it ended, its name, its outcome.
        self.log = world.directory / "monkey.log"
        self.done: Counter[str] = Counter()
        #: Faults that were not possible, because their target was broken already.
        self.missed: Counter[str] = Counter()
        self._world = world
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._targets = {fault.target: threading.Lock() for fault in FAULTS.values() if fault.target}
        self._hands: list[threading.Thread] = []
        self._own_errors: list[Exception] = []
        self._thread = threading.Thread(target=self._run, name="monkey", daemon=True)

    def start(self) -> None:
        """Begin the plan."""
        self._thread.start()

    def stop(self) -> None:
        """End the plan, heal faults that last, and return when that is done.

        Raises an error of the monkey itself: it did less than its log says.
        """
        self._stop.set()
        self._thread.join()
        for hand in self._hands:
            hand.join()
        if self._own_errors:
            raise self._own_errors[0]

    def _run(self) -> None:
        began = time.monotonic()
        for planned in self.planned:
            if self._stop.wait(max(0.0, began + planned.at - time.monotonic())):
                return
            hand = threading.Thread(target=self._do, args=[planned], name=planned.fault, daemon=True)
            self._hands.append(hand)
            hand.start()

    def _do(self, planned: Planned) -> None:
        fault = FAULTS[planned.fault]
        target = self._targets.get(fault.target)
        if target is not None and not target.acquire(blocking=False):
            self._note(self.missed, planned, "not possible: that is being broken already")
            return
        try:
            fault.carry_out(self._world, Circumstances(planned.pick, planned.seconds, self._stop.wait))
        except UNREACHABLE as error:
            self._note(self.missed, planned, f"not possible: {error}")
        except Exception as error:
            self._own_errors.append(error)
        else:
            self._note(self.done, planned, "done")
        finally:
            if target is not None:
                target.release()

    def _note(self, counter: Counter[str], planned: Planned, outcome: str) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        with self._lock, self.log.open("a") as log:
            counter[planned.fault] += 1
            log.write(f"{now} {planned.fault} {planned.seconds:.1f} s {planned.pick:.3f} {outcome}\n")

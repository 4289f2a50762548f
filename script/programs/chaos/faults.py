"""The registry of chaos faults, and what the faults share.

A fault is a function that breaks something. One that lasts is a generator: it breaks, yields while the fault lasts, and
heals. `World.tend` starts again whatever has ended.
"""

import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import psycopg
from pika.exceptions import AMQPError

from script.programs.chaos.world import World
from script.services.owned import ServiceError

#: Orders that must be under way, so that a fault that loses messages has some to lose.
SOME_ORDERS = 5
#: Seconds in which they arrive, if the shop takes orders at all.
ORDER_PATIENCE = 15.0
#: Seconds that a broken thing has to come back before another fault may break it.
BOOT_PATIENCE = 60.0

Choice = TypeVar("Choice")

#: Errors of a fault whose target is broken already, or unreachable.
UNREACHABLE = (ServiceError, OSError, AMQPError, psycopg.Error, sqlite3.Error, subprocess.TimeoutExpired)


@dataclass(frozen=True)
class Circumstances:
    """What a fault gets: a number from 0 to 1 that picks its target, how long it lasts, and a pause that ends early
    when everything is to be healed."""

    pick: float
    seconds: float
    pause: Callable[[float], bool]


@dataclass(frozen=True)
class Fault:
    """A registered fault. `do` raises one of `UNREACHABLE` if it is not possible."""

    name: str
    do: "Breaks"
    #: How often it is chosen, compared with others.
    weight: int
    #: It lasts from this many seconds to that many.
    seconds: tuple[float, float]
    #: Faults that break the same thing never overlap; empty: they may.
    target: str = ""
    #: Only with this kind of database.
    database: str = ""
    #: It loses messages: it is chosen only if it is named, and only `messages reconcile` brings them back.
    loses: bool = False

    def carry_out(self, world: World, now: Circumstances) -> None:
        """Break, wait while it lasts, and heal. Raises one of `UNREACHABLE` if it is not possible."""
        lasting = self.do(world, now)
        if lasting is not None:
            next(lasting, None)
            now.pause(now.seconds)
            next(lasting, None)


#: What a lasting fault is: a generator that yields once.
Lasting = Iterator[None]
Breaks = Callable[[World, Circumstances], Lasting | None]
FAULTS: dict[str, Fault] = {}


def fault(
    name: str,
    *,
    weight: int,
    seconds: tuple[float, float] = (0, 0),
    target: str = "",
    database: str = "",
    loses: bool = False,
) -> Callable[[Breaks], Breaks]:
    """Register the decorated function as a fault."""

    def register(do: Breaks) -> Breaks:
        FAULTS[name] = Fault(name, do, weight, seconds, target, database, loses)
        return do

    return register


def available(kind: str) -> list[str]:
    """Return the names of all faults that are possible with a private database of that kind, and lose nothing."""
    return [each.name for each in FAULTS.values() if each.database in ("", kind) and not each.loses]


def needs(condition: bool) -> None:
    """Raise `ServiceError` if the target is broken already: killing what still boots would only keep it away."""
    if not condition:
        raise ServiceError("it is broken already")


def picked(choices: Sequence[Choice], now: Circumstances) -> Choice:
    return choices[int(now.pick * len(choices))]


def wait_for_orders(now: Circumstances) -> None:
    """Wait until some more orders are committed, so that messages are under way."""
    from django.db import DatabaseError, connections

    from orders.models import Order

    try:
        goal = Order.objects.count() + SOME_ORDERS
        wait(lambda: Order.objects.count() >= goal, now, ORDER_PATIENCE)
    except DatabaseError:
        return  # the database is broken as well
    finally:
        connections.close_all()


def wait(condition: Callable[[], bool], now: Circumstances, patience: float = BOOT_PATIENCE) -> bool:
    """Wait until the condition holds. Return False if it does not, or everything is to be healed before."""
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline or now.pause(0.2):
            return False
    return True

"""Procedures that do what none should, for RPC servers in processes of their own.

The functions without arguments are for `tests.support.failpoints.at`, which calls them at the start of the process.
"""

import os
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from messaging.rpc import procedure


def declare() -> None:
    """Declare the procedures. Each of those whose runs are counted says that it runs."""

    @procedure("double")
    def double(number: int) -> int:
        """The good one."""
        _say("double", number)
        return 2 * number

    @procedure("nap")
    def nap(number: int, seconds: float) -> int:
        _say("nap", number)
        time.sleep(seconds)
        return number

    @procedure("die")
    def die(number: int) -> None:
        """Kill this process as a fault in a C library would."""
        _say("die", number)
        os.abort()

    @procedure("spin", timeout=timedelta(seconds=1.5))
    def spin(number: int) -> None:
        """Never return, in Python: the exception gets through."""
        _say("spin", number)
        while True:
            time.sleep(0.01)

    @procedure("hang", timeout=timedelta(seconds=0.2))
    def hang(number: int) -> None:
        """Never return, outside Python: nothing gets through."""
        _say("hang", number)
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()

    @procedure("endless", timeout=timedelta(seconds=0.5))
    def endless() -> Iterator[int]:
        """A result that never ends."""
        while True:
            time.sleep(0.01)
            yield 1

    @procedure("unspeakable")
    def unspeakable() -> object:
        return object()

    @procedure("huge")
    def huge() -> str:
        return "x" * 2_000_000

    @procedure("shout")
    def shout() -> None:
        raise ValueError("x" * 5_000_000)

    @procedure("leave")
    def leave() -> None:
        raise SystemExit(3)


def _say(what: str, number: Any) -> None:
    # In one piece, whatever the other threads say.
    os.write(1, f"runs {what} {number}\n".encode())


def never_acknowledge() -> None:
    """Keeps a server from acknowledging: it can then be killed when its reply has come."""
    from pika.channel import Channel

    Channel.basic_ack = lambda self, tag, multiple=False: None


def expire_soon() -> None:
    """Has a request queue without a server go sooner than a test would wait for, if it goes at all."""
    from messaging.broker import request_queue

    if "x-expires" in request_queue.ARGUMENTS:
        request_queue.ARGUMENTS["x-expires"] = 1500

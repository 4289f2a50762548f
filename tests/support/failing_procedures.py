"""RPC procedures that fail in every way, for servers in their own processes.

The functions without arguments are for `tests.support.failpoints.at`, which calls them at the start of the process.
"""

import itertools
import os
import signal
import threading
import time
from datetime import timedelta
from typing import Any

from messaging.rpc import procedure


def declare() -> None:
    """Declare the procedures. Those whose runs are counted print a line for each run."""

    @procedure("double")
    def double(number: int) -> int:
        """Succeed."""
        _print("double", number)
        return 2 * number

    @procedure("nap")
    def nap(number: int, seconds: float) -> int:
        _print("nap", number)
        time.sleep(seconds)
        return number

    @procedure("die")
    def die(number: int) -> None:
        """Kill this process, as a fault in a C library does."""
        _print("die", number)
        os.abort()

    @procedure("spin", timeout=timedelta(seconds=1.5))
    def spin(number: int) -> None:
        """Never return, in Python: the exception reaches it."""
        _print("spin", number)
        while True:
            time.sleep(0.01)

    @procedure("hang", timeout=timedelta(seconds=0.2))
    def hang(number: int) -> None:
        """Never return, outside Python: no exception reaches it."""
        _print("hang", number)
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()


def _print(what: str, number: Any) -> None:
    # One write: lines of other threads do not mix with it.
    os.write(1, f"runs {what} {number}\n".encode())


def never_acknowledge() -> None:
    """Keep the server from acknowledging, so that it can be killed once its reply has arrived."""
    from pika.channel import Channel

    Channel.basic_ack = lambda self, tag, multiple=False: None


def stop_before_the_second_reply() -> None:
    """Stop this process once its second request is worked off and not answered, so that it can be killed there."""
    from messaging.broker.request_queue import RequestQueue

    finish, replies = RequestQueue.finish, itertools.count(1)

    def stop_and_finish(queue: RequestQueue, *arguments: Any) -> None:
        if next(replies) == 2:
            os.kill(os.getpid(), signal.SIGSTOP)
            threading.Event().wait()  # this thread may go on before the signal stops it
        finish(queue, *arguments)

    RequestQueue.finish = stop_and_finish


def expire_soon() -> None:
    """Let a request queue without a server expire within the patience of a test."""
    from messaging.broker import request_queue

    if "x-expires" in request_queue.ARGUMENTS:
        request_queue.ARGUMENTS["x-expires"] = 1500

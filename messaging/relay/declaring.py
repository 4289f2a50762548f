"""Declaring: what messages are published to exists on the broker before, and comes back if it is deleted."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from threading import Thread

from messaging import conf, consumers
from messaging.broker.connection import Connection
from messaging.topology import desired
from messaging.topology.declare import PAUSE_AFTER_DELETION, Declaration


class Declaring:
    """Declares every consumer's queue and bindings on each new connection, and then every DECLARE_INTERVAL seconds.

    It does so on a thread, which calls `on_done`: a queue that does not answer takes seconds, and must not delay what
    goes elsewhere. All else is for the relay's thread.
    """

    def __init__(self, connection: Connection, on_done: Callable[[], None]) -> None:
        self._connection = connection
        self._on_done = on_done
        self._declaration = Declaration(connection)
        self._is_running = False
        self._error: Exception | None = None
        self._generation = 0
        self._due = 0.0

    @property
    def problems(self) -> Mapping[str, str]:
        """What is missing or not bound, by the name of the exchange or queue, and why."""
        return self._declaration.problems

    @property
    def is_done(self) -> bool:
        """Whether rows may be published: the topology was declared on the present connection."""
        return self._generation == self._connection.generation

    @property
    def stale_problems(self) -> Collection[str]:
        """What was missing at the last declaration, if that was not just now. A row that is published beside a queue
        that is back would be published once more."""
        return self.problems if self._is_running or self._is_due else ()

    @property
    def _is_due(self) -> bool:
        return time.monotonic() >= self._due

    @property
    def is_waited_for(self) -> bool:
        """Whether `run` has something to do that publishing waits for."""
        return not self._is_running and (not self.is_done or bool(self.stale_problems))

    def hasten(self) -> None:
        """Declare again soon: something was missing."""
        self._due = min(self._due, time.monotonic() + PAUSE_AFTER_DELETION)

    def run(self) -> None:
        """Begin to declare if that is due. Raises the error by which it failed the last time, once."""
        if self._is_running:
            return
        error, self._error = self._error, None
        if error is not None:
            raise error
        if self.is_done and not self._is_due:
            return
        self._is_running = True
        try:
            Thread(target=self._declare, name="relay-topology", daemon=True).start()
        except RuntimeError:  # this process may start no more threads
            self._declare()

    def _declare(self) -> None:
        generation = self._connection.generation
        try:
            problems = self._declaration.declare(desired.topology(consumers.registered()))
            self._due = time.monotonic() + (1.0 if problems else conf.DECLARE_INTERVAL)
            self._generation = generation
        except Exception as error:
            self._error = error
        finally:
            self._is_running = False
            self._on_done()

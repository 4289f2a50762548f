"""`mq listen` in threads of the test."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from io import StringIO
from unittest.mock import patch

from django.core.management import call_command

from messaging.mq import listen
from messaging.processes import StopSignals
from tests.support.running import InThread
from tests.support.waiting import eventually


class Listening:
    """`mq listen <arguments>`, and what it wrote: the messages to `out`, everything else to `err`."""

    def __init__(self, arguments: tuple[str, ...], signals: dict[int, StopSignals]) -> None:
        self.out, self.err = StringIO(), StringIO()
        self._signals = StopSignals()

        def run() -> None:
            signals[threading.get_ident()] = self._signals
            # The default verbosity would change the levels of loggers, which all threads share.
            call_command("mq", "-v", "2", "listen", *arguments, stdout=self.out, stderr=self.err)

        self._home = InThread(run, "mq listen")
        eventually(lambda: "Listening on" in self.err.getvalue() or not self.runs)

    @property
    def runs(self) -> bool:
        """Whether it has not ended yet."""
        return self._home.thread.is_alive()

    @property
    def lines(self) -> list[str]:
        """The messages so far, as a pipe gets them."""
        return self.out.getvalue().splitlines()

    def wait_for(self, text: str) -> None:
        """Wait until it has said `text` beside the messages."""
        eventually(lambda: text in self.err.getvalue(), within=60, report=self.err.getvalue)

    def stop(self) -> None:
        """End it as Ctrl-C does."""
        self._signals.received = True
        self.join()

    def join(self) -> None:
        """Wait for its end; raises the CommandError that it ended with."""
        self._home.join()


Listen = Callable[..., Listening]


@contextmanager
def listeners() -> Iterator[Listen]:
    """Yields what starts `mq listen …` and returns once it listens; all have ended when the block is left. Only the
    main thread gets signals, so `stop` stands in for one."""
    signals: dict[int, StopSignals] = {}
    started: list[Listening] = []

    def start(*arguments: str) -> Listening:
        started.append(Listening(arguments, signals))
        return started[-1]

    with patch.object(listen, "StopSignals", lambda: nullcontext(signals[threading.get_ident()])):
        yield start
        for each in started:
            if each.runs:
                each.stop()

"""Stopping: the first signal asks, the second insists."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Self

#: Exit code of a process that was told twice, and left work unfinished.
ABANDONED = 1


class StopSignals:
    """Within its `with` block SIGTERM and SIGINT set `received`, and nothing else; a second one ends the process.

    A handler that logs, locks or talks to the broker can deadlock with the code it interrupts. The previous
    handlers come back afterwards.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.received = False

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._on_signal) for number in self.SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            # What is not acknowledged goes back to its queue, and leases end: nothing is lost by leaving now. Nothing
            # is flushed: the interrupted code may be writing, and then Python refuses.
            os._exit(ABANDONED)
        self.received = True

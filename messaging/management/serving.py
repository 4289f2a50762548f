"""What the commands share that serve until they are stopped: their banner, the first signal, their last line."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from enum import StrEnum

from django.core.management.base import CommandError
from django.db.models import Model

from messaging.checks import environment
from messaging.exceptions import BrokerUnavailable
from messaging.management.arguments import broker_line, broker_unreachable
from messaging.management.database_errors import wait_for_table
from messaging.management.examples import CommandWithExamples
from messaging.management.terminal_log import shown_log
from messaging.processes import StopSignals
from messaging.worker.service import Service


class ServingCommand(CommandWithExamples):
    """A command that runs a service until it is stopped."""

    #: What it does after the first signal.
    stopping: str
    _announced_stop = False

    def say(self, line: str) -> None:
        """Print a line at once."""
        self.stdout.write(line)
        self.stdout.flush()

    def refuse_green_threads(self) -> None:
        """Raise CommandError if the process patches threads."""
        if reason := environment.green_threads():
            raise CommandError(reason)

    def serve(
        self,
        service: Service,
        lines: Iterable[str],
        *,
        results: Iterable[StrEnum],
        table: type[Model] | None = None,
        patiently: bool = True,
    ) -> None:
        """Print `lines` and run `service`, once `table` is there, until a signal; then count its `results`."""
        for line in [*lines, broker_line(), f"Running as {socket.gethostname()}:{os.getpid()}. Press CTRL+C to stop."]:
            self.say(line)
        with shown_log(), StopSignals() as signals:
            if table and not wait_for_table(table, lambda: signals.received, patiently=patiently):
                self.say("Stopped before the database was reached.")
                return
            try:
                summary = service.run(lambda: self._should_stop(signals))
            except BrokerUnavailable as error:
                raise broker_unreachable(error) from None
        counts = ", ".join(f"{summary.counts[result]} {result}" for result in results)
        self.say(f"Stopped. {counts} in {summary.seconds:.1f} s.")
        if summary.abandoned:
            raise CommandError(
                f"{summary.abandoned} still being handled when the time for stopping was up. They are delivered again."
            )

    def _should_stop(self, signals: StopSignals) -> bool:
        if signals.received and not self._announced_stop:
            self._announced_stop = True
            self.say(self.stopping)
        return signals.received

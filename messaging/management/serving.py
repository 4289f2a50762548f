"""Commands that serve until they are stopped: their banner, the first signal, their summary."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from enum import StrEnum

from django.core.management.base import CommandError
from django.db import InterfaceError, OperationalError, ProgrammingError
from django.db.models import Model

from messaging import conf, database
from messaging.checks import environment
from messaging.logs import Throttle, get_logger
from messaging.management.arguments import CommandWithExamples
from messaging.management.errors import broker_told_in_one_line, database_unreachable, told_in_one_line
from messaging.management.terminal_log import shown_log
from messaging.processes import StopSignals, process_name
from messaging.worker.service import Service

log = get_logger(__name__)

#: Seconds between two attempts to reach the database.
PAUSE = 1.0
#: In PostgreSQL's refusals of an address or account, which waiting does not change.
_REFUSALS = ("authentication failed", "does not exist", "no pg_hba.conf entry", "not permitted to log in")


class ServingCommand(CommandWithExamples):
    """A command that runs a service until it is stopped."""

    #: What it does after the first signal.
    stopping: str
    _announced_stop = False

    def say(self, line: str) -> None:
        """Print a line at once."""
        self.stdout.write(line)
        self.stdout.flush()

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
        if reason := environment.green_threads():
            raise CommandError(reason)
        for line in [*lines, broker_line(), f"Running as {process_name()}. Press CTRL+C to stop."]:
            self.say(line)
        with shown_log(), StopSignals() as signals:
            if table and not wait_for_table(table, lambda: signals.received, patiently=patiently):
                self.say("Stopped before the database was reached.")
                return
            with broker_told_in_one_line():
                summary = service.run(lambda: self._should_stop(signals))
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


def broker_line() -> str:
    """Return the line of a banner that says which brokers are used, without any password."""
    return f"Broker: {', '.join(map(str, conf.get().brokers))}"


def wait_for_table(model: type[Model], should_stop: Callable[[], bool], *, patiently: bool) -> bool:
    """Wait for the database until the table of `model` can be read; return False if told to stop.

    The reason is logged at once, and each minute. Raises CommandError where waiting does not help: the database refuses
    this account, the table is missing, or SQLite has any error, because a file is there or not; and where the database
    is away and `patiently` is not said.
    """
    reasons = Throttle()
    while not should_stop():
        try:
            with database.atomic():
                model._default_manager.exists()
        except (OperationalError, InterfaceError, ProgrammingError) as error:
            if isinstance(error, ProgrammingError) or database.is_sqlite():
                with told_in_one_line(advice=""):
                    raise
            reason = " ".join(str(error).split())
            if not patiently or any(each in reason for each in _REFUSALS):
                raise database_unreachable(error) from None
            if reasons.allows(reason):
                log.warning("database.unreachable", reason=reason, tried_again_in_seconds=PAUSE)
            time.sleep(PAUSE)
        else:
            database.release_between_messages()
            if reasons.reset():
                log.info("database.reached")
            return True
    return False

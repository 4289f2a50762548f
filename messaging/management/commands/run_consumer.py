"""`manage.py run_consumer sms`: handle the messages of one consumer, or of several."""

from __future__ import annotations

import os
import socket
from typing import Any

from django.core.management.base import CommandError, CommandParser

from messaging import consumers
from messaging.checks import environment
from messaging.consumers import Consumer
from messaging.exceptions import BrokerUnavailable, UnknownConsumer
from messaging.management.arguments import EXIT_USAGE, broker_line, broker_unreachable, positive
from messaging.management.database_errors import wait_for_table
from messaging.management.examples import CommandWithExamples
from messaging.management.terminal_log import shown_log
from messaging.models import InboxMessage
from messaging.processes import StopSignals
from messaging.topology import desired
from messaging.worker import dead_letters
from messaging.worker.handling import Verdict
from messaging.worker.worker import Summary, Worker

EXAMPLES = """
examples:
  manage.py run_consumer sms                       handle text messages until stopped
  manage.py run_consumer sms red_packet            two consumers in one process
  manage.py run_consumer --all --concurrency 4     every consumer, four threads each
  manage.py run_consumer sms --burst               empty the queue, then leave
"""


class Command(CommandWithExamples):
    help = "Handle messages: take them from the consumer's queue, run its handler once for each, acknowledge."
    examples = EXAMPLES

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("names", nargs="*", metavar="NAME", help="consumers to run")
        parser.add_argument("--all", action="store_true", help="run every consumer of the project")
        parser.add_argument(
            "--concurrency", "-c", type=positive, default=1, metavar="N",
            help="handler threads for each consumer (default 1; always 1 on SQLite, which has one writer)",
        )  # fmt: skip
        parser.add_argument(
            "--prefetch", type=positive, metavar="N", help="unacknowledged deliveries to hold (default: settings)"
        )
        parser.add_argument("--max-messages", type=positive, metavar="N", help="leave after N deliveries")
        parser.add_argument("--burst", action="store_true", help="leave once the queues are empty")

    def handle(self, *args: Any, **options: Any) -> None:
        if reason := environment.green_threads():
            raise CommandError(reason)
        if bool(options["names"]) == options["all"]:
            known = ", ".join(each.name for each in _all_declared()) or "none"
            raise CommandError(f"Name the consumers to run, or say --all. Registered: {known}.", returncode=EXIT_USAGE)
        chosen = self._chosen(options)
        worker = Worker(
            chosen,
            concurrency=options["concurrency"],
            prefetch=options["prefetch"],
            max_messages=options["max_messages"],
            burst=options["burst"],
        )
        self._banner(worker)
        with shown_log(), StopSignals() as signals:
            if not wait_for_table(InboxMessage, lambda: signals.received, patiently=not options["burst"]):
                self.stdout.write("Stopped before the database was reached.")
                return
            try:
                summary = worker.run(lambda: self._told_to_stop(signals))
            except BrokerUnavailable as error:
                raise broker_unreachable(error) from None
        self._farewell(summary)

    def _chosen(self, options: dict[str, Any]) -> list[Consumer]:
        built_in = dead_letters.consumer()
        if options["all"]:
            return [*_all_declared(), built_in]
        names = [name for name in options["names"] if name != built_in.name]
        try:
            chosen = consumers.named(names)
        except UnknownConsumer as error:
            raise CommandError(str(error), returncode=EXIT_USAGE) from None
        return chosen if len(names) == len(options["names"]) else [*chosen, built_in]

    def _banner(self, worker: Worker) -> None:
        for lane in worker.lanes:
            events = ", ".join(map(desired.describe, lane.consumer.bindings)) or "what the broker gave up"
            queue = f"queue {lane.consumer.queue}" if lane.consumer.queue else "a queue of this process"
            self.stdout.write(
                f"{lane.consumer.name}: {queue} ← {events}; "
                f"prefetch {lane.subscription.prefetch}, threads {len(lane.threads)}"
            )
        self.stdout.write(broker_line())
        self.stdout.write(f"Running as {socket.gethostname()}:{os.getpid()}. Press CTRL+C to stop.")
        self.stdout.flush()

    _said_goodbye = False

    def _told_to_stop(self, signals: StopSignals) -> bool:
        if signals.received and not self._said_goodbye:
            self._said_goodbye = True
            self.stdout.write("Finishing what was begun. CTRL+C again leaves at once; nothing is lost either way.")
            self.stdout.flush()
        return signals.received

    def _farewell(self, summary: Summary) -> None:
        told = [verdict for verdict in Verdict if verdict is not Verdict.DROPPED or summary.verdicts[verdict]]
        counts = ", ".join(f"{summary.verdicts[verdict]} {verdict}" for verdict in told)
        self.stdout.write(f"Stopped. {counts} in {summary.seconds:.1f} s.")
        if summary.abandoned:
            raise CommandError(
                f"{summary.abandoned} still being handled when the time for stopping was up. They are delivered again."
            )


def _all_declared() -> list[Consumer]:
    return [*consumers.registered(), *consumers.broadcasting()]

"""`manage.py run_rpc_worker`: serve the project's procedures."""

from __future__ import annotations

import os
import socket
from typing import Any

from django.core.management.base import CommandError, CommandParser

from messaging import procedures
from messaging.checks import environment
from messaging.exceptions import BrokerRefused, UnknownProcedure
from messaging.management.arguments import EXIT_USAGE, broker_line, broker_unreachable, positive
from messaging.management.examples import CommandWithExamples
from messaging.management.terminal_log import shown_log
from messaging.processes import StopSignals
from messaging.rpc.answering import Ending
from messaging.rpc.server import RpcServer, Summary

EXAMPLES = """
examples:
  manage.py run_rpc_worker                         serve every procedure of the project
  manage.py run_rpc_worker shipping.quote          serve one
  manage.py run_rpc_worker --concurrency 8         run up to eight requests at a time
"""


class Command(CommandWithExamples):
    help = "Serve procedures: take requests from their queues, run each, send the result to whoever asked."
    examples = EXAMPLES

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("names", nargs="*", metavar="NAME", help="procedures to serve (default: all)")
        parser.add_argument(
            "--concurrency", "-c", type=positive, default=4, metavar="N", help="requests run at a time (default 4)"
        )
        parser.add_argument(
            "--prefetch", type=positive, metavar="N",
            help="requests to hold of each procedure (default: as many as run at a time)",
        )  # fmt: skip
        parser.add_argument("--max-messages", type=positive, metavar="N", help="leave after N requests")

    def handle(self, *args: Any, **options: Any) -> None:
        if reason := environment.green_threads():
            raise CommandError(reason)
        try:
            chosen = procedures.named(options["names"]) if options["names"] else procedures.registered()
        except UnknownProcedure as error:
            raise CommandError(str(error), returncode=EXIT_USAGE) from None
        if not chosen:
            raise CommandError(
                "No procedure is registered: an app declares them in procedures.py.", returncode=EXIT_USAGE
            )
        server = RpcServer(
            chosen,
            concurrency=options["concurrency"],
            prefetch=options["prefetch"],
            max_messages=options["max_messages"],
        )
        self._banner(server)
        with shown_log(), StopSignals() as signals:
            try:
                summary = server.run(
                    lambda: self._told_to_stop(signals), on_serving=lambda: self._say("Serving. Requests are answered.")
                )
            except BrokerRefused as error:
                raise broker_unreachable(error) from None
        self._farewell(summary)

    def _banner(self, server: RpcServer) -> None:
        for each in server.procedures:
            self._say(f"{each.name}: queue {each.queue}; prefetch {server.prefetch}, threads {len(server.threads)}")
        self._say(broker_line())
        self._say(f"Running as {socket.gethostname()}:{os.getpid()}. Press CTRL+C to stop.")

    _said_goodbye = False

    def _told_to_stop(self, signals: StopSignals) -> bool:
        if signals.received and not self._said_goodbye:
            self._said_goodbye = True
            self._say("Answering what has arrived. CTRL+C again leaves at once; callers then wait in vain.")
        return signals.received

    def _farewell(self, summary: Summary) -> None:
        counts = ", ".join(f"{summary.endings[ending]} {ending}" for ending in Ending)
        self._say(f"Stopped. {counts} in {summary.seconds:.1f} s.")
        if summary.abandoned:
            raise CommandError(f"{summary.abandoned} still being run when the time for stopping was up.")

    def _say(self, line: str) -> None:
        self.stdout.write(line)
        self.stdout.flush()

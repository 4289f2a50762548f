"""`manage.py run_rpc_worker`: serve the project's procedures."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError, CommandParser

from messaging import procedures
from messaging.exceptions import UnknownProcedure
from messaging.management.arguments import positive
from messaging.management.errors import EXIT_USAGE
from messaging.management.serving import ServingCommand
from messaging.rpc.answering import Ending
from messaging.rpc.server import RpcServer

EXAMPLES = """
examples:
  manage.py run_rpc_worker                         serve every procedure of the project
  manage.py run_rpc_worker shipping.quote          serve one
  manage.py run_rpc_worker --concurrency 8         run up to eight requests at a time
"""


class Command(ServingCommand):
    help = "Serve procedures: take requests from their queues, run each, send the result to the caller."
    examples = EXAMPLES
    stopping = "Answering what has arrived. CTRL+C again leaves at once; callers then get no answer."

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
            on_serving=lambda: self.say("Serving. Requests are answered."),
        )
        how = f"prefetch {server.prefetch}, threads {len(server.threads)}"
        self.serve(server, (f"{each.name}: queue {each.queue}; {how}" for each in server.procedures), results=Ending)

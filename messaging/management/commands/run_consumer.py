"""`manage.py run_consumer sms`: handle the messages of one consumer, or of several."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError, CommandParser

from messaging import consumers
from messaging.consumers import Consumer
from messaging.exceptions import UnknownConsumer
from messaging.management.arguments import positive
from messaging.management.errors import EXIT_USAGE
from messaging.management.serving import ServingCommand
from messaging.models import InboxMessage
from messaging.topology import desired
from messaging.worker import dead_letters
from messaging.worker.consumer_threads import ConsumerThreads
from messaging.worker.verdict import Verdict
from messaging.worker.worker import Worker

EXAMPLES = """
examples:
  manage.py run_consumer sms                       handle text messages until stopped
  manage.py run_consumer sms red_packet            two consumers in one process
  manage.py run_consumer --all --concurrency 4     every consumer, four threads each
  manage.py run_consumer sms --burst               empty the queue, then leave
"""


class Command(ServingCommand):
    help = "Handle messages: take them from the consumer's queue, run its handler once for each, acknowledge."
    examples = EXAMPLES
    stopping = "Finishing what was begun. CTRL+C again leaves at once; nothing is lost either way."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("names", nargs="*", metavar="NAME", help="consumers to run")
        parser.add_argument("--all", action="store_true", help="run every consumer of the project")
        parser.add_argument(
            "--concurrency", "-c", type=positive, default=1, metavar="N",
            help="handler threads for each consumer (default 1; always 1 on SQLite, which has one writer)",
        )  # fmt: skip
        parser.add_argument(
            "--prefetch", type=positive, metavar="N",
            help="unacknowledged deliveries to hold (default: what the consumer or the settings say)",
        )  # fmt: skip
        parser.add_argument("--max-messages", type=positive, metavar="N", help="leave after N deliveries")
        parser.add_argument("--burst", action="store_true", help="leave once the queues are empty")

    def handle(self, *args: Any, **options: Any) -> None:
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
        with_dropped = any(each.broadcast for each in chosen)
        self.serve(
            worker,
            map(_line, worker.consumers),
            results=[each for each in Verdict if with_dropped or each is not Verdict.DROPPED],
            table=InboxMessage,
            patiently=not options["burst"],
        )

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


def _line(running: ConsumerThreads) -> str:
    consumer = running.consumer
    events = ", ".join(map(desired.describe, consumer.bindings)) or "what the broker gave up"
    queue = f"queue {consumer.queue}" if consumer.queue else "a queue of this process"
    prefetch, threads = running.subscription.prefetch, len(running.threads)
    return f"{consumer.name}: {queue} ← {events}; prefetch {prefetch}, threads {threads}"


def _all_declared() -> list[Consumer]:
    return [*consumers.registered(), *consumers.broadcasting()]

"""`manage.py mq purge`: delete the messages that wait in a queue."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from messaging.broker.connection import opened
from messaging.management.errors import EXIT_USAGE, broker_told_in_one_line
from messaging.mq.options import check_short

EXAMPLES = """
examples:
  manage.py mq purge hello                 asks first
  manage.py mq purge hello --yes           does not

What consumers hold unacknowledged stays. Events purged from a consumer's queue are missed: `messages reconcile` names
them, and sends them again.

exit codes: 0 done, 1 no such queue, refused, or answered with no, 2 wrong arguments, 3 broker unreachable,
7 it did not answer in time, 130 interrupted
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this sub-command."""
    parser.add_argument("queue", metavar="QUEUE", help="the queue")
    parser.add_argument("--yes", action="store_true", help="do not ask")


def run(command: BaseCommand, options: dict[str, Any]) -> None:
    """Purge, and say how many are gone. Raises CommandError where that cannot be."""
    check_short("the name", options["queue"])
    if not options["yes"] and not sys.stdin.isatty():
        raise CommandError("There is no terminal to ask at: say --yes.", returncode=EXIT_USAGE)
    with broker_told_in_one_line(), opened("mq purge") as connection:
        queue = options["queue"]
        if not options["yes"]:
            _ask(command, queue, connection.call("queue_declare", queue=queue, passive=True).messages)
        purged = connection.call("queue_purge", queue=queue).messages
    command.stdout.write(f"{purged} deleted from {queue}.")


def _ask(command: BaseCommand, queue: str, count: int) -> None:
    try:
        answer = input(f"Delete the {count} messages that wait in {queue}? [y/N] ")
    except (EOFError, KeyboardInterrupt):
        command.stdout.write("")  # after Ctrl-C the cursor is still behind the question
        answer = ""
    if answer.strip().lower() not in {"y", "yes"}:
        raise CommandError("Nothing was deleted.")

"""`manage.py mq peek`: look at the messages that wait in a queue, and leave them there."""

from __future__ import annotations

import argparse
from typing import Any

from django.core.management.base import BaseCommand

from messaging.broker.connection import opened
from messaging.broker.queue_answers import Peek
from messaging.management.arguments import from_one
from messaging.management.errors import broker_told_in_one_line
from messaging.mq.message_lines import write_message
from messaging.mq.options import check_short

EXAMPLES = """
examples:
  manage.py mq peek hello                  the first ten messages
  manage.py mq peek warren.dead_letters --count 1 --json    all that is known of the first

They are marked as redelivered afterwards, and a quorum queue counts one delivery more for each. Messages that
consumers hold are not shown.

exit codes: 0 done, 1 no such queue, or refused, 2 wrong arguments, 3 broker unreachable, 7 it did not answer in time,
130 interrupted
"""
DEFAULT_COUNT = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this sub-command."""
    parser.add_argument("queue", metavar="QUEUE", help="the queue")
    parser.add_argument(
        "--count", type=from_one, default=DEFAULT_COUNT, metavar="N", help=f"at most N (default {DEFAULT_COUNT})"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(command: BaseCommand, options: dict[str, Any]) -> None:
    """Print the first messages. Raises CommandError where that cannot be."""
    check_short("the name", options["queue"])
    with broker_told_in_one_line(), opened("mq peek") as connection:
        queue = options["queue"]
        peek = Peek(connection, queue)
        shown = 0
        while shown < options["count"] and (arrival := peek.next()):
            write_message(command, arrival, as_json=options["json"])
            shown += 1
    if not shown:
        command.stderr.write(f"Nothing waits in {queue}.", style_func=str)

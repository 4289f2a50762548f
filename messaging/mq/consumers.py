"""`manage.py mq consumers`: who takes messages out of which queue."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand

from messaging.mq import lists

HELP = "consumers: who takes messages out of which queue"
EXAMPLES = f"""
examples:
  manage.py mq consumers                           every consumer
  manage.py mq consumers orders.sms                those of one queue

{lists.EXIT_CODES}
"""
COLUMNS = ("queue", "prefetch", "acknowledges", "tag", "connection")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this sub-command."""
    lists.add_arguments(parser, "queues")


def run(command: BaseCommand, options: dict[str, Any]) -> None:
    """List consumers. Raises CommandError for a queue that is not there."""
    names = options["names"]
    with lists.seen(command) as standing:
        found = standing.consumers()
        queues = {each.name for each in standing.queues()} if names else set()
        chosen = [each for each in found if not names or each.queue in names]
        rows = [
            (each.queue, each.prefetch, "yes" if each.acknowledges else "no", each.tag, each.connection)
            for each in chosen
        ]
        lists.write(command, COLUMNS, rows, [asdict(each) for each in chosen], options=options, beneath=2)
        lists.refuse_unknown("queue", names, queues)

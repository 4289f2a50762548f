"""`manage.py mq queues`: every queue, what waits in it, and who consumes."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand

from messaging.mq import lists
from messaging.topology.existing import Queue

#: So many queues are asked for their counts of this moment; of more, those of the last 5 seconds must do.
COUNTED_NOW = 100

HELP = "queues: what waits in them, what consumers hold, and how they were declared"
EXAMPLES = f"""
examples:
  manage.py mq queues                              every queue of the virtual host
  manage.py mq queues hello orders.sms             these two
  manage.py mq queues --json | jq .ready           one JSON object a line
  manage.py mq queues | cut -f 1,3                 in a pipe: name, type, ready, unacked, consumers, how, arguments

{lists.EXIT_CODES}
"""
COLUMNS = ("queue", "type", "ready", "unacked", "consumers", "how", "arguments")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this sub-command."""
    lists.add_arguments(parser, "queues")


def run(command: BaseCommand, options: dict[str, Any]) -> None:
    """List queues. Raises CommandError for a name that is not there."""
    names = options["names"]
    with lists.seen(command) as standing:
        found = standing.queues(names)
        chosen = [each for each in found if not names or each.name in names]
        if standing.is_complete and len(chosen) <= COUNTED_NOW:
            chosen = standing.counted_now(chosen)
        lists.write(command, COLUMNS, [_row(each) for each in chosen], [asdict(each) for each in chosen],
                    options=options, beneath=2)  # fmt: skip
        lists.refuse_unknown("queue", names, {each.name for each in found}, is_complete=standing.is_complete)


def _row(queue: Queue) -> tuple[Any, ...]:
    return (
        queue.name, queue.type, queue.ready, queue.unacked, queue.consumers, how(queue),
        lists.in_words({name: value for name, value in (queue.arguments or {}).items() if name != "x-queue-type"}),
    )  # fmt: skip


def how(queue: Queue) -> str:
    """Return in words how long the queue lasts."""
    words = [
        None if queue.durable is None else "durable" if queue.durable else "transient",
        "exclusive" if queue.exclusive else None,
        "auto-delete" if queue.auto_delete else None,
        f"policy {queue.policy}" if queue.policy else None,
        "does not answer" if queue.silent else None,
    ]
    return " ".join(word for word in words if word)

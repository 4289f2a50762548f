"""`manage.py mq bindings`: what brings messages from which exchange to which queue."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand

from messaging import consumers
from messaging.mq import lists
from messaging.topology import desired
from messaging.topology.existing import Binding, CannotBeSeen, Standing

HELP = "bindings: from which exchange to which queue, by which key"
EXAMPLES = f"""
examples:
  manage.py mq bindings                            every binding, but each queue's own to the default exchange
  manage.py mq bindings orders.events orders.sms   those of this exchange, and of this queue

{lists.EXIT_CODES}
"""
COLUMNS = ("exchange", "key", "to", "arguments")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this sub-command."""
    lists.add_arguments(parser, "exchanges, queues")


def run(command: BaseCommand, options: dict[str, Any]) -> None:
    """List bindings. Raises CommandError for a name that is not there."""
    names = options["names"]
    with lists.seen(command) as standing:
        found = _bindings(command, standing)
        chosen = [each for each in found if not names or each.source in names or each.destination in names]
        rows = [
            (each.source, each.key, f"{each.kind} {each.destination}", lists.in_words(each.arguments))
            for each in chosen
        ]
        lists.write(command, COLUMNS, rows, [asdict(each) for each in chosen], options=options,
                    wide=2, beneath=1)  # fmt: skip
        if names:
            there = {each.name for each in standing.queues(names)} | {each.name for each in standing.exchanges(names)}
            lists.refuse_unknown("queue or exchange", names, there, is_complete=standing.is_complete)


def _bindings(command: BaseCommand, standing: Standing) -> list[Binding]:
    try:
        return standing.bindings()
    except CannotBeSeen as error:
        lists.say(command, f"{error}: these are what this project declares, and nobody has seen whether they stand.")
        return [
            Binding(source=each.exchange, destination=each.queue, key=each.key, arguments=dict(each.arguments))
            for each in desired.topology(consumers.registered()).bindings
        ]

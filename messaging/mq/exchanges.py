"""`manage.py mq exchanges`: every exchange and its type."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand

from messaging.mq import lists
from messaging.topology.existing import Exchange

HELP = "exchanges and their types"
EXAMPLES = f"""
examples:
  manage.py mq exchanges                           every exchange but those that RabbitMQ itself made
  manage.py mq exchanges --all                     these too
  manage.py mq exchanges logs --json               one, as JSON

{lists.EXIT_CODES}
"""
COLUMNS = ("exchange", "type", "how")
#: In front of the names of exchanges that every virtual host has; one more has no name.
OWN_PREFIX = "amq."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this sub-command."""
    lists.add_arguments(parser, "exchanges")
    parser.add_argument("--all", action="store_true", help="also those that RabbitMQ itself made")


def run(command: BaseCommand, options: dict[str, Any]) -> None:
    """List exchanges. Raises CommandError for a name that is not there."""
    names = options["names"]
    with lists.seen(command) as standing:
        found = standing.exchanges(names)
        chosen = [each for each in found if (each.name in names if names else options["all"] or _is_made(each))]
        rows = [(each.name or "(default)", each.type, _how(each)) for each in chosen]
        lists.write(command, COLUMNS, rows, [asdict(each) for each in chosen], options=options)
        lists.refuse_unknown("exchange", names, {each.name for each in found}, is_complete=standing.is_complete)


def _is_made(exchange: Exchange) -> bool:
    return bool(exchange.name) and not exchange.name.startswith(OWN_PREFIX)


def _how(exchange: Exchange) -> str:
    words = [
        None if exchange.durable is None else "durable" if exchange.durable else "transient",
        "auto-delete" if exchange.auto_delete else None,
        "internal" if exchange.internal else None,
    ]
    return " ".join(word for word in words if word)

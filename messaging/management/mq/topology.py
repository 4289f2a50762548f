"""`manage.py mq topology`: the exchanges, queues and bindings that the registered consumers need."""

from __future__ import annotations

import argparse
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from messaging import consumers, topology
from messaging.exceptions import BrokerUnavailable
from messaging.management.arguments import broker_unreachable
from messaging.operations.declare import declare
from messaging.topology import Topology

HELP = "show what has to stand on the broker, or declare it"
EXAMPLES = """
examples:
  manage.py mq topology                            what has to stand on the broker
  manage.py mq topology --declare                  make it so, with an account that may
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this sub-command."""
    parser.add_argument("--declare", action="store_true", help="declare it, with an account that may (role operator)")


def run(command: BaseCommand, options: dict[str, Any]) -> None:
    """Print the topology, and declare it if asked."""
    wanted = topology.wanted(consumers.registered())
    _write(command, wanted)
    if not options["declare"]:
        return
    try:
        problems = declare(wanted)
    except BrokerUnavailable as error:
        raise broker_unreachable(error) from None
    if problems:
        raise CommandError("\n".join(f"{name}: {reason}" for name, reason in problems.items()))
    command.stdout.write("Declared.")


def _write(command: BaseCommand, wanted: Topology) -> None:
    for exchange in wanted.exchanges:
        command.stdout.write(f"exchange {exchange.name} ({exchange.type})")
    for queue in wanted.queues:
        command.stdout.write(f"queue {queue.name} ({queue.arguments['x-queue-type']})")
    for binding in wanted.bindings:
        command.stdout.write(f"binding {binding.exchange} → {topology.describe(binding)} → {binding.queue}")

"""`messages cancel`: what waits shall not happen."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from messaging.actions import audit, cancel
from messaging.management.messages.selection import add_choice, chosen, counted

HELP = "what waits, and no broker has yet, shall not be published or handled"
EXAMPLES = """
A row that was to bring a message to one consumer again (a retry, a replay) leaves it dead there: it can be seen, and
replayed. What a broker has already cannot be taken back.

examples:
  manage.py messages cancel 01985c5e-9d1c-7b3a-8f00-2a1b3c4d5e6f       one message, wherever it waits
  manage.py messages cancel --consumer sms --subject W-ABC123          an order's retries at one consumer
  manage.py messages cancel --type order.placed --dry-run              how many that would be

exit codes: 0 done, 1 nothing to cancel, 2 wrong arguments, 3 database unreachable
"""


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of this sub-command."""
    add_choice(parser)


def run(command: BaseCommand, options: dict[str, Any]) -> None:
    """Cancel, and say how much that was. Raises CommandError where there was nothing."""
    wanted = chosen(options)
    if options["dry_run"]:
        done = cancel.plan(wanted)
    else:
        done = cancel.cancel(wanted, by=audit.account(), note=options["note"])
    if options["json"]:
        command.stdout.write(json.dumps(asdict(done)))
    elif done.outbox or done.inbox:
        command.stdout.write(
            f"{'Would cancel' if options['dry_run'] else 'Cancelled'} {counted(done.outbox, 'outbox row')} and "
            f"{counted(done.inbox, 'message')} waiting for a turn."
        )
    if done.leased:
        command.stderr.write(f"{counted(done.leased, 'row')} left alone: being published at this moment.")
    if not (done.outbox or done.inbox):
        raise CommandError("Nothing was cancelled: nothing like that waits.")

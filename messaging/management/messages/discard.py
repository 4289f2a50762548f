"""`messages discard`: nothing more shall come of dead messages."""

from __future__ import annotations

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from messaging.actions import audit, discard
from messaging.management.messages.selection import add_choice, chosen, counted

HELP = "nothing more shall come of dead messages"
EXAMPLES = """
A discarded message cannot be replayed. It is kept for INBOX_RETENTION_DAYS, so that a copy of it is recognised.

examples:
  manage.py messages discard 01985c5e-9d1c-7b3a-8f00-2a1b3c4d5e6f --note "test data"
  manage.py messages discard --group 3fa9c1d2e4b5 --dry-run            how many that would be

exit codes: 0 done, 1 nothing to discard, 2 wrong arguments, 3 database unreachable
"""


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of this sub-command."""
    add_choice(parser)


def run(command: BaseCommand, options: dict[str, Any]) -> None:
    """Discard, and say how many. Raises CommandError where there was none."""
    wanted = chosen(options)
    if options["dry_run"]:
        number = discard.dead(wanted).count()
    else:
        number = discard.discard(wanted, by=audit.account(), note=options["note"])
    if options["json"]:
        command.stdout.write(json.dumps({"discarded": number}))
    elif number:
        command.stdout.write(
            f"{'Would discard' if options['dry_run'] else 'Discarded'} {counted(number, 'dead message')}."
        )
    if not number:
        raise CommandError("Nothing was discarded: no message like that is dead.")

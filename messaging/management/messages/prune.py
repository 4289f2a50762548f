"""`messages prune`: what is finished and old is deleted."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from messaging.actions.prune import BATCH, prune
from messaging.management.arguments import positive
from messaging.management.messages.selection import counted

HELP = "delete what is finished and old"
EXAMPLES = """
examples:
  manage.py messages prune --dry-run                   what is finished and old, without deleting it
  manage.py messages prune                             delete it
"""


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of this sub-command."""
    parser.add_argument("--dry-run", action="store_true", help="count only")
    parser.add_argument("--batch", type=positive, default=BATCH, metavar="N", help=f"rows at a time (default {BATCH})")


def run(command: BaseCommand, options: dict[str, Any]) -> None:
    """Prune, and say how much that was."""
    pruned = prune(batch=options["batch"], dry_run=options["dry_run"])
    command.stdout.write(
        f"{'Would delete' if options['dry_run'] else 'Deleted'} {counted(pruned.outbox, 'outbox row')}, "
        f"{counted(pruned.inbox, 'inbox row')}, {counted(pruned.attempts, 'attempt')} and "
        f"{counted(pruned.effects, 'effect')}."
    )

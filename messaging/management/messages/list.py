"""`messages list`: the newest rows of outbox, inbox and effects, or failures by their kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from messaging.history import listing
from messaging.history.listing import FailureGroup, Row
from messaging.management.arguments import positive
from messaging.management.errors import EXIT_USAGE
from messaging.management.messages.selection import add_filters, add_unmasked, selection, shown
from messaging.management.tables import write_table

EXAMPLES = """
examples:
  manage.py messages list --since 2h                   what changed in the last two hours, newest first
  manage.py messages list --state dead --json          dead messages, one JSON object a line
  manage.py messages list --state unknown              effects for a person to settle
  manage.py messages list --consumer sms --limit 5     what the consumer sms received
  manage.py messages list --state failing              effects that failed and are to be tried again
  manage.py messages list --groups --since 1d          what failed in the last day (dead messages, effects), how often
"""
ROWS = ("at", "box", "state", "type", "subject", "consumer", "attempt", "message id", "reason", "id")
ROWS_ACROSS = ("at", "state", "type", "subject", "consumer")
GROUPS = ("group", "count", "consumer", "type", "newest", "reason", "state", "box")
GROUPS_ACROSS = ("group", "count", "state", "consumer", "type")


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of this sub-command."""
    parser.add_argument(
        "--state", action="append", default=[], choices=(*listing.STATES, *listing.TROUBLES), metavar="STATE",
        help=f"{', '.join(listing.STATES)}; for effects also {' and '.join(listing.TROUBLES)}; may be repeated",
    )  # fmt: skip
    add_filters(parser)
    parser.add_argument("--groups", action="store_true", help="dead messages and failed effects by failure group")
    parser.add_argument("--limit", type=positive, default=50, metavar="N", help="rows at most (default 50)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    add_unmasked(parser)


def run(command: BaseCommand, options: dict[str, Any]) -> None:
    """List rows, or failure groups. Raises CommandError where there are none."""
    columns: Sequence[str]
    found: Sequence[Row | FailureGroup]
    if not options["groups"]:
        columns, across, wide = ROWS, ROWS_ACROSS, 2
        found = listing.newest(selection(options), options["limit"], states=options["state"])
        nothing = "No message matches. Without filters, `messages list` shows the newest of all."
    elif options["state"]:
        raise CommandError(
            "--groups is about dead messages and failed effects: leave --state out.", returncode=EXIT_USAGE
        )
    else:
        columns, across, wide = GROUPS, GROUPS_ACROSS, 4
        found = listing.failure_groups(selection(options), options["limit"])
        nothing = "No dead message matches, and no effect that failed."
    if not found:
        raise CommandError(nothing)
    masked = shown(options)

    def cell(each: Row | FailureGroup, column: str) -> Any:
        value = getattr(each, column.replace(" ", "_"))
        return masked(value) if column == "reason" else value

    rows = [[cell(each, column) for column in columns] for each in found]
    write_table(command.stdout, columns, rows, as_json=options["json"], across=across, wide=wide)

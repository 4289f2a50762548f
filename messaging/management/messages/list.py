"""`messages list`: the newest rows of outbox, inbox and effects, or failures by their kind."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from messaging.history import listing
from messaging.history.listing import FailureGroup, Row
from messaging.management.arguments import positive
from messaging.management.errors import EXIT_USAGE
from messaging.management.messages.selection import add_filters, add_unmasked, selection
from messaging.management.messages.selection import shown as texts_shown
from messaging.management.tables import write_table
from messaging.management.watching import add_watch, watch

EXAMPLES = """
examples:
  manage.py messages list --since 2h                   what changed in the last two hours, newest first
  manage.py messages list --state dead --json          dead messages, one JSON object a line
  manage.py messages list --state unknown              effects for a person to settle
  manage.py messages list --consumer sms --limit 5     what the consumer sms received
  manage.py messages list --state failing              effects that failed and are to be tried again
  manage.py messages list --watch                      the newest of all, again every 2 seconds until Ctrl-C
  manage.py messages list --groups --since 1d          what failed in the last day (dead messages, effects), how often
"""
ROWS = ("at", "box", "state", "type", "subject", "consumer", "attempt", "message id", "reason", "id")
ROWS_ACROSS = ("at", "state", "type", "subject", "consumer")
GROUPS = ("group", "count", "consumer", "type", "newest", "reason", "state", "box")
GROUPS_ACROSS = ("group", "count", "state", "consumer", "type")


#: Rows shown unless --limit says another number. With --watch on a terminal: as many as fit, each with a line below.
LIMIT = 50
LINES_EACH = 3


@dataclass(frozen=True, slots=True)
class Shown:
    """What is listed: rows or failure groups, and what to say if there are none."""

    columns: Sequence[str]
    across: Sequence[str]
    wide: int
    found: Sequence[Row | FailureGroup]
    nothing: str


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of this sub-command."""
    parser.add_argument(
        "--state", action="append", default=[], choices=(*listing.STATES, *listing.TROUBLES), metavar="STATE",
        help=f"{', '.join(listing.STATES)}; for effects also {' and '.join(listing.TROUBLES)}; may be repeated",
    )  # fmt: skip
    add_filters(parser)
    parser.add_argument("--groups", action="store_true", help="dead messages and failed effects by failure group")
    parser.add_argument(
        "--limit", type=positive, metavar="N",
        help=f"rows at most (default {LIMIT}; with --watch on a terminal as many as fit)",
    )  # fmt: skip
    add_watch(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    add_unmasked(parser)


def run(command: BaseCommand, options: dict[str, Any]) -> None:
    """List rows, or failure groups, once or repeatedly. Raises CommandError where a filter finds none."""
    if options["groups"] and options["state"]:
        raise CommandError(
            "--groups is about dead messages and failed effects: leave --state out.", returncode=EXIT_USAGE
        )
    if options["watch"] is not None:
        watch(command.stdout, options["watch"], lambda: _look(command, options), as_json=options["json"])
        return
    shown = _shown(options, options["limit"] or LIMIT)
    if not shown.found and _is_filtered(options):
        raise CommandError(shown.nothing)
    _write(command, options, shown)


def _is_filtered(options: dict[str, Any]) -> bool:
    return bool(options["state"]) or not selection(options).is_everything


def _look(command: BaseCommand, options: dict[str, Any]) -> Callable[[], None]:
    fitting = max((shutil.get_terminal_size().lines - LINES_EACH) // LINES_EACH, 1)
    limit = options["limit"] or (fitting if command.stdout.isatty() else LIMIT)
    return partial(_write, command, options, _shown(options, limit))


def _shown(options: dict[str, Any], limit: int) -> Shown:
    chosen, filtered = selection(options), _is_filtered(options)
    if options["groups"]:
        nothing = "No dead message matches, and no effect that failed." if filtered else "Nothing has failed."
        return Shown(GROUPS, GROUPS_ACROSS, 4, listing.failure_groups(chosen, limit), nothing)
    nothing = "No message matches." if filtered else "There are no messages yet."
    return Shown(ROWS, ROWS_ACROSS, 2, listing.newest(chosen, limit, states=options["state"]), nothing)


def _write(command: BaseCommand, options: dict[str, Any], shown: Shown) -> None:
    if not shown.found:
        # Not on standard output: that has rows alone.
        command.stderr.write(shown.nothing, style_func=str)
        return
    masked = texts_shown(options)

    def cell(each: Row | FailureGroup, column: str) -> Any:
        value = getattr(each, column.replace(" ", "_"))
        return masked(value) if column == "reason" else value

    rows = [[cell(each, column) for column in shown.columns] for each in shown.found]
    out, as_json = command.stdout, options["json"]
    write_table(out, shown.columns, rows, as_json=as_json, across=shown.across, wide=shown.wide)

"""`manage.py messages …`: look at the messages, and keep house."""

from __future__ import annotations

import argparse
import re
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import InterfaceError, OperationalError, ProgrammingError

from messaging import database
from messaging.management.arguments import EXIT_UNREACHABLE, positive
from messaging.management.tables import Layout, quiet_when_the_reader_leaves, write_table
from messaging.operations import listing, timeline
from messaging.operations.prune import BATCH, prune

EXAMPLES = """
examples:
  manage.py messages list --since 2h                   what moved in the last two hours, newest first
  manage.py messages list --state dead --json          dead messages, one JSON object a line
  manage.py messages list --consumer sms --limit 5     what the consumer sms received
  manage.py messages show W-ABC123                     everything that happened about an order
  manage.py messages prune --dry-run                   what is finished and old, without deleting it

exit codes: 0 done, 1 nothing found, 2 wrong arguments, 3 database unreachable
"""
LIST = Layout(
    columns=("at", "box", "state", "type", "subject", "consumer", "attempt", "message id", "reason"),
    lead=("at", "state"),
    beneath=("reason", "message id"),
)
SHOW = Layout(
    columns=("at", "what", "type", "consumer", "attempt", "took", "detail", "message id", "due"),
    lead=("at", "what"),
    beneath=("detail", "message id"),
)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class Command(BaseCommand):
    help = "Look at the messages in outbox and inbox, and delete what is finished and old."

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        return super().create_parser(prog_name, subcommand, **_WITH_EXAMPLES, **kwargs)

    def add_arguments(self, parser: CommandParser) -> None:
        commands = parser.add_subparsers(required=True, metavar="list | show | prune")
        _add_list(commands.add_parser("list", help="the newest rows of outbox and inbox", **_WITH_EXAMPLES))
        show = commands.add_parser("show", help="what happened to a message, or about a subject", **_WITH_EXAMPLES)
        show.add_argument("about", metavar="ID|SUBJECT", help="a message id, or a subject such as an order number")
        show.add_argument("--json", action="store_true", help="one JSON object a line")
        show.set_defaults(run=Command._show)
        old = commands.add_parser("prune", help="delete what is finished and old", **_WITH_EXAMPLES)
        old.add_argument("--dry-run", action="store_true", help="count only")
        old.add_argument("--batch", type=positive, default=BATCH, metavar="N", help=f"rows at a time (default {BATCH})")
        old.set_defaults(run=Command._prune)

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            with quiet_when_the_reader_leaves():
                options["run"](self, options)
        except (OperationalError, InterfaceError, ProgrammingError) as error:
            reason = str(error).strip()
            if database.is_away(error):
                raise CommandError(f"The database is out of reach: {reason}", returncode=EXIT_UNREACHABLE) from None
            raise CommandError(f"The database refuses: {reason}. Did `manage.py migrate` run?") from None

    def _list(self, options: dict[str, Any]) -> None:
        wanted = listing.Wanted(
            states=options["state"],
            type=options["type"],
            consumer=options["consumer"],
            subject=options["subject"],
            since=options["since"],
        )
        rows = listing.newest(wanted, options["limit"])
        if not rows:
            raise CommandError("No message like that. Without filters, `messages list` shows the newest of all.")
        found = [
            (row.at, row.box, row.state, row.type, row.subject, row.consumer, row.attempt, row.message_id, row.reason)
            for row in rows
        ]
        write_table(self.stdout, LIST, found, as_json=options["json"])

    def _show(self, options: dict[str, Any]) -> None:
        about = options["about"]
        story = timeline.for_message(about)
        if not story.entries:
            story = timeline.for_subject(about)
        if not story.entries:
            raise CommandError(
                f"No message has the id or subject {about!r}. It may be mistyped, or was pruned after its days."
            )
        found = [
            (each.at, each.kind.value, each.type, each.consumer, each.attempt, each.duration, each.detail,
             each.message_id, each.due)
            for each in story.entries
        ]  # fmt: skip
        write_table(self.stdout, SHOW, found, as_json=options["json"])
        if story.truncated:
            self.stderr.write(f"Only the newest {timeline.ROW_LIMIT} rows are told here.")

    def _prune(self, options: dict[str, Any]) -> None:
        pruned = prune(batch=options["batch"], dry_run=options["dry_run"])
        self.stdout.write(
            f"{'Would delete' if options['dry_run'] else 'Deleted'} {_count(pruned.outbox, 'outbox row')}, "
            f"{_count(pruned.inbox, 'inbox row')} and {_count(pruned.attempts, 'attempt')}."
        )


_WITH_EXAMPLES: dict[str, Any] = {"epilog": EXAMPLES, "formatter_class": argparse.RawDescriptionHelpFormatter}


def _add_list(parser: CommandParser) -> None:
    parser.add_argument(
        "--state", action="append", default=[], choices=listing.STATES, metavar="STATE",
        help=f"{', '.join(listing.STATES)}; may be repeated",
    )  # fmt: skip
    parser.add_argument("--type", default="", help="such as order.placed")
    parser.add_argument("--consumer", default="", help="received by this consumer, or addressed to it")
    parser.add_argument("--subject", default="", help="what it is about, such as an order number")
    parser.add_argument("--since", type=_age, metavar="AGE", help="not older than this: 90s, 30m, 2h or 7d")
    parser.add_argument("--limit", type=positive, default=50, metavar="N", help="rows at most (default 50)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.set_defaults(run=Command._list)


def _age(text: str) -> timedelta:
    found = re.fullmatch(r"([0-9]{1,6})([smhd])", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no age; write 90s, 30m, 2h or 7d")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"

"""`messages show`: everything that happened to a message, or about a subject."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from messaging.history import timeline
from messaging.history.timeline import Entry
from messaging.management.messages.selection import add_unmasked, shown
from messaging.management.tables import write_table

EXAMPLES = """
examples:
  manage.py messages show W-ABC123                     everything that happened about an order
  manage.py messages show W-ABC123 --json              the same, one JSON object a line
"""
COLUMNS = (
    *("at", "what", "type", "consumer", "attempt", "took"),
    *("detail", "message id", "due", "effect", "effect id"),
)
ACROSS = ("at", "what", "type", "consumer")


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of this sub-command."""
    parser.add_argument("about", metavar="ID|SUBJECT", help="a message id, or a subject such as an order number")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    add_unmasked(parser)


def run(command: BaseCommand, options: dict[str, Any]) -> None:
    """Show the story. Raises CommandError if there is none."""
    about = options["about"]
    story = timeline.for_message(about)
    if not story.entries:
        story = timeline.for_subject(about)
    if not story.entries:
        raise CommandError(
            f"No message has the id or subject {about!r}. It may be mistyped, or was pruned after its days."
        )
    masked = shown(options)
    found = [
        (each.at, each.what, each.type, each.consumer, each.attempt, each.duration, masked(_detail(each)),
         each.message_id, each.due, each.effect, each.row.pk if each.effect else None)
        for each in story.entries
    ]  # fmt: skip
    write_table(command.stdout, COLUMNS, found, as_json=options["json"], across=ACROSS, wide=2)
    if story.truncated:
        command.stderr.write(f"Only the newest {timeline.ROW_LIMIT} rows are shown.")


def _detail(entry: Entry) -> str:
    return ": ".join(filter(None, [f"by {entry.actor}" if entry.actor else "", entry.detail]))

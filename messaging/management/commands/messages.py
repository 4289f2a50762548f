"""`manage.py messages …`: list, show and change messages."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from messaging import actions
from messaging.management.arguments import CommandWithExamples, add_subcommands
from messaging.management.errors import told_in_one_line, told_when_interrupted
from messaging.management.messages import list, reconcile, show
from messaging.management.messages.actions import ActionCommand
from messaging.management.tables import quiet_when_the_reader_leaves

EXAMPLES = """
examples:
  manage.py messages list --since 2h                   what moved in the last two hours, newest first
  manage.py messages show W-ABC123                     everything that happened about an order
  manage.py messages list --groups                     why messages are dead
  manage.py messages replay --group 3fa9c1d2e4b5 --dry-run    what a replay of one group would do
  manage.py messages replay --help                     more about one of them

exit codes: 0 done, 1 nothing found or not done, 2 wrong arguments, 3 broker or database unreachable, 6 something is
wrong, 7 not done in time, 130 interrupted
"""


def subcommands() -> dict[str, Any]:
    """Return the sub-commands by name; those that are made of actions among them."""
    made = {name: ActionCommand(action) for name, action in actions.ACTIONS.items()}
    return {"list": list, "show": show, "reconcile": reconcile, **made}


class Command(CommandWithExamples):
    help = "List, show and change the messages in outbox and inbox, and their effects."
    examples = EXAMPLES

    def add_arguments(self, parser: CommandParser) -> None:
        add_subcommands(parser, subcommands())

    def handle(self, *args: Any, **options: Any) -> None:
        with told_in_one_line(), quiet_when_the_reader_leaves(), told_when_interrupted():
            options["run"](self, options)

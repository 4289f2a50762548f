"""`manage.py messages …`: list, show and change messages."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from messaging import actions
from messaging.management.arguments import CommandWithExamples, Later, add_subcommands
from messaging.management.errors import told_in_one_line, told_when_interrupted
from messaging.management.messages.actions import ActionCommand
from messaging.management.tables import quiet_when_the_reader_leaves
from messaging.management.terminal_log import quiet_log

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
WRITTEN = {
    "list": "the newest rows of outbox, inbox and effects; or what failed, by kind of failure",
    "show": "what happened to a message, or about a subject",
    "reconcile": "name lost, doubled and stuck messages; send lost ones again",
}


def subcommands() -> dict[str, Any]:
    """Return the sub-commands by name; those that are made of actions among them."""
    made = {name: ActionCommand(action) for name, action in actions.ACTIONS.items()}
    written = {name: Later(f"messaging.management.messages.{name}", HELP) for name, HELP in WRITTEN.items()}
    return {**written, **made}


class Command(CommandWithExamples):
    help = "List, show and change the messages in outbox and inbox, and their effects."
    examples = EXAMPLES
    # The other checks import every page of the project.
    requires_system_checks = ["messaging"]

    def add_arguments(self, parser: CommandParser) -> None:
        add_subcommands(parser, subcommands())

    def handle(self, *args: Any, **options: Any) -> None:
        quiet = quiet_log(unless=options["verbosity"] > 1)
        with told_in_one_line(), quiet_when_the_reader_leaves(), told_when_interrupted(), quiet:
            options["run"](self, options)

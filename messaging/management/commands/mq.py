"""`manage.py mq …`: set the broker up, and talk to it. Each sub-command is a file of `messaging/management/mq/`."""

from __future__ import annotations

import argparse
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from messaging.management.mq import call, grants, topology

EXAMPLES = """
examples:
  manage.py mq topology                            what has to stand on the broker
  manage.py mq topology --declare                  make it so, with an account that may
  manage.py mq grants                              least rights for each kind of process, as rabbitmqctl lines
  manage.py mq grants --json > grants.json         the same for rabbitmqctl import_definitions
  manage.py mq grants --user shop=web,rpc-caller   one account for a process that does both
  manage.py mq call fib 30                         ask a procedure

exit codes: 0 done, 1 something is not as it should be, 2 wrong arguments, 3 broker unreachable, 7 no answer in time
"""
SUBCOMMANDS = (call, grants, topology)


class Command(BaseCommand):
    help = "Set the broker up: what has to stand on it, and who may do what there; and talk to it."

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        return super().create_parser(prog_name, subcommand, **_WITH_EXAMPLES, **kwargs)

    def add_arguments(self, parser: CommandParser) -> None:
        names = [each.__name__.rpartition(".")[2] for each in SUBCOMMANDS]
        commands = parser.add_subparsers(required=True, metavar=" | ".join(names))
        for name, each in zip(names, SUBCOMMANDS, strict=True):
            examples = {**_WITH_EXAMPLES, "epilog": getattr(each, "EXAMPLES", EXAMPLES)}
            subparser = commands.add_parser(name, help=each.HELP, description=each.HELP, **examples)
            each.add_arguments(subparser)
            subparser.set_defaults(run=each.run)

    def handle(self, *args: Any, **options: Any) -> None:
        options["run"](self, options)


_WITH_EXAMPLES: dict[str, Any] = {"epilog": EXAMPLES, "formatter_class": argparse.RawDescriptionHelpFormatter}

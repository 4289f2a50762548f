"""Commands whose help ends with examples, and commands made of sub-commands."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from django.core.management.base import BaseCommand, CommandError, CommandParser

from messaging.management.arguments import EXIT_USAGE


class CommandWithExamples(BaseCommand):
    """A command whose `--help` ends with `examples` as they are written."""

    examples: ClassVar[str]

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        return super().create_parser(prog_name, subcommand, **_as_written(self.examples), **kwargs)


def add_subcommands(parser: CommandParser, modules: Mapping[str, Any]) -> None:
    """Have `parser` take one of `modules` by its name; each has HELP, EXAMPLES, `add_arguments` and `run`."""
    # Short: an error says it first, and then names the sub-commands.
    parser.usage = f"{parser.prog} COMMAND [options]"
    commands = parser.add_subparsers(metavar="COMMAND", prog=parser.prog)
    parser.set_defaults(run=partial(_without_command, parser))
    for name, module in modules.items():
        subparser = commands.add_parser(name, help=module.HELP, description=module.HELP, **_as_written(module.EXAMPLES))
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)


def _without_command(parser: CommandParser, command: BaseCommand, options: dict[str, Any]) -> None:
    """Show which sub-commands there are. Raises CommandError (exit code 2)."""
    command.stderr.write(parser.format_help(), style_func=str)
    raise CommandError("Say which COMMAND.", returncode=EXIT_USAGE)


def _as_written(examples: str) -> dict[str, Any]:
    return {"epilog": examples, "formatter_class": argparse.RawDescriptionHelpFormatter}

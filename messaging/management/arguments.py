"""Arguments of commands: numbers that are checked as they are read, sub-commands, and help that ends with examples."""

from __future__ import annotations

import argparse
import difflib
import math
from collections import UserDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any, ClassVar

from django.core.management.base import BaseCommand, CommandError, CommandParser

from messaging.management.errors import EXIT_USAGE


def number(low: float, high: float = math.inf, *, whole: bool = False) -> Callable[[str], Any]:
    """Return a reader of numbers within these bounds, for argparse's `type`."""
    kind = "whole number" if whole else "number"
    bounds = f"from {low:g}" if math.isinf(high) else f"from {low:g} to {high:g}"

    def read(text: str) -> float:
        try:
            found = int(text) if whole else float(text)
        except ValueError:
            found = math.nan
        if not low <= found <= high or math.isinf(found):
            raise argparse.ArgumentTypeError(f"{text!r} is not a {kind} {bounds}")
        return found

    return read


#: AMQP counts in 16 bits.
positive = number(1, 65_535, whole=True)
#: A number of messages.
from_one = number(1, whole=True)


class CommandWithExamples(BaseCommand):
    """A command whose `--help` ends with `examples` as they are written."""

    examples: ClassVar[str]

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        return super().create_parser(prog_name, subcommand, **_as_written(self.examples), **kwargs)


class Later:
    """A sub-command whose module is imported when it is used. Only its HELP is known before."""

    def __init__(self, module: str, HELP: str, *, of_class: str = "") -> None:
        """`of_class` names the class of the module that is the sub-command, if the module itself is not."""
        self.HELP = HELP
        self._module = module
        self._of_class = of_class

    def __getattr__(self, name: str) -> Any:
        module = import_module(self._module)
        return getattr(getattr(module, self._of_class)() if self._of_class else module, name)


class _SubParser(CommandParser):
    """The parser of a sub-command, which gets its arguments when it is used."""

    module: Any = None

    def fill(self) -> None:
        """Add the arguments and the examples."""
        module, self.module = self.module, None
        if module is not None:
            self.epilog = module.EXAMPLES
            module.add_arguments(self)
            # As Django's own, which the parser before this one has, and which is looked for here.
            self.add_argument(
                "-v", "--verbosity", type=int, choices=range(4), default=argparse.SUPPRESS, metavar="N",
                help="2 shows more, and what is logged too",
            )  # fmt: skip
            self.set_defaults(run=module.run)

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        self.fill()
        return super().parse_known_args(*args, **kwargs)


class _Choices(UserDict[str, Any]):
    """The parsers of the sub-commands, by name. To argparse every name is among them: `_Subcommands` refuses it."""

    def __contains__(self, name: object) -> bool:
        return True


class _Subcommands(argparse._SubParsersAction):  # type: ignore[type-arg]  # argparse takes a subclass for `action`
    """The argument that names a sub-command. A name that is unknown is refused with the one that was probably meant."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._known = self.choices
        choices = _Choices()
        choices.data = self._known
        self.choices = choices  # type: ignore[assignment]  # argparse only looks names up in it

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        name, known = values[0], list(self._known)
        if name not in known:
            raise argparse.ArgumentError(
                self, f"unknown: {name!r}.{_did_you_mean(name, known)} Known: {', '.join(known)}"
            )
        super().__call__(parser, namespace, values, option)


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return, after a blank, the question whether the most similar known name was meant; empty if none is similar."""
    found = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {found[0]}?" if found else ""


def add_subcommands(parser: CommandParser, modules: Mapping[str, Any]) -> None:
    """Have `parser` take one of `modules` by its name; each has HELP, EXAMPLES, `add_arguments` and `run`."""
    # Short: an error says it first, and then names the sub-commands.
    parser.usage = f"{parser.prog} COMMAND [options]"
    commands = parser.add_subparsers(metavar="COMMAND", prog=parser.prog, parser_class=_SubParser, action=_Subcommands)
    parser.set_defaults(run=partial(_without_command, parser))
    for name, module in modules.items():
        subparser = commands.add_parser(name, help=module.HELP, description=module.HELP, **_as_written(""))
        subparser.module = module
        if not parser.called_from_command_line:
            subparser.fill()  # `call_command` looks which options there are before it parses any


def _without_command(parser: CommandParser, command: BaseCommand, options: dict[str, Any]) -> None:
    """Show which sub-commands there are. Raises CommandError (exit code 2)."""
    command.stderr.write(parser.format_help(), style_func=str)
    raise CommandError("Say which COMMAND.", returncode=EXIT_USAGE)


def _as_written(examples: str) -> dict[str, Any]:
    return {"epilog": examples, "formatter_class": argparse.RawDescriptionHelpFormatter}

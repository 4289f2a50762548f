"""The sub-commands of `manage.py messages` that are made of actions."""

from __future__ import annotations

import textwrap
import threading
from contextlib import nullcontext
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from messaging.actions import audit
from messaging.actions.action import Action, MessageAction, Option
from messaging.actions.selection import Selection
from messaging.actions.settle import find
from messaging.management.arguments import number
from messaging.management.errors import EXIT_INTERRUPTED, EXIT_TIMED_OUT, EXIT_USAGE
from messaging.management.messages.selection import add_choice, chosen, selection
from messaging.management.progress import progress_on
from messaging.management.tables import write_facts, write_table
from messaging.models import Effect
from messaging.processes import StopSignals

EXIT_CODES = """\
exit codes: 0 done, 1 nothing or not all done, 2 wrong arguments, 3 database unreachable, 7 not done in time,
130 interrupted
"""
PLAN = ("what", "count", "consumer", "type")


class ActionCommand:
    """A sub-command that does one action; see `add_subcommands`."""

    def __init__(self, action: Action) -> None:
        self.action = action
        self.HELP = action.help
        about = f"\n{textwrap.fill(action.meaning, 112)}\n" if isinstance(action, MessageAction) else ""
        self.EXAMPLES = f"{about}{action.examples}\n{EXIT_CODES}"
        self._is_about_effects = isinstance(action, MessageAction) and set(action.states) == {Effect}

    def add_arguments(self, parser: CommandParser) -> None:
        """Add what says which rows, and the action's options."""
        if self._is_about_effects:
            parser.add_argument(
                "effect", nargs="?", metavar="EFFECT", help="the effect's id, or its key: MESSAGE_ID:CONSUMER:NAME"
            )
            add_choice(parser, of_effects=True)
            parser.add_argument("--note", default="", metavar="TEXT", help="the reason, for the audit log")
        elif isinstance(self.action, MessageAction):
            add_choice(parser)
            parser.add_argument("--note", default="", metavar="TEXT", help="the reason, for the audit log")
        parser.add_argument("--dry-run", action="store_true", help="say what would happen, and change nothing")
        parser.add_argument("--json", action="store_true", help="one JSON object a line")
        for option in self.action.options:
            _add_option(parser, option)

    def run(self, command: BaseCommand, options: dict[str, Any]) -> None:
        """Do it, or say what it would do. Raises CommandError where nothing was done, or not all."""
        selection = self._selection(options)
        told = {option.name: options[option.name] for option in self.action.options}
        try:
            self.action.check(selection, **told)
        except ValueError as error:
            raise CommandError(f"{error}.", returncode=EXIT_USAGE) from None
        signals = StopSignals()
        with progress_on(command.stderr) as progress:
            progress.show("Looking for rows")
            if options["dry_run"]:
                result = self.action.plan(selection, **told)
            else:
                # Python sets signal handlers in the main thread only.
                with signals if threading.current_thread() is threading.main_thread() else nullcontext():
                    result = self.action.run(
                        selection,
                        by=audit.account(),
                        note=options.get("note", ""),
                        should_stop=lambda: signals.received,
                        progress=progress.show,
                        **told,
                    )
        why = "" if result.changed or result.table else self.action.why_nothing(selection, **told)
        if result.table:
            write_table(command.stdout, PLAN, result.table, as_json=options["json"])
        elif options["json"]:
            write_facts(command.stdout, [result.facts])
        elif result.text and not why:
            command.stdout.write(result.text)
        if result.stopped:
            code = EXIT_TIMED_OUT if result.timed_out else EXIT_INTERRUPTED if signals.received else 1
            raise CommandError(result.stopped, returncode=code)
        if why:
            raise CommandError(f"Nothing {'would be' if options['dry_run'] else 'was'} done: {why}.")

    def _selection(self, options: dict[str, Any]) -> Selection:
        if self._is_about_effects:
            return _effects(options)
        return chosen(options) if isinstance(self.action, MessageAction) else Selection()


def _effects(options: dict[str, Any]) -> Selection:
    """Return the effect that is named, or those that the filters choose. Raises CommandError as `chosen` does."""
    name = options["effect"]
    if name is None:
        return chosen(options, which="effects: an id")
    if options["all"] or not selection(options).is_everything:
        raise CommandError("Name one effect, or choose by filters: not both.", returncode=EXIT_USAGE)
    if effect := find(name):
        return Selection(effect_rows=[effect.pk])
    raise CommandError(f"There is no effect {name!r}; `messages list --state unknown` names them.")


def _add_option(parser: CommandParser, option: Option) -> None:
    if option.choices:
        flags = parser.add_mutually_exclusive_group(required=True)
        for value, words in option.choices.items():
            flags.add_argument(_flag(value), dest=option.name, action="store_const", const=str(value), help=words)
    else:
        read = str if option.type is str else number(option.low, option.high, whole=option.type is int)
        parser.add_argument(
            _flag(option.name), type=read, default=option.default, metavar=option.metavar or None, help=option.help
        )


def _flag(name: str) -> str:
    return f"--{name.replace(' ', '-').replace('_', '-')}"

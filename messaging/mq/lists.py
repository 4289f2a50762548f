"""What `mq queues | exchanges | bindings | consumers | connections` have in common: how they look, and say so."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from messaging.exceptions import BrokerUnavailable
from messaging.management.arguments import EXIT_UNREACHABLE, broker_unreachable
from messaging.management.tables import write_facts, write_grid
from messaging.topology.existing import CannotBeSeen, Standing, looking

EXIT_CODES = """exit codes: 0 done, 1 no such name, 2 wrong arguments, 3 broker unreachable, or it cannot be seen,
7 it did not answer in time, 130 interrupted"""


def add_arguments(parser: argparse.ArgumentParser, names: str) -> None:
    """Add what all of them take."""
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{names} (default: all)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


@contextmanager
def seen(command: BaseCommand) -> Iterator[Standing]:
    """Yield what stands on the broker, and say at the end, beside the table, how it was seen; also where names that
    were asked for are not there."""
    try:
        with looking() as standing:
            yield standing
    except CannotBeSeen as error:
        raise CommandError(f"{error}. {standing.how}", returncode=EXIT_UNREACHABLE) from None
    except BrokerUnavailable as error:
        raise broker_unreachable(error) from None
    except CommandError:
        say(command, standing.how)
        raise
    say(command, standing.how)


def say(command: BaseCommand, line: str) -> None:
    """Tell a person something beside the table: a pipe gets the table alone."""
    command.stderr.write(line, style_func=lambda text: text)


def refuse_unknown(what: str, asked: Sequence[str], found: set[str], *, is_complete: bool = True) -> None:
    """Raise CommandError where a name that was asked for is not there. Call it last: the others are shown first."""
    missing = [name for name in dict.fromkeys(asked) if name not in found]
    if missing:
        allowed = "" if is_complete else ", or this user may not look at it"
        raise CommandError(f"There is no {what} {', '.join(missing)}{allowed}.")


def write(
    command: BaseCommand,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    facts: Sequence[Mapping[str, Any]],
    *,
    options: Mapping[str, Any],
    wide: int = 0,
    beneath: int = 0,
) -> None:
    """Write the rows, or the facts that they are made of. Where names were asked for, no heading without rows."""
    if options["json"]:
        write_facts(command.stdout, facts)
    elif rows or not options["names"]:
        write_grid(command.stdout, columns, rows, wide=wide, beneath=beneath)


def in_words(table: Mapping[str, Any] | None) -> str:
    """Return an AMQP table as text."""
    return " ".join(f"{name}={value}" for name, value in sorted((table or {}).items()))

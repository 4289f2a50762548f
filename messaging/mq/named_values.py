"""NAME=VALUE, as headers and queue arguments are written on a command line."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from typing import Any

from django.core.management.base import CommandError

from messaging.management.arguments import EXIT_USAGE
from messaging.routing import EXCHANGE_TYPES, MAX_SHORT_STRING
from messaging.validation import texts

#: What is said of them in `--help`.
VALUES_HELP = "a value that is JSON is taken as such (10, true, '\"10\"'), all else as text; may be repeated"


def named_values(option: str, given: Iterable[str]) -> dict[str, Any]:
    """Return {name: value} for each NAME=VALUE of `option`. Raises CommandError (exit code 2)."""
    found: dict[str, Any] = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not name or not equals:
            raise CommandError(f"{option} {each!r}: write NAME=VALUE, such as format=pdf.", returncode=EXIT_USAGE)
        check_short(f"the name in {option}", name)
        found[name] = _value(value)
    return found


def check_short(what: str, text: str | None) -> None:
    """Raise CommandError (exit code 2) where `text` is none that AMQP takes as a name, a key or a property."""
    try:
        texts.checked(f"{what[:1].upper()}{what[1:]}", text or "", characters=None, octets=MAX_SHORT_STRING)
    except ValueError as error:
        raise CommandError(f"{error}.", returncode=EXIT_USAGE) from None


def _value(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_not_a_number)
    except (ValueError, RecursionError):
        return text


def _not_a_number(text: str) -> None:
    # NaN and Infinity are not JSON, and AMQP's clients disagree about them.
    raise ValueError(text)


def add_declare(parser: argparse.ArgumentParser, *, exchange_type: str = "") -> None:
    """Add --declare and what goes with it; `exchange_type` is the option for that, where `parser` lacks one."""
    group = parser.add_argument_group("if it is not there yet")
    group.add_argument(
        "--declare",
        action="store_true",
        help="make the queue or exchange (it stays). One that exists is used, whatever its durability and queue type",
    )
    if exchange_type:
        group.add_argument(exchange_type, choices=EXCHANGE_TYPES, dest="type", metavar="T", help=TYPE_HELP)
    group.add_argument(
        "--queue-type", choices=("classic", "quorum"), help="default: none is named, and the broker decides (classic)"
    )
    group.add_argument("--transient", action="store_true", help="not durable: it does not outlive the broker")
    group.add_argument(
        "--argument", action="append", default=[], metavar="NAME=VALUE",
        help=f"such as x-max-priority=10; {VALUES_HELP}",
    )  # fmt: skip


TYPE_HELP = f"type of the exchange: {', '.join(EXCHANGE_TYPES)}"

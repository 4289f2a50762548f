"""What the sub-commands of `mq` share on the command line: NAME=VALUE, names that AMQP takes, and --declare."""

from __future__ import annotations

import argparse
import json
import struct
from collections.abc import Iterable
from typing import Any

from django.core.management.base import CommandError

from messaging.broker.wire import write_table
from messaging.management.errors import EXIT_USAGE
from messaging.routing import EXCHANGE_TYPES, MAX_SHORT_STRING
from messaging.validation import texts

_VALUES_HELP = "a value that is valid JSON is read as JSON (10, true, '\"10\"'), any other as text; may be repeated"


def add_header(parser: argparse.ArgumentParser, what: str) -> None:
    """Add --header."""
    parser.add_argument(
        "--header", action="append", default=[], metavar="NAME=VALUE", help=f"{what} such as format=pdf; {_VALUES_HELP}"
    )


def add_declare(parser: argparse.ArgumentParser, *, exchange_type: str) -> None:
    """Add --declare and what goes with it; `exchange_type` is the name of that option."""
    group = parser.add_argument_group("if it does not exist yet")
    group.add_argument(
        "--declare",
        action="store_true",
        help="declare the queue or exchange (it stays); one that exists is used, whatever its durability and type",
    )
    types = f"type of the exchange: {', '.join(EXCHANGE_TYPES)}"
    group.add_argument(exchange_type, choices=EXCHANGE_TYPES, dest="type", metavar="T", help=types)
    group.add_argument("--queue-type", choices=("classic", "quorum"), help="default: the broker's (classic)")
    group.add_argument("--transient", action="store_true", help="not durable: a restart of the broker deletes it")
    group.add_argument(
        "--argument", action="append", default=[], metavar="NAME=VALUE",
        help=f"such as x-max-priority=10; {_VALUES_HELP}",
    )  # fmt: skip


def check_declare(options: dict[str, Any], exchange_type: str, *, of_exchange: bool) -> None:
    """Read --argument into `options["arguments"]`.

    Raises CommandError (exit code 2) where --declare lacks something, or something lacks --declare.
    """
    options["arguments"] = named_values("--argument", options["argument"])
    try:
        write_table(options["arguments"])
    except (ValueError, struct.error) as error:
        raise usage_error(f"AMQP cannot carry a value of --argument: {error}.") from None
    problem = ""
    if of_exchange and options["queue_type"]:
        problem = "--queue-type goes with a queue."
    elif not of_exchange and options["type"]:
        problem = f"{exchange_type} goes with an exchange."
    elif options["declare"] and of_exchange and not options["type"]:
        problem = f"To declare an exchange say its type: {exchange_type} direct, fanout, topic or headers."
    elif not options["declare"] and any(options[each] for each in ("type", "queue_type", "transient", "argument")):
        problem = f"{exchange_type}, --queue-type, --transient and --argument go with --declare."
    if problem:
        raise usage_error(problem)


def named_values(option: str, given: Iterable[str]) -> dict[str, Any]:
    """Return {name: value} for each NAME=VALUE of `option`. Raises CommandError (exit code 2)."""
    found: dict[str, Any] = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not name or not equals:
            raise usage_error(f"{option} {each!r}: write NAME=VALUE, such as format=pdf.")
        check_short(f"the name in {option}", name)
        found[name] = _value(value)
    return found


def check_short(what: str, text: str | None) -> None:
    """Raise CommandError (exit code 2) where AMQP does not take `text` as a name, a key or a property."""
    try:
        texts.checked(f"{what[:1].upper()}{what[1:]}", text or "", characters=None, octets=MAX_SHORT_STRING)
    except ValueError as error:
        raise usage_error(f"{error}.") from None


def usage_error(text: str) -> CommandError:
    """Return the error for wrong arguments (exit code 2)."""
    return CommandError(text, returncode=EXIT_USAGE)


def _value(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_not_json)
    except (ValueError, RecursionError):
        return text


def _not_json(text: str) -> None:
    # NaN and Infinity are not JSON, and AMQP's clients disagree about them.
    raise ValueError(text)

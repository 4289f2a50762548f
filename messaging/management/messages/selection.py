"""Arguments by which sub-commands are told which messages are meant."""

from __future__ import annotations

import argparse
import re
from datetime import timedelta
from typing import Any

from django.core.management.base import CommandError, CommandParser

from messaging.actions.selection import Wanted
from messaging.management.arguments import EXIT_USAGE
from messaging.models import InboxMessage, OutboxMessage

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def add_filters(parser: CommandParser) -> None:
    """Add the filters that `wanted` reads."""
    parser.add_argument("--type", default="", help="such as order.placed")
    parser.add_argument("--consumer", default="", help="received by this consumer, or addressed to it")
    parser.add_argument("--subject", default="", help="what it is about, such as an order number")
    parser.add_argument("--since", type=age, metavar="AGE", help="not older than this: 90s, 30m, 2h or 7d")
    parser.add_argument("--reason", default="", metavar="TEXT", help="what went wrong contains this")
    parser.add_argument("--group", default="", help="a failure group; `messages list --groups` names them")


def add_choice(parser: CommandParser) -> None:
    """Add what a sub-command that changes messages is told: which ones, why, and how to answer."""
    parser.add_argument("ids", nargs="*", metavar="ID", help="message ids")
    add_filters(parser)
    parser.add_argument("--all", action="store_true", help="all there are; without it, say which")
    parser.add_argument("--note", default="", metavar="TEXT", help="why, for the audit log")
    parser.add_argument("--dry-run", action="store_true", help="say what would happen, and change nothing")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def wanted(options: dict[str, Any]) -> Wanted:
    """Return what the filters ask for."""
    return Wanted(
        message_ids=tuple(dict.fromkeys(options.get("ids", ()))),
        type=options["type"],
        consumer=options["consumer"],
        subject=options["subject"],
        reason=options["reason"],
        group=options["group"],
        since=options["since"],
    )


def chosen(options: dict[str, Any]) -> Wanted:
    """Return what was chosen to be changed. Raises CommandError where nothing was said, or an id is unknown."""
    found = wanted(options)
    if found.is_everything != options["all"]:
        raise CommandError("Say which messages: ids, filters, or --all and nothing else.", returncode=EXIT_USAGE)
    known = {
        message_id
        for box in (OutboxMessage, InboxMessage)
        for message_id in box._default_manager.filter(message_id__in=found.message_ids)
        .values_list("message_id", flat=True)
        .distinct()
    }
    unknown = [message_id for message_id in found.message_ids if message_id not in known]
    if unknown:
        raise CommandError(
            f"No message has the id {', '.join(unknown)}. It may be mistyped, or was pruned after its days. "
            "Nothing was changed."
        )
    return found


def age(text: str) -> timedelta:
    """Read an age such as 90s or 2h, as argparse's `type`."""
    found = re.fullmatch(r"([0-9]{1,6})([smhd])", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no age; write 90s, 30m, 2h or 7d")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural where that is due."""
    return f"{number} {noun}{'' if number == 1 else 's'}"

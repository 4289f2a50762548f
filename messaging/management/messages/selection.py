"""Arguments that say which messages a sub-command is about, and how their errors are shown."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from django.core.management.base import CommandError, CommandParser

from messaging.actions.selection import Selection
from messaging.management.errors import EXIT_USAGE
from messaging.masking import masked_text
from messaging.models import InboxMessage, OutboxMessage

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def add_filters(parser: CommandParser) -> None:
    """Add the filters that `selection` reads."""
    parser.add_argument("--type", default="", help="such as order.placed")
    parser.add_argument("--consumer", default="", help="messages that this consumer received, or that are for it alone")
    parser.add_argument("--subject", default="", help="what it is about, such as an order number")
    parser.add_argument("--since", type=age, metavar="AGE", help="at most this old: 90s, 30m, 2h or 7d")
    parser.add_argument("--reason", default="", metavar="TEXT", help="the reason or error contains this text")
    parser.add_argument("--group", default="", help="one failure group; `messages list --groups` lists them")


def add_choice(parser: CommandParser, *, of_effects: bool = False) -> None:
    """Add what `chosen` reads: ids and filters, or filters of effects alone."""
    if not of_effects:
        parser.add_argument("ids", nargs="*", metavar="ID", help="message ids")
    add_filters(parser)
    what = "effect" if of_effects else "message"
    parser.add_argument(
        "--all", action="store_true", help=f"every {what} that the action applies to; required if nothing else chooses"
    )


def selection(options: dict[str, Any]) -> Selection:
    """Return what the filters ask for."""
    names = ("type", "consumer", "subject", "reason", "group", "since")
    return Selection(
        message_ids=tuple(dict.fromkeys(options.get("ids", ()))), **{name: options[name] for name in names}
    )


def chosen(options: dict[str, Any], *, which: str = "messages: ids") -> Selection:
    """Return what was chosen to be changed. Raises CommandError where nothing was said, or an id is unknown."""
    found = selection(options)
    if found.is_everything != options["all"]:
        raise CommandError(f"Say which {which}, filters, or --all and nothing else.", returncode=EXIT_USAGE)
    known: set[str] = set()
    for box in (OutboxMessage, InboxMessage):
        rows = box._default_manager.filter(message_id__in=found.message_ids)
        known.update(rows.values_list("message_id", flat=True).distinct())
    if unknown := [message_id for message_id in found.message_ids if message_id not in known]:
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


def add_unmasked(parser: argparse.ArgumentParser) -> None:
    """Add the flag that `shown` reads. A terminal is looked at, copied and pasted."""
    parser.add_argument(
        "--unmasked", action="store_true", help="show phone numbers and secrets in errors instead of masking them"
    )


def shown(options: dict[str, Any]) -> Callable[[str], str]:
    """Return the function that masks stored texts, or with --unmasked leaves them as they are."""
    return str if options["unmasked"] else masked_text

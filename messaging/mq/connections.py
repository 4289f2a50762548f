"""`manage.py mq connections`: whose connections the broker has."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand

from messaging.mq import lists
from messaging.topology.existing import OpenConnection

HELP = "connections: who is connected, from where"
EXAMPLES = f"""
examples:
  manage.py mq connections                         every connection; without the tag `monitoring`, this user's own
  manage.py mq connections warren-web              those of this user, or of this name

{lists.EXIT_CODES}
"""
COLUMNS = ("connection", "user", "from", "state", "channels", "since")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this sub-command."""
    lists.add_arguments(parser, "names of connections, users")


def run(command: BaseCommand, options: dict[str, Any]) -> None:
    """List connections. Raises CommandError for a name that is not there."""
    names = options["names"]
    with lists.seen(command) as standing:
        found = standing.connections()
        sees_all = standing.sees_all_connections()
        there = {name for each in found for name in (each.name, each.user)}
        chosen = [each for each in found if not names or each.name in names or each.user in names]
        lists.write(command, COLUMNS, [_row(each) for each in chosen], [asdict(each) for each in chosen],
                    options=options, beneath=1)  # fmt: skip
        if not sees_all:
            lists.say(command, "Only this user's own: those of others are for users with the tag `monitoring`.")
        lists.refuse_unknown("connection", names, there, is_complete=sees_all)


def _row(each: OpenConnection) -> tuple[Any, ...]:
    return each.name, each.user, each.address, each.state, each.channels, each.since

"""`manage.py mq grants`: who may do what at the broker, for rabbitmqctl. No password appears anywhere in it."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterator
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from messaging import conf, consumers
from messaging.management.errors import EXIT_USAGE
from messaging.topology import desired
from messaging.topology.permissions import Grant, Role, grant, roles

HELP = "print the least rights that each kind of process needs, as rabbitmqctl lines or JSON"
EXAMPLES = """
examples:
  manage.py mq grants                              an account for each kind of process, as rabbitmqctl lines
  manage.py mq grants --json > grants.json         the same for rabbitmqctl import_definitions
  manage.py mq grants --user shop=web,rpc-caller   one account for a process that does both

exit codes: 0 done, 2 wrong arguments
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this sub-command."""
    parser.add_argument(
        "--user", action="append", default=[], metavar="NAME=ROLE[,ROLE…]",
        help="an account and what it is used for; may be repeated (default: an account for each role)",
    )  # fmt: skip
    parser.add_argument("--vhost", help="default: that of AMQP_URL")
    parser.add_argument(
        "--json",
        action="store_true",
        help="as `rabbitmqctl import_definitions` takes it: permissions, and the exchanges that they name",
    )


def run(command: BaseCommand, options: dict[str, Any]) -> None:
    """Print the grants."""
    vhost = options["vhost"] or conf.get().brokers[0].vhost
    grants = list(_wanted(options["user"]))
    if options["json"]:
        command.stdout.write(json.dumps(_definitions(grants, vhost), indent=2, ensure_ascii=False))
        return
    command.stdout.write(
        "# add_user asks for the password, or reads it from standard input. Only add_user is for once: run the others\n"
        "# again after each deploy that changes events, consumers or procedures."
    )
    for each in grants:
        command.stdout.write("\n" + "\n".join(_lines(each, vhost)))
    if topics := [line for each in grants for line in _topic_lines(each, vhost)]:
        command.stdout.write(
            "\n# By which keys they may publish and bind; without these by any. RabbitMQ 4.3 takes them only for\n"
            "# exchanges that stand, and forgets them with their exchange: run `manage.py mq topology declare` first.\n"
            + "\n".join(topics)
        )


def _wanted(users: list[str]) -> Iterator[Grant]:
    known = {role.name: role for role in roles()}
    if not users:
        for role in known.values():
            yield grant(f"{conf.get().app_id}-{role.name}", [role])
    for each in users:
        name, _, wanted = each.partition("=")
        if not name or not wanted:
            raise CommandError(f"--user {each!r}: write NAME=ROLE, such as shop=web.", returncode=EXIT_USAGE)
        yield grant(name, [_known(known, role.strip()) for role in wanted.split(",") if role.strip()])


def _known(known: dict[str, Role], name: str) -> Role:
    if name not in known:
        raise CommandError(f"There is no role {name!r}. Roles: {', '.join(known)}.", returncode=EXIT_USAGE)
    return known[name]


def _lines(grant: Grant, vhost: str) -> Iterator[str]:
    for purpose in grant.purposes:
        yield f"# {purpose}"
    # "--": a name may begin with a dash. For others not: in RabbitMQ 4 rabbitmqctl reads a password only where the name
    # is the one argument of add_user.
    yield shlex.join(["rabbitmqctl", "add_user", *(["--"] if grant.user.startswith("-") else []), grant.user])
    yield shlex.join(
        ["rabbitmqctl", "set_permissions", "-p", vhost, "--", grant.user, grant.configure, grant.write, grant.read]
    )


def _topic_lines(grant: Grant, vhost: str) -> Iterator[str]:
    for topic in grant.topics:
        yield shlex.join(
            ["rabbitmqctl", "set_topic_permissions", "-p", vhost, "--", grant.user, topic.exchange,
             topic.write, topic.read]
        )  # fmt: skip


def _definitions(grants: list[Grant], vhost: str) -> dict[str, Any]:
    # Without users: to import one would take its password away. With the exchanges: RabbitMQ 4.3 knows no permissions
    # for one that is not there. One that is there stays as it is.
    named = {topic.exchange for each in grants for topic in each.topics}
    return {
        "exchanges": [
            {
                "name": each.name,
                "vhost": vhost,
                "type": each.type,
                "durable": True,
                "auto_delete": False,
                "internal": False,
                "arguments": {},
            }
            for each in desired.topology(consumers.registered()).exchanges
            if each.name in named
        ],
        "permissions": [
            {"user": each.user, "vhost": vhost, "configure": each.configure, "write": each.write, "read": each.read}
            for each in grants
        ],
        "topic_permissions": [
            {"user": each.user, "vhost": vhost, "exchange": topic.exchange, "write": topic.write, "read": topic.read}
            for each in grants
            for topic in each.topics
        ],
    }

"""`manage.py mq grants`: the least permissions at the broker, for rabbitmqctl. It prints no password."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterator
from typing import Any

from django.core.management.base import BaseCommand

from messaging import conf, consumers
from messaging.mq.options import usage_error
from messaging.topology import desired
from messaging.topology.permissions import Grant, grant, roles

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
    """Print the permissions."""
    grants = list(_grants(options["user"], options["vhost"] or conf.get().brokers[0].vhost))
    if options["json"]:
        command.stdout.write(json.dumps(_definitions(grants), indent=2, ensure_ascii=False))
        return
    command.stdout.write(
        "# add_user asks for the password, or reads it from standard input. Run add_user once, and the others again\n"
        "# after each deploy that changes events, consumers or procedures."
    )
    for each in grants:
        command.stdout.write("\n" + "\n".join(_lines(each)))
    if topics := [_line("set_topic_permissions", topic, "exchange") for each in grants for topic in each.topics]:
        command.stdout.write(
            "\n# By which keys they may publish and bind; without these by any. RabbitMQ 4.3 takes them only for\n"
            "# exchanges that exist, and forgets them with their exchange: run `manage.py mq topology declare` first.\n"
            + "\n".join(topics)
        )


def _grants(users: list[str], vhost: str) -> Iterator[Grant]:
    known = {role.name: role for role in roles()}
    if not users:
        for role in known.values():
            yield grant(f"{conf.get().app_id}-{role.name}", vhost, [role])
    for each in users:
        user, _, asked = each.partition("=")
        names = [name.strip() for name in asked.split(",") if name.strip()]
        if not user or not names:
            raise usage_error(f"--user {each!r}: write NAME=ROLE, such as shop=web.")
        if unknown := [name for name in names if name not in known]:
            raise usage_error(f"There is no role {unknown[0]!r}. Roles: {', '.join(known)}.")
        yield grant(user, vhost, [known[name] for name in names])


def _lines(grant: Grant) -> Iterator[str]:
    for purpose in grant.purposes:
        yield f"# {purpose}"
    # Only a name that begins with a dash gets "--": in RabbitMQ 4 rabbitmqctl reads a password only if the name is the
    # one argument of add_user.
    yield shlex.join(["rabbitmqctl", "add_user", *(["--"] if grant.user.startswith("-") else []), grant.user])
    yield _line("set_permissions", grant.permission, "configure")


def _line(command: str, permission: dict[str, str], first: str) -> str:
    values = [permission[name] for name in ("user", first, "write", "read")]
    return shlex.join(["rabbitmqctl", command, "-p", permission["vhost"], "--", *values])


def _definitions(grants: list[Grant]) -> dict[str, Any]:
    # Without users: importing one would remove its password. With the exchanges: RabbitMQ 4.3 takes no topic permission
    # for one that is missing; one that exists is left unchanged.
    vhosts = {topic["exchange"]: topic["vhost"] for each in grants for topic in each.topics}
    durable = {"durable": True, "auto_delete": False, "internal": False, "arguments": {}}
    return {
        "exchanges": [
            {"name": each.name, "vhost": vhosts[each.name], "type": each.type, **durable}
            for each in desired.topology(consumers.registered()).exchanges
            if each.name in vhosts
        ],
        "permissions": [each.permission for each in grants],
        "topic_permissions": [topic for each in grants for topic in each.topics],
    }

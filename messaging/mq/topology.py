"""`manage.py mq topology`: what has to stand on the broker; declare it, compare it, and mend where it differs."""

from __future__ import annotations

import argparse
from textwrap import wrap
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from messaging import consumers, procedures
from messaging.exceptions import BrokerUnavailable, OperationRefused
from messaging.management.arguments import EXIT_UNHEALTHY, EXIT_USAGE, broker_refuses, broker_unreachable, positive
from messaging.management.tables import write_facts, write_grid
from messaging.mq.lists import in_words, say
from messaging.topology import desired, drift, mending
from messaging.topology.declare import NotReplaced, declare, replace

HELP = "what has to stand on the broker: show it, declare it, compare it with what stands, plan how to mend that"
EXAMPLES = """
examples:
  manage.py mq topology                            what events, consumers and procedures want on the broker
  manage.py mq topology declare                    make it so, with an account that may (role operator)
  manage.py mq topology diff                       where the broker stands otherwise; for cron: 0 means nowhere
  manage.py mq topology plan                       the safe steps to mend it, in order
  manage.py mq topology plan > steps.sh            the same as a script to read, and run line by line
  manage.py mq topology declare --replace orders.sms
                                                   delete a queue that differs, once it is empty, and declare it anew

exit codes: 0 done, no drift; 1 not as wanted, or refused; 2 wrong arguments; 3 broker unreachable; 6 drift; 7 it did
not answer in time; 130 interrupted
"""
_COMMENT: dict[str, Any] = {"subsequent_indent": "#    ", "break_long_words": False, "break_on_hyphens": False}
ACTIONS = ("show", "declare", "diff", "plan")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this sub-command."""
    parser.add_argument("action", nargs="?", choices=ACTIONS, default="show", help="default: show")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument(
        "--replace", metavar="NAME",
        help="with declare: an exchange or a queue that stands otherwise is deleted and declared anew",
    )  # fmt: skip
    parser.add_argument(
        "--wait", type=positive, default=30, metavar="S", help="seconds to wait for that queue to be empty (default 30)"
    )


def run(command: BaseCommand, options: dict[str, Any]) -> None:
    """Do what was asked for. Raises CommandError."""
    if options["replace"] and options["action"] != "declare":
        raise CommandError("--replace goes with `declare`.", returncode=EXIT_USAGE)
    actions = {"show": _show, "declare": _declare, "diff": _diff, "plan": _plan}
    try:
        actions[options["action"]](command, options)
    except BrokerUnavailable as error:
        raise broker_unreachable(error) from None


def _show(command: BaseCommand, options: dict[str, Any]) -> None:
    facts = [*_wanted_facts()]
    if options["json"]:
        write_facts(command.stdout, facts)
        return
    rows = [
        (each["name"], each["kind"], each.get("type") or each.get("exchange", ""), each.get("key", ""),
         in_words(each.get("arguments")))
        for each in facts
    ]  # fmt: skip
    write_grid(command.stdout, ("name", "kind", "type or exchange", "key", "arguments"), rows, beneath=1)


def _wanted_facts() -> list[dict[str, Any]]:
    wanted = desired.topology(consumers.registered())
    by_queue = {each.queue: each.name for each in consumers.registered()}
    return [
        *({"kind": "exchange", "name": each.name, "type": each.type} for each in wanted.exchanges),
        *(
            {
                "kind": "queue", "name": each.name, "type": each.arguments["x-queue-type"],
                "consumer": by_queue.get(each.name, ""), "arguments": each.arguments,
            }
            for each in wanted.queues
        ),
        *(
            {
                "kind": "binding", "name": each.queue, "exchange": each.exchange, "key": each.key,
                "arguments": dict(each.arguments),
            }
            for each in wanted.bindings
        ),
        *(
            {"kind": "request queue", "name": each.queue, "type": "classic", "procedure": each.name}
            for each in procedures.registered()
        ),
        *({"kind": "broadcast", "name": each.name, "type": "exclusive"} for each in consumers.broadcasting()),
    ]  # fmt: skip


def _declare(command: BaseCommand, options: dict[str, Any]) -> None:
    if options["replace"]:
        _replace(command, options["replace"], options["wait"])
        return
    wanted = desired.topology(consumers.registered())
    problems = declare(wanted)
    if options["json"]:
        write_facts(command.stdout, [{"name": name, "problem": reason} for name, reason in problems.items()])
    if problems:
        told = "\n".join(f"{name}: {reason}" for name, reason in problems.items())
        raise CommandError(f"{told}\n`manage.py mq topology plan` says what to do where something stands otherwise.")
    if not options["json"]:
        counts = f"{len(wanted.exchanges)} exchanges, {len(wanted.queues)} queues, {len(wanted.bindings)} bindings"
        command.stdout.write(f"Declared: {counts}.")


def _replace(command: BaseCommand, name: str, patience: int) -> None:
    try:
        needed = replace(name, patience)
    except NotReplaced as error:
        raise CommandError(str(error)) from None
    except OperationRefused as error:
        raise broker_refuses(error) from None
    command.stdout.write(f"Replaced {name}." if needed else f"{name} does not differ: nothing was deleted.")


def _diff(command: BaseCommand, options: dict[str, Any]) -> None:
    found = drift.look()
    if options["json"]:
        write_facts(
            command.stdout,
            [
                *({"id": each.kind.value, "finding": each.kind.words, "name": each.name, "said": each.said,
                   "hint": each.hint, "is_wrong": each.is_wrong} for each in found.findings),
                *({"id": drift.NOT_LOOKED_AT, "finding": "unseen", "said": each, "is_wrong": False}
                  for each in found.unseen),
            ],
        )  # fmt: skip
    else:
        rows = [
            (each.kind.value, each.kind.words if each.is_wrong else f"note: {each.kind.words}", each.said, each.hint)
            for each in found.findings
        ]
        if rows:
            write_grid(command.stdout, ("id", "finding", "what", "hint"), rows, wide=2, beneath=1)
    say(command, found.how)
    for each in found.unseen:
        say(command, f"Nobody has seen: {each}.")
    if found.wrong:
        raise CommandError(
            f"{len(found.wrong)} drifted: `manage.py mq topology plan` prints what to do.", returncode=EXIT_UNHEALTHY
        )
    if not options["json"]:
        say(command, "No drift." if not found.unseen else "No drift in what could be seen.")


def _plan(command: BaseCommand, options: dict[str, Any]) -> None:
    found = drift.look()
    steps = mending.plan(found)
    if options["json"]:
        write_facts(command.stdout, [{"why": each.why, "command": each.command} for each in steps])
    else:
        for number, each in enumerate(steps, 1):
            for line in wrap(each.why, 95, initial_indent=f"# {number}. ", **_COMMENT):
                command.stdout.write(line)
            if each.command:
                command.stdout.write(each.command)
            command.stdout.write("")
    say(command, found.how)
    for unseen in found.unseen:
        say(command, f"Nobody has seen: {unseen}.")
    if not steps:
        say(command, "Nothing to do.")

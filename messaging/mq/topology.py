"""`manage.py mq topology`: what this project declares on the broker: show it, declare it, compare it."""

from __future__ import annotations

import argparse
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from messaging import consumers, procedures
from messaging.management.arguments import positive
from messaging.management.errors import EXIT_UNHEALTHY, EXIT_USAGE
from messaging.management.progress import progress_on
from messaging.management.tables import write_facts, write_table
from messaging.mq.lists import in_words, needing_the_management_api
from messaging.topology import desired, drift
from messaging.topology.declare import NotReplaced, declare, replace

EXAMPLES = """
examples:
  manage.py mq topology                            what events, consumers and procedures need on the broker
  manage.py mq topology declare                    declare it, with an account that may (role operator)
  manage.py mq topology diff                       where the broker differs, and what to do; for cron: 0 means nowhere
  manage.py mq topology declare --replace orders.sms
                                                   delete a queue that differs, once it is empty, and declare it again

exit codes: 0 done, no drift; 1 not as declared, or refused; 2 wrong arguments; 3 broker or management API unreachable;
6 drift; 7 it did not answer in time; 130 interrupted
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this sub-command."""
    parser.add_argument("action", nargs="?", choices=("show", "declare", "diff"), default="show", help="default: show")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument(
        "--replace", metavar="NAME",
        help="with declare: delete an exchange or a queue that differs, and declare it again",
    )  # fmt: skip
    parser.add_argument(
        "--wait", type=positive, default=30, metavar="S", help="seconds to wait for that queue to be empty (default 30)"
    )


def run(command: BaseCommand, options: dict[str, Any]) -> None:
    """Show, declare or compare. Raises CommandError."""
    if options["replace"] and options["action"] != "declare":
        raise CommandError("--replace goes with `declare`.", returncode=EXIT_USAGE)
    actions = {"show": _show, "declare": _declare, "diff": _diff}
    with needing_the_management_api():
        actions[options["action"]](command, options)


def _show(command: BaseCommand, options: dict[str, Any]) -> None:
    facts = _facts()
    if options["json"]:
        write_facts(command.stdout, facts)
        return
    rows = [
        (each["name"], each["kind"], each.get("type") or each.get("exchange", ""), each.get("key", ""),
         in_words(each.get("arguments", {})))
        for each in facts
    ]  # fmt: skip
    write_table(command.stdout, ("name", "kind", "type or exchange", "key", "arguments"), rows, beneath=1)


def _facts() -> list[dict[str, Any]]:
    topology = desired.topology(consumers.registered())
    by_queue = {each.queue: each.name for each in consumers.registered()}
    return [
        *({"kind": "exchange", "name": each.name, "type": each.type} for each in topology.exchanges),
        *(
            {
                "kind": "queue", "name": each.name, "type": each.arguments["x-queue-type"],
                "consumer": by_queue.get(each.name, ""), "arguments": each.arguments,
            }
            for each in topology.queues
        ),
        *(
            {
                "kind": "binding", "name": each.queue, "exchange": each.exchange, "key": each.key,
                "arguments": dict(each.arguments),
            }
            for each in topology.bindings
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
    topology = desired.topology(consumers.registered())
    problems = declare(topology)
    if options["json"]:
        write_facts(command.stdout, [{"name": name, "problem": reason} for name, reason in problems.items()])
    if problems:
        told = "\n".join(f"{name}: {reason}" for name, reason in problems.items())
        raise CommandError(f"{told}\n`manage.py mq topology diff` says what to do where something differs.")
    if not options["json"]:
        exchanges, queues, bindings = map(len, (topology.exchanges, topology.queues, topology.bindings))
        command.stdout.write(f"Declared: {exchanges} exchanges, {queues} queues, {bindings} bindings.")


def _replace(command: BaseCommand, name: str, patience: int) -> None:
    try:
        with progress_on(command.stderr) as progress:
            progress.show(f"Replacing {name}; if it is a queue, once it is empty, for which {patience} s are given")
            needed = replace(name, patience)
    except NotReplaced as error:
        raise CommandError(str(error)) from None
    command.stdout.write(f"Replaced {name}." if needed else f"{name} does not differ: nothing was deleted.")


def _diff(command: BaseCommand, options: dict[str, Any]) -> None:
    found = drift.look()
    if options["json"]:
        write_facts(
            command.stdout,
            [
                {"id": each.kind.value, "finding": each.kind.words, "name": each.name, "said": each.text,
                 "hint": each.hint, "is_wrong": each.is_wrong} for each in found
            ],
        )  # fmt: skip
    elif found:
        rows = [
            (each.kind.value, each.kind.words if each.is_wrong else f"note: {each.kind.words}", each.text, each.hint)
            for each in found
        ]
        write_table(command.stdout, ("id", "finding", "what", "hint"), rows, wide=2, beneath=1)
    if wrong := sum(each.is_wrong for each in found):
        raise CommandError(f"{wrong} drifted: each hint says what to do.", returncode=EXIT_UNHEALTHY)
    if not options["json"]:
        command.stderr.write("No drift.", style_func=str)

"""`manage.py mq status`: broker, queues, outbox, inbox and effects on one screen, what is wrong first."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from django.core.management.base import BaseCommand, CommandError, OutputWrapper

from messaging.management.errors import EXIT_TIMED_OUT, EXIT_UNHEALTHY, EXIT_UNREACHABLE, told_in_one_line
from messaging.management.tables import write_facts, write_table
from messaging.management.watching import add_watch, clock, watch
from messaging.monitoring import status
from messaging.monitoring.status import Status

EXAMPLES = """
examples:
  manage.py mq status                              one look; for cron: 0 means all is well
  manage.py mq status --watch                      again every 2 seconds, until Ctrl-C
  manage.py mq status --watch 10 --json            a JSON object every 10 seconds

exit codes: 0 all is well, 2 wrong arguments, 3 broker or database unreachable, 6 something is wrong,
7 the broker did not answer in time, 130 interrupted; --watch ends with 0 by Ctrl-C
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this sub-command."""
    add_watch(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object for each look")


def run(command: BaseCommand, options: dict[str, Any]) -> None:
    """Show the status, once or repeatedly. Raises CommandError if something is wrong."""
    if options["watch"] is not None:
        watch(command.stdout, options["watch"], lambda: _look(command, options), as_json=options["json"])
        return
    with told_in_one_line():
        found = status.look()
    _write(command, found, as_json=options["json"])
    if found.wrong:
        raise CommandError(_told_at_the_end(found, command.stdout), returncode=_exit_code(found))


def _look(command: BaseCommand, options: dict[str, Any]) -> Callable[[], None]:
    return partial(_write, command, status.look(), as_json=options["json"])


def _exit_code(found: Status) -> int:
    if found.broker.unreachable:
        return EXIT_TIMED_OUT if found.broker.silent else EXIT_UNREACHABLE
    return EXIT_UNHEALTHY


def _told_at_the_end(found: Status, out: OutputWrapper) -> str:
    """Return the last line. A terminal has shown all that is wrong already; elsewhere standard error may be all that is
    read."""
    number = len(found.wrong)
    if out.isatty():
        return "One thing is wrong; see the top." if number == 1 else f"{number} things are wrong; see the top."
    return f"{number} wrong: {found.wrong[0]}"


def _write(command: BaseCommand, found: Status, *, as_json: bool) -> None:
    if as_json:
        write_facts(command.stdout, [_facts(found)])
        return
    out = command.stdout
    for line in _lines(found):
        out.write(line)
    rows = [(each.name, each.type, each.ready, each.unacked, each.consumers) for each in found.broker.queues]
    if rows:
        write_table(out, ("queue", "type", "ready", "unacked", "consumers"), rows)
    if not out.isatty():
        out.write("")
    out.flush()


def _lines(found: Status) -> Iterator[str]:
    broker, boxes = found.broker, found.boxes
    yield f"{clock()}  {f'{len(found.wrong)} WRONG' if found.wrong else 'all is well'}"
    for each in found.wrong:
        yield f"  ! {each}"
    if broker.server:
        alarms = "alarms unknown" if broker.alarms is None else broker.alarms or "no alarm"
        yield f"broker   {broker.server}, {alarms}. {broker.how}"
    age = f", the oldest for {_age(boxes.oldest_age)}" if boxes.oldest_age is not None else ""
    yield f"outbox   {boxes.pending} pending, {boxes.unroutable} unroutable, {boxes.failed} failed{age}"
    yield f"inbox    {boxes.retrying} retrying, {boxes.waiting} waiting for their turn, {boxes.dead} dead"
    yield f"effects  {', '.join(f'{count} {trouble}' for trouble, count in boxes.effects.items())}"


def _facts(found: Status) -> dict[str, Any]:
    broker, boxes = found.broker, found.boxes
    counts = {name: getattr(boxes, name).number for name in
              ("pending", "unroutable", "failed", "retrying", "waiting", "dead", "failing_for_long")}  # fmt: skip
    return {
        "at": datetime.now(UTC),
        "wrong": found.wrong,
        "broker": {
            "reachable": not broker.unreachable, "why_not": broker.unreachable, "server": broker.server,
            "alarms": broker.alarms, "how": broker.how,
        },
        "queues": [asdict(queue) for queue in broker.queues],
        "outbox": {
            **{name: counts[name] for name in ("pending", "unroutable", "failed")},
            "oldest_seconds": boxes.oldest_age.total_seconds() if boxes.oldest_age is not None else None,
        },
        "inbox": {name: counts[name] for name in ("retrying", "waiting", "dead", "failing_for_long")},
        "effects": {trouble.value: count.number for trouble, count in boxes.effects.items()},
        "counted_up_to": status.COUNTED,
    }  # fmt: skip


def _age(age: timedelta) -> str:
    seconds = int(age.total_seconds())
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"

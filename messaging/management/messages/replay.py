"""`messages replay`: dead messages run again, and what rests goes now."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from messaging.actions import audit, replay
from messaging.actions import publish_now as hasten
from messaging.actions.replay import Pace, Replayed
from messaging.actions.selection import Wanted
from messaging.management.arguments import EXIT_TIMED_OUT, EXIT_USAGE, positive
from messaging.management.messages.selection import add_choice, chosen
from messaging.management.tables import Layout, write_table
from messaging.processes import StopSignals

HELP = "let dead messages run again, and what rests go now"
EXAMPLES = """
A message is replayed behind the same fence as before: what was handled is not handled again, and of two people who
replay the same at once, one does. It gets a whole new retry policy. With ids, what rests in the outbox (a retry, an
unroutable or refused row) goes now as well; --waiting does only that.

examples:
  manage.py messages replay 01985c5e-9d1c-7b3a-8f00-2a1b3c4d5e6f       one message, at every consumer where it is dead
  manage.py messages replay --group 3fa9c1d2e4b5 --dry-run             what would run, what not, and why
  manage.py messages replay --group 3fa9c1d2e4b5 --canary 5 --rate 20  five first; if they do well, 20 a second
  manage.py messages replay --consumer sms --since 2h --note "gateway is back"
  manage.py messages replay --waiting --type order.placed              publish what is unroutable or refused now

exit codes: 0 done, 1 nothing to replay, or too many failed again, 2 wrong arguments, 3 database unreachable,
7 the canary was not handled in time
"""
WHO_PUBLISHES = "A relay publishes them as soon as RabbitMQ takes them."
PLAN = Layout(columns=("what", "count", "consumer", "type"), lead=("what", "count"), beneath=())


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of this sub-command."""
    add_choice(parser)
    parser.add_argument("--waiting", action="store_true", help="not the dead: let what waits in the outbox go now")
    parser.add_argument("--canary", type=positive, default=0, metavar="N", help="replay N first, and wait for them")
    parser.add_argument(
        "--canary-wait", type=_above_zero, default=replay.CANARY_WAIT.total_seconds(), metavar="SECONDS",
        help=f"how long the canary may take (default {replay.CANARY_WAIT.total_seconds():g})",
    )  # fmt: skip
    parser.add_argument("--rate", type=_above_zero, metavar="N", help="messages in a second (default: no limit)")
    parser.add_argument(
        "--max-failures", type=_share, default=replay.MAX_FAILURES, metavar="SHARE",
        help=f"stop where more than this share fails again (default {replay.MAX_FAILURES:g})",
    )  # fmt: skip


def run(command: BaseCommand, options: dict[str, Any]) -> None:
    """Replay, or hasten. Raises CommandError where nothing was done, or not all."""
    wanted = chosen(options)
    if options["waiting"]:
        if wanted.group:
            raise CommandError("--waiting is about the outbox, which has no failure groups.", returncode=EXIT_USAGE)
        _hasten(command, options, wanted)
        return
    if options["dry_run"]:
        _show(command, options, wanted, _resting(wanted))
        return
    hastened = hasten.hasten(wanted, by=audit.account(), note=options["note"]) if _resting(wanted) else 0
    with StopSignals() as signals:
        result = replay.replay(
            wanted,
            by=audit.account(),
            note=options["note"],
            pace=Pace(
                canary=options["canary"],
                canary_wait=timedelta(seconds=options["canary_wait"]),
                rate=options["rate"],
                max_failures=options["max_failures"],
            ),
            should_stop=lambda: signals.received,
        )
    _report(command, options, result, hastened, wanted)


def _resting(wanted: Wanted) -> int:
    """How many rows go now besides: only who names messages means them."""
    return hasten.waiting(wanted).count() if wanted.message_ids else 0


def _hasten(command: BaseCommand, options: dict[str, Any], wanted: Wanted) -> None:
    waiting = hasten.waiting(wanted).count()
    if not waiting:
        raise CommandError("Nothing like that rests in the outbox. What is due there goes by itself.")
    if not options["dry_run"]:
        waiting = hasten.hasten(wanted, by=audit.account(), note=options["note"])
    if options["json"]:
        command.stdout.write(json.dumps({"hastened": waiting}))
    else:
        command.stdout.write(
            f"{waiting} in the outbox {'would be' if options['dry_run'] else 'are'} due now. {WHO_PUBLISHES}"
        )


def _show(command: BaseCommand, options: dict[str, Any], wanted: Wanted, resting: int) -> None:
    plan = replay.plan(wanted)
    rows: list[tuple[Any, ...]] = [(each.fate.value, each.count, each.consumer, each.type) for each in plan.planned]
    if resting:
        rows.append(("due now", resting, "", ""))
    if not rows:
        raise CommandError(f"Nothing would be replayed: {replay.why_nothing(wanted)}.")
    write_table(command.stdout, PLAN, rows, as_json=options["json"])


def _report(command: BaseCommand, options: dict[str, Any], result: Replayed, hastened: int, wanted: Wanted) -> None:
    if options["json"]:
        command.stdout.write(json.dumps({**asdict(result), "hastened": hastened}))
    elif result.replayed:
        told = f"Replayed {result.replayed}. So far {result.succeeded} handled, {result.failed} failed again."
        command.stdout.write(f"{told} {result.missed} already replayed." if result.missed else told)
    if hastened and not options["json"]:
        command.stdout.write(f"{hastened} in the outbox are due now. {WHO_PUBLISHES}")
    if result.stopped:
        code = EXIT_TIMED_OUT if result.timed_out else 1
        raise CommandError(result.ending, returncode=code)
    if not (result.replayed or hastened):
        raise CommandError(f"Nothing was replayed: {replay.why_nothing(wanted)}.")


def _above_zero(text: str) -> float:
    number = _number(text)
    if not 0 < number <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0, and 86400 at most")
    return number


def _share(text: str) -> float:
    number = _number(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 1")
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return -1

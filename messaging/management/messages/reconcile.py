"""`messages reconcile`: what should have arrived and did not, named and sent again."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from messaging import conf
from messaging.actions import audit
from messaging.actions.selection import counted
from messaging.exceptions import BrokerUnavailable, UnknownConsumer
from messaging.management.arguments import positive
from messaging.management.errors import EXIT_UNHEALTHY, EXIT_UNREACHABLE, EXIT_USAGE, what_to_do
from messaging.management.messages.selection import age
from messaging.management.progress import progress_on
from messaging.management.tables import write_table
from messaging.reconcile.findings import Trouble
from messaging.reconcile.reconcile import Report, reconcile
from messaging.reconcile.stuck import REPORTED

EXAMPLES = """
A message counts as lost if its consumer has not received it although the consumer's queue was seen empty twice since,
RECONCILE_AFTER apart. It is sent again to that consumer's queue alone, with the same id. If the first copy arrives
later, it is recognised. Celery beat runs this with --repair each minute. Without beat, run it twice.

examples:
  manage.py messages reconcile                         what is wrong; changes nothing
  manage.py messages reconcile --repair                send again what was lost; for cron: 0 means all is well
  manage.py messages reconcile --repair --since 7d     after restoring a backup: check the last week again
  manage.py messages reconcile --repair --consumer audit --earlier --since 30d
                                                       send a new consumer what was published before it existed

exit codes: 0 all is well (or was sent again), 2 wrong arguments, 3 broker or database unreachable, 6 something is wrong
"""
COLUMNS = ("since", "trouble", "type", "subject", "consumer", "message id", "why")


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of this sub-command."""
    parser.add_argument("--repair", action="store_true", help="send lost messages again")
    parser.add_argument(
        "--consumer", action="append", default=[], metavar="NAME", help="only this consumer; may be repeated"
    )
    parser.add_argument(
        "--since", type=age, metavar="AGE", help="check again what was published in this time: 30m, 2h or 7d"
    )
    parser.add_argument(
        "--earlier", action="store_true",
        help="also messages published before the consumer existed; needs --consumer and --since",
    )  # fmt: skip
    parser.add_argument(
        "--limit", type=positive, metavar="N", help=f"send at most N messages again (default {conf.RECONCILE_LIMIT})"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(command: BaseCommand, options: dict[str, Any]) -> None:
    """Report what is wrong, and repair it if asked. Raises CommandError if something is left."""
    if options["earlier"] and not (options["consumer"] and options["since"]):
        raise CommandError(
            "--earlier needs --consumer and --since: for which consumer, and how far back.", returncode=EXIT_USAGE
        )
    try:
        with progress_on(command.stderr) as progress:
            report = reconcile(
                repair=options["repair"],
                by=audit.account(),
                names=options["consumer"],
                since=options["since"],
                earlier=options["earlier"],
                limit=options["limit"],
                progress=progress.show,
            )
    except UnknownConsumer as error:
        raise CommandError(str(error), returncode=EXIT_USAGE) from None
    except BrokerUnavailable as error:
        raise CommandError(
            f"RabbitMQ: {error}. Without asking it for its queues it is not known what is lost. {what_to_do(error)}",
            returncode=EXIT_UNREACHABLE,
        ) from None
    rows = [
        (each.since, each.trouble.value, each.row.type, each.subject, each.consumer, each.message_id, each.why)
        for each in report.findings
    ]
    if rows:
        write_table(command.stdout, COLUMNS, rows, as_json=options["json"], wide=2, beneath=2)
    if not options["json"]:
        command.stdout.write(_summary(report))
        for name, why in report.undecided.items():
            command.stdout.write(f"It is not known yet whether {name} has missed something: {why}.")
    if not report.is_well:
        raise CommandError(_advice(report, repaired=options["repair"]), returncode=EXIT_UNHEALTHY)


def _summary(report: Report) -> str:
    counts = ", ".join(f"{_counted(len(report.of(trouble)))} {trouble}" for trouble in Trouble)
    return f"{counts}. {counted(report.sent_again, 'message')} sent again."


def _counted(number: int) -> str:
    # Of each kind of finding no more are named.
    return f"{number} or more" if number >= REPORTED else str(number)


def _advice(report: Report, *, repaired: bool) -> str:
    advice = []
    if report.left and repaired:
        advice.append("more is lost than is sent again at once: repeat it, or raise --limit")
    elif report.left:
        advice.append("what is lost is sent again with --repair")
    if report.unresponsive:
        advice.append(f"no answer from the queue of {', '.join(report.unresponsive)}: `manage.py mq topology diff`")
    if report.of(Trouble.STUCK):
        advice.append(
            "what is stuck says what it waits for, or why it fails: `messages publish`, `replay`, `cancel` and "
            "`settle` help"
        )
    if report.of(Trouble.DOUBLED):
        advice.append("what was handled twice must not happen: please report it, with `messages show`")
    return f"Something is wrong: {'; '.join(advice)}."

"""`manage.py mq publish`: send a message to a queue or an exchange, and say whether it arrived."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from messaging import conf
from messaging.broker.publisher import Outcome, Publisher, Publishing, Status
from messaging.consumers import MAX_PRIORITY
from messaging.exceptions import OperationRefused
from messaging.management.arguments import from_one, number
from messaging.management.errors import EXIT_TIMED_OUT, EXIT_UNREACHABLE, broker_refuses, broker_told_in_one_line
from messaging.management.progress import progress_on
from messaging.management.tables import unwritten
from messaging.message import Message
from messaging.mq.declaring import declare
from messaging.mq.options import add_declare, add_header, check_declare, check_short, named_values, usage_error
from messaging.processes import StopSignals

EXAMPLES = """
examples:
  manage.py mq publish "Hello World!" --queue hello --declare
  manage.py mq publish "kernel panic" --exchange topic_logs --key kern.critical
  manage.py mq publish '{"order": 7}' --exchange orders.events --key order.placed
  manage.py mq publish ping --queue hello --count 1000
  manage.py mq publish urgent --queue jobs --declare --argument x-max-priority=10 --priority 9

exit codes: 0 all confirmed, 1 returned, refused or not all sent, 2 wrong arguments, 3 broker unreachable,
7 no confirm in time
"""

#: Messages in flight at once.
BATCH = 256
#: The largest expiration that RabbitMQ takes, in milliseconds.
MAX_EXPIRATION = 2**32 - 1
NOTHING_SENT = "Stopped before anything was sent."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this sub-command."""
    parser.usage = "manage.py mq publish BODY (--queue NAME | --exchange NAME [--key KEY]) [options]"
    parser.add_argument("body", metavar="BODY", help="the body, a text")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--queue", metavar="NAME", help="send to this queue")
    target.add_argument("--exchange", metavar="NAME", help="send to this exchange")
    parser.add_argument("--key", default="", metavar="KEY", help="routing key (default: empty)")
    parser.add_argument("--count", type=from_one, default=1, metavar="N", help="send it N times")
    add_header(parser, "a header,")
    parser.add_argument(
        "--priority", type=number(0, MAX_PRIORITY, whole=True), metavar="N", help="0 to 255, for a priority queue"
    )
    parser.add_argument(
        "--expiration", type=number(0, MAX_EXPIRATION, whole=True), metavar="MS",
        help="milliseconds it may wait in a queue",
    )  # fmt: skip
    add_declare(parser, exchange_type="--exchange-type")


def run(command: BaseCommand, options: dict[str, Any]) -> None:
    """Send, and write what became of it. Raises CommandError where not all of it arrived in a queue."""
    _check(options)
    publishing = Publishing(
        key="",
        exchange=options["exchange"] or "",
        routing_key=options["queue"] or options["key"],
        message=Message(
            body=os.fsencode(options["body"]),
            content_type="text/plain",
            headers=named_values("--header", options["header"]),
            priority=options["priority"],
            expiration=str(options["expiration"]) if options["expiration"] is not None else "",
            persistent=True,
        ),
    )
    with StopSignals() as signals:
        publisher = Publisher("mq publish")
        try:
            with broker_told_in_one_line():
                publisher.start()
                if not publisher.reach(lambda: signals.received):
                    raise CommandError(NOTHING_SENT)
                kind = "queue" if options["queue"] else "exchange"
                if options["declare"] and (note := declare(publisher.connection, kind, options[kind], options)):
                    command.stderr.write(note, style_func=str)
            _send(command, options, publisher, publishing, lambda: signals.received)
        finally:
            publisher.stop()


def _check(options: dict[str, Any]) -> None:
    check_short("the name", options["queue"] or options["exchange"])
    check_short("the routing key", options["key"])
    if options["queue"] == "":
        raise usage_error("--queue: the name is empty.")
    if options["queue"] and options["key"]:
        raise usage_error("--key goes with --exchange: a message for a queue has its name for a key.")
    check_declare(options, "--exchange-type", of_exchange=options["exchange"] is not None)


def _send(
    command: BaseCommand,
    options: dict[str, Any],
    publisher: Publisher,
    publishing: Publishing,
    stopped: Callable[[], bool],
) -> None:
    """Send in batches: the next once every message of this one has its outcome. Raises CommandError by the worst."""
    counts: Counter[Status] = Counter()
    trouble: Outcome | None = None
    with progress_on(command.stderr) as progress:
        while (left := options["count"] - counts.total()) and not stopped():
            outcomes = publisher.publish([publishing] * min(left, BATCH), conf.get().publish_timeout)
            counts.update(outcome.status for outcome in outcomes)
            progress.show(f"{counts.total()} of {options['count']} sent")
            bad = [each for each in outcomes if each.status is not Status.CONFIRMED]
            if bad and trouble is None:
                trouble = bad[0]
            # After a return the next message may arrive: a queue may be bound by then.
            if worst := next((each for each in bad if each.status is not Status.RETURNED), None):
                trouble = worst
                break
    _sum_up(command, options["count"], counts)
    if trouble:
        raise _error(trouble, counts[Status.RETURNED], options)
    if stopped() and left:
        raise CommandError("Stopped before all were sent." if counts else NOTHING_SENT)


def _sum_up(command: BaseCommand, count: int, counts: Counter[Status]) -> None:
    line = "Sent and confirmed." if counts[Status.CONFIRMED] else ""
    if count > 1:
        shown = [each for each in Status if counts[each] or each in {Status.CONFIRMED, Status.RETURNED}]
        sent = counts.total() - counts[Status.UNSENDABLE]
        line = f"Sent {sent}: {', '.join(f'{counts[each]} {each.value}' for each in shown)}."
    # The messages are sent, and the exit code says so, even if the line cannot be written.
    if line and (problem := unwritten(command.stdout, line)):
        command.stderr.write(f"{line} The output cannot be written: {problem}.", style_func=str)


def _error(trouble: Outcome, returned: int, options: dict[str, Any]) -> CommandError:
    match trouble.status:
        case Status.RETURNED:
            gone = "the message is" if returned == 1 else f"{returned} messages are"
            hint = " --declare makes it." if options["queue"] else ""
            return CommandError(f"returned: {_why_returned(options)}; {gone} gone.{hint}")
        case Status.REFUSED:
            return broker_refuses(trouble.refusal or OperationRefused(trouble.reason))
        case Status.NACKED:
            return CommandError(f"Not taken: {trouble.reason}. A queue is full, or failing; the message is not in it.")
        case Status.UNSENDABLE:
            return CommandError(f"It cannot be sent: {trouble.reason}.")
        case _:
            yet, code = (", or may yet", EXIT_TIMED_OUT) if trouble.late else ("", EXIT_UNREACHABLE)
            text = f"RabbitMQ: {trouble.reason}. What has no confirm may have arrived{yet}."
            return CommandError(text, returncode=code)


def _why_returned(options: dict[str, Any]) -> str:
    if options["queue"]:
        return f"there is no queue {options['queue']}"
    by = "these headers" if options["header"] and not options["key"] else f"key {options['key']!r}"
    return f"no queue is bound to exchange {options['exchange']} for {by}"

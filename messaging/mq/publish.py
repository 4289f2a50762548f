"""`manage.py mq publish`: send messages to a queue or an exchange, and say what became of them."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from messaging.broker.connection import Connection
from messaging.broker.declaring import declare_exchange, declare_queue
from messaging.broker.publisher import Publisher
from messaging.management.arguments import (
    EXIT_USAGE,
    broker_told_in_one_line,
    from_one,
)
from messaging.message import Message
from messaging.mq import bodies, keys
from messaging.mq.batches import STOPPED_FIRST, Sending
from messaging.mq.named_values import VALUES_HELP, add_declare, check_short, named_values
from messaging.processes import StopSignals

HELP = "send messages to a queue or an exchange, and say what became of them"
EXAMPLES = """
examples:
  manage.py mq publish "Hello World!" --queue hello --declare
  manage.py mq publish "kernel panic" --exchange topic_logs --key kern.critical
  manage.py mq publish '{"order": 7}' --json --exchange orders.events --key order.placed
  manage.py mq publish --file picture.png --content-type image/png --queue pictures
  tail -f app.log | manage.py mq publish --lines --exchange logs
  manage.py mq publish ping --queue hello --count 1000 --rate 50
  manage.py mq publish urgent --queue jobs --declare --argument x-max-priority=10 --priority 9

exit codes: 0 all confirmed, 1 returned, refused or not all sent, 2 wrong arguments, 3 broker unreachable,
7 no confirm in time
"""

#: Messages in flight at once: what is in memory here stays small, however many are sent.
BATCH = 256
#: Seconds of messages that go at once, with --rate.
BEAT = 0.05
#: Largest expiration that RabbitMQ takes, in milliseconds.
MAX_EXPIRATION = 2**32 - 1
#: Largest priority that AMQP has room for.
MAX_PRIORITY = 255


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this sub-command."""
    parser.usage = "manage.py mq publish [BODY | -] (--queue NAME | --exchange NAME [--key KEY]) [options]"
    parser.add_argument("body", nargs="?", metavar="BODY", help="the body; '-', or nothing in a pipe: standard input")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--queue", metavar="NAME", help="send to this queue")
    target.add_argument("--exchange", metavar="NAME", help="send to this exchange")
    parser.add_argument("--key", default="", metavar="KEY", help="routing key (default: empty)")
    parser.add_argument("--file", metavar="PATH", help="take the body from a file, byte for byte")
    parser.add_argument("--lines", action="store_true", help="each line of the file or of standard input is a message")
    parser.add_argument("--json", action="store_true", help="the body must be JSON; its content type says so")
    parser.add_argument("--count", type=from_one, metavar="N", help="send it N times")
    parser.add_argument("--rate", type=_above_zero, metavar="N", help="at most N messages a second")
    parser.add_argument(
        "--confirm", action=argparse.BooleanOptionalAction, default=True,
        help="wait for the broker's word on each message (the default)",
    )  # fmt: skip
    _add_properties(parser)
    add_declare(parser, exchange_type="--exchange-type")


def _add_properties(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("headers and properties")
    group.add_argument(
        "--header", action="append", default=[], metavar="NAME=VALUE", help=f"such as format=pdf; {VALUES_HELP}"
    )
    group.add_argument("--priority", type=_priority, metavar="N", help="0 to 255, for a priority queue")
    group.add_argument("--expiration", type=_milliseconds, metavar="MS", help="milliseconds it may wait in a queue")
    group.add_argument("--transient-message", action="store_true", help="need not survive a restart of the broker")
    for name in ("message-id", "correlation-id", "reply-to", "type", "app-id", "content-type", "content-encoding"):
        metavar = name.rpartition("-")[2].upper()
        group.add_argument(f"--{name}", default="", dest=f"property_{name.replace('-', '_')}", metavar=metavar)


def run(command: BaseCommand, options: dict[str, Any]) -> None:
    """Send, and write what became of it. Raises CommandError where not all of it arrived in a queue."""
    options["headers"] = named_values("--header", options["header"])
    options["arguments"] = named_values("--argument", options["argument"])
    _check(options)
    with StopSignals() as signals, ExitStack() as stack:

        def stopped() -> bool:
            return signals.received

        batches = _batches(options, stack, stopped)
        if stopped():
            raise CommandError(STOPPED_FIRST)
        publisher = Publisher("mq publish", confirms=options["confirm"])
        stack.callback(publisher.stop)
        with broker_told_in_one_line():
            publisher.start()
            if not publisher.reach(stopped):
                raise CommandError(STOPPED_FIRST)
            if options["declare"]:
                note = _declare(publisher.connection, options)
                if note:
                    command.stderr.write(note, style_func=str)
        if note := keys.said_of_message(options["key"]):
            command.stderr.write(note, style_func=str)
        Sending(command, options, publisher, _pattern(options), stopped).send_all(batches)


def _check(options: dict[str, Any]) -> None:
    check_short("the name", options["queue"] or options["exchange"])
    check_short("the routing key", options["key"])
    for name in options:
        if name.startswith("property_"):
            check_short(f"--{name.removeprefix('property_').replace('_', '-')}", options[name])
    problem = ""
    if options["queue"] == "":
        problem = "--queue: the name is empty."
    elif options["queue"] and options["key"]:
        problem = "--key goes with --exchange: a message for a queue has its name for a key."
    elif options["body"] not in {None, "-"} and options["file"]:
        problem = "Give a BODY or --file, not both."
    elif options["lines"] and (options["body"] not in {None, "-"} or options["count"]):
        problem = "--lines reads a file or standard input, and sends each line once: no BODY, no --count."
    elif options["body"] is None and not options["file"] and (sys.stdin is None or sys.stdin.isatty()):
        problem = "There is nothing to send: give a BODY, --file PATH, or something by a pipe; '-' reads the terminal."
    elif options["exchange"] is not None and options["queue_type"]:
        problem = "--queue-type goes with --queue."
    elif options["type"] and options["exchange"] is None:
        problem = "--exchange-type goes with --exchange."
    elif options["declare"] and options["exchange"] is not None and not options["type"]:
        problem = "To declare an exchange say its type: --exchange-type direct, fanout, topic or headers."
    elif not options["declare"] and any(options[each] for each in ("type", "queue_type", "transient", "arguments")):
        problem = "--exchange-type, --queue-type, --transient and --argument go with --declare."
    if problem:
        raise CommandError(problem, returncode=EXIT_USAGE)


def _declare(connection: Connection, options: dict[str, Any]) -> str:
    """Declare, and return what a person should know about it."""
    durable, arguments = not options["transient"], options["arguments"]
    if options["queue"]:
        return declare_queue(
            connection, options["queue"], durable=durable, queue_type=options["queue_type"], arguments=arguments
        )
    return declare_exchange(connection, options["exchange"], options["type"], durable=durable, arguments=arguments)


# --- what is sent ------------------------------------------------------------------------------------------


def _batches(options: dict[str, Any], stack: ExitStack, stopped: Callable[[], bool]) -> Iterator[list[bytes]]:
    """Return the bodies, in lists that go together. Raises CommandError where they cannot be read, or are not JSON."""
    size = min(BATCH, max(1, int(options["rate"] * BEAT))) if options["rate"] else BATCH
    try:
        if options["lines"]:
            lines = bodies.lines(_descriptor(options["file"], stack), size, stopped)
            return bodies.json_lines(lines) if options["json"] else lines
        if options["body"] not in {None, "-"}:
            body = os.fsencode(options["body"])
        else:
            body = bodies.whole(_descriptor(options["file"], stack), stopped)
    except OSError as error:
        raise CommandError(f"{options['file'] or 'Standard input'} cannot be read: {error.strerror}.") from None
    if options["json"]:
        bodies.check_json("The body", body)
    return bodies.repeated(body, options["count"] or 1, size)


def _descriptor(path: str | None, stack: ExitStack) -> int:
    if path is None:
        if sys.stdin is None:
            raise OSError(errno.EBADF, "it is closed")
        return sys.stdin.fileno()
    return stack.enter_context(open(path, "rb")).fileno()


def _pattern(options: dict[str, Any]) -> Message:
    given = {name.removeprefix("property_"): options[name] for name in options if name.startswith("property_")}
    return Message(
        body=b"",
        id=given["message_id"],
        type=given["type"],
        content_type=given["content_type"],
        content_encoding=given["content_encoding"],
        correlation_id=given["correlation_id"],
        reply_to=given["reply_to"],
        app_id=given["app_id"],
        expiration=str(options["expiration"]) if options["expiration"] is not None else "",
        priority=options["priority"],
        persistent=not options["transient_message"],
        headers=options["headers"],
    )


def _milliseconds(text: str) -> int:
    if not text.isdecimal() or int(text) > MAX_EXPIRATION:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of milliseconds from 0 to {MAX_EXPIRATION}")
    return int(text)


def _priority(text: str) -> int:
    if not text.isdecimal() or int(text) > MAX_PRIORITY:
        raise argparse.ArgumentTypeError(f"{text!r} is not a priority from 0 to {MAX_PRIORITY}")
    return int(text)


def _above_zero(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return rate

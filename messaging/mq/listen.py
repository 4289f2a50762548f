"""`manage.py mq listen`: print what a queue or an exchange brings, a line for each message."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from messaging import conf
from messaging.broker.declaring import is_stream
from messaging.broker.listener import Ended, Listener
from messaging.broker.subscription import Arrival
from messaging.exceptions import BrokerUnavailable, OperationRefused
from messaging.management.arguments import (
    EXIT_USAGE,
    broker_refuses,
    broker_told_in_one_line,
    broker_unreachable,
    from_one,
    positive,
)
from messaging.management.tables import reader_left
from messaging.mq.message_lines import write_message
from messaging.mq.named_values import TYPE_HELP, VALUES_HELP, add_declare, check_short, named_values
from messaging.mq.sources import Source, Wish, find, stands
from messaging.processes import StopSignals
from messaging.routing import EXCHANGE_TYPES

HELP = "print what a queue or an exchange brings, a line for each message"
EXAMPLES = """
examples:
  manage.py mq listen hello                          what a queue brings; each acknowledged once it is printed
  manage.py mq listen task_queue --dots 1 --prefetch 1    work a second for each dot, one message at a time
  manage.py mq listen logs "orders.#" "#.error"      what a topic exchange passes on by these keys: # takes any number
                                                     of words, * one
  manage.py mq listen direct_logs info warning --json     one JSON object a line
  manage.py mq listen offers --header format=pdf --header kind=report --match any
  manage.py mq listen topic_logs "kern.*" --declare --type topic    make the exchange, if need be
  manage.py mq listen hello --keep --max-messages 5  have a look, and give all back
  manage.py mq listen history --from-start           all that a stream holds, and what comes

An exchange gives a queue of this command's own, which goes when it ends. A name that is not there is also looked for
with APP_ID in front: `dead_letters`.

exit codes: 0 stopped, or --max-messages came, 1 no such thing, refused, or deleted meanwhile, 2 wrong arguments,
3 broker unreachable, 7 it did not answer in time
"""

#: Seconds between two looks at whether somebody wants an end.
LOOK_EVERY = 0.1
#: Seconds before what ended unasked is tried again, where the connection still stands.
TRY_AGAIN = 1.0
#: Seconds after its end is wanted in which --auto-ack lets more come. What is on its way when that is over is lost.
LET_COME = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this sub-command."""
    parser.usage = "manage.py mq listen NAME [KEY…] [options]"
    _take_keys_anywhere(parser)
    parser.add_argument("name", metavar="NAME", help="a queue or an exchange")
    parser.add_argument(
        "keys", nargs="*", default=[], metavar="KEY", help="an exchange's keys, or patterns (default: all)"
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--queue", action="store_const", const="queue", dest="kind", help="NAME is a queue")
    kind.add_argument("--exchange", action="store_const", const="exchange", dest="kind", help="NAME is an exchange")
    parser.add_argument("--type", choices=EXCHANGE_TYPES, metavar="T", help=TYPE_HELP)
    parser.add_argument(
        "--header", action="append", default=[], metavar="NAME=VALUE",
        help=f"what a headers exchange goes by, such as format=pdf; {VALUES_HELP}",
    )  # fmt: skip
    parser.add_argument("--match", choices=("all", "any"), default="all", help="how many of these headers must match")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--ack", action="store_const", const="ack", dest="how", default="ack",
        help="acknowledge each message once it is printed (the default)",
    )  # fmt: skip
    how.add_argument(
        "--auto-ack", action="store_const", const="auto", dest="how",
        help="the broker forgets each message as it sends it; what waits in memory is printed still at the end",
    )  # fmt: skip
    how.add_argument(
        "--keep", action="store_const", const="keep", dest="how", help="acknowledge nothing: all goes back"
    )
    parser.add_argument(
        "--prefetch", type=positive, metavar="N",
        help="unacknowledged messages to hold (default: settings; with --max-messages 1, so that no other is touched: "
        "more is faster; with --keep as many as can be)",
    )  # fmt: skip
    parser.add_argument(
        "--max-messages", type=from_one, metavar="N",
        help="leave after N messages. A reader that leaves a pipe, such as `| head -3`, may have been handed more, "
        "which are acknowledged and read by nobody: say N",
    )  # fmt: skip
    parser.add_argument(
        "--dots", type=_seconds, default=0.0, metavar="SECONDS",
        help="work so long for each dot in a body, before the acknowledgement",
    )  # fmt: skip
    parser.add_argument(
        "--from-start", action="store_true", help="of a stream: show what it holds already, from its first message on"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    add_declare(parser)


def run(command: BaseCommand, options: dict[str, Any]) -> None:
    """Listen until told to stop. Raises CommandError where that cannot be."""
    wish = _wish(options)
    with broker_told_in_one_line(), StopSignals() as signals, Listener("mq listen") as listener:
        try:
            _Listening(command, options, listener, wish, lambda: signals.received).run()
        except (BrokerUnavailable, OperationRefused) as error:
            if not signals.received:  # else it was the end that was waited for
                told = broker_refuses(error) if isinstance(error, OperationRefused) else broker_unreachable(error)
                raise told from None


def _wish(options: dict[str, Any]) -> Wish:
    check_short("the name", options["name"])
    for key in options["keys"]:
        check_short("a key", key)
    wish = Wish(
        name=options["name"],
        keys=options["keys"],
        headers=named_values("--header", options["header"]),
        match=options["match"],
        type=options["type"] or "",
        kind=options["kind"] or "",
        declare=options["declare"],
        durable=not options["transient"],
        queue_type=options["queue_type"],
        arguments=named_values("--argument", options["argument"]),
    )
    problem = ""
    if not wish.name:
        problem = "NAME is empty."
    elif wish.kind == "queue" and (wish.keys or wish.headers or wish.type):
        problem = "Keys, --header and --type are an exchange's; a queue brings all that is in it."
    elif wish.declare and not wish.may_be_queue and not wish.type:
        problem = "To declare an exchange say its type: --type direct, fanout, topic or headers."
    elif wish.queue_type and not wish.may_be_queue:
        problem = "--queue-type is a queue's; an exchange has none."
    elif not wish.declare and (wish.queue_type or wish.arguments or not wish.durable):
        problem = "--queue-type, --transient and --argument go with --declare."
    if problem:
        raise CommandError(problem, returncode=EXIT_USAGE)
    return wish


class _Listening:
    """Standard output holds messages alone; what there is to say beside goes to standard error."""

    def __init__(
        self,
        command: BaseCommand,
        options: dict[str, Any],
        listener: Listener,
        wish: Wish,
        stopped: Callable[[], bool],
    ) -> None:
        self._command = command
        self._options = options
        self._listener = listener
        self._wish = wish
        self._stopped = stopped
        self._how = options["how"]
        #: The broker would go on sending past the last message that is wanted, and forget those too.
        self._ack_first = self._how == "auto" and options["max_messages"] is not None
        self._shown = 0
        #: Of the connection that we listen on.
        self._generation = 0

    def run(self) -> None:
        """Listen until told to stop, or all messages came."""
        if not self._listener.connection.reach(self._stopped):
            return
        source = find(self._listener.connection, self._wish)
        stream = source.kind == "queue" and is_stream(self._listener.connection, source.name)
        self._refuse_what_cannot_be(source, stream)
        self._listener.subscribe(
            source.name if source.kind == "queue" else source.bindings,
            prefetch=self._prefetch(),
            auto_ack=self._how == "auto" and not self._ack_first,
            offset=("first" if self._options["from_start"] else "next") if stream else "",
        )
        try:
            if source.note:
                self._say(source.note)
            if stream and not self._options["from_start"]:
                self._say(f"{source.name} is a stream: what it holds already is not shown, unless by --from-start.")
            self._generation = self._listener.connection.generation
            if self._listener.open(self._stopped):
                self._say(f"Listening on {self._what(source)}. Press CTRL+C to stop.")
            self._take_all(source)
            if self._how == "auto" and not self._ack_first:
                self._take_the_rest()
        finally:
            self._sum_up()

    def _refuse_what_cannot_be(self, source: Source, stream: bool) -> None:
        problem = ""
        if stream and self._how == "auto" and not self._ack_first:
            problem = (
                f"{source.name} is a stream, and RabbitMQ sends a stream only to those who acknowledge. Leave "
                "--auto-ack out: reading takes nothing away from a stream."
            )
        elif self._options["from_start"] and not stream:
            problem = f"--from-start is for streams, and {source.kind} {source.name} is none."
        if problem:
            raise CommandError(problem, returncode=EXIT_USAGE)

    def _prefetch(self) -> int:
        wanted = self._options["max_messages"]
        if self._how == "keep":
            most = 65535
        elif wanted:
            most = 1  # of more, each acknowledgement would bring another, and the last ones nobody wants
        else:
            most = conf.get().prefetch
        return min(self._options["prefetch"] or most, wanted or 65535)

    def _what(self, source: Source) -> str:
        if source.kind == "queue":
            return f"queue {source.name}"
        keys = ", ".join(each.key for each in source.bindings if each.key)
        return f"exchange {source.name}" + (f" for {keys}" if keys else "")

    def _take_all(self, source: Source) -> None:
        wanted = self._options["max_messages"]
        while not self._stopped() and (wanted is None or self._shown < wanted):
            if reader_left(self._command.stdout):
                raise BrokenPipeError
            news = self._listener.next(LOOK_EVERY)
            if isinstance(news, Arrival):
                self._take(news)
            elif news is not None:
                self._come_back(source, news)

    def _take(self, arrival: Arrival) -> None:
        is_last = self._shown + 1 == self._options["max_messages"]
        if self._ack_first:
            self._ack(arrival, is_last=is_last)
        write_message(self._command, arrival, as_json=self._options["json"])
        self._shown += 1
        if self._worked(arrival) and self._how == "ack":
            self._ack(arrival, is_last=is_last)

    def _ack(self, arrival: Arrival, *, is_last: bool) -> None:
        if is_last:
            # The broker would send the next one, which is for somebody else: it would go back as delivered before.
            self._listener.cancel()
        self._listener.ack(arrival)

    def _take_the_rest(self) -> None:
        """Print what the broker has sent: nobody else has it any more. A flood is cut off."""
        cut_off: float | None = time.monotonic() + LET_COME
        while isinstance(news := self._listener.next(LOOK_EVERY), Arrival):
            self._take(news)
            if cut_off is not None and time.monotonic() > cut_off:
                self._listener.cancel()
                cut_off = None

    def _worked(self, arrival: Arrival) -> bool:
        """Work for each dot; return whether that was finished."""
        return self._rested(self._options["dots"] * arrival.message.body.count(b"."))

    def _rested(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self._stopped():
                return False
            time.sleep(min(left, LOOK_EVERY))
        return True

    def _come_back(self, source: Source, ended: Ended) -> None:
        """Listen again after an unexpected end. Raises CommandError if that is impossible, OperationRefused."""
        if ended.refusal is not None:
            raise ended.refusal
        since = time.strftime("%H:%M:%S")
        told = False
        while not self._stopped():
            there = self._still_there(source)
            if there is None:
                if not told:
                    self._say(f"The connection is lost ({ended.reason}). Connecting again…")
                    told = True
                self._rested(LOOK_EVERY)
                continue
            if not there:
                when = "while we listened" if not told else "when the connection came back"
                raise CommandError(f"{source.kind.capitalize()} {source.name} was gone {when}. Nothing more can come.")
            if not self._listener.open(self._stopped):
                self._rested(TRY_AGAIN)  # the next end says why
                return
            self._generation = self._listener.connection.generation
            missed = f" What was published since {since} was missed." if source.kind == "exchange" else ""
            self._say(f"Listening again on {self._what(source)}.{missed}")
            return

    def _still_there(self, source: Source) -> bool | None:
        """Whether it still stands, declared again on a fresh connection; None where nobody can say: connection lost."""
        connection = self._listener.connection
        if not connection.wait_until_open(LOOK_EVERY):
            return None
        try:
            if self._wish.declare and connection.generation != self._generation:
                find(connection, self._wish)
            return stands(connection, source)
        except BrokerUnavailable:
            return None

    def _say(self, text: str) -> None:
        self._command.stderr.write(text, style_func=str)
        self._command.stderr.flush()

    def _sum_up(self) -> None:
        count = "1 message" if self._shown == 1 else f"{self._shown} messages"
        back = "; all went back" if self._how == "keep" and self._shown else ""
        self._say(f"Stopped after {count}{back}.")


def _take_keys_anywhere(parser: argparse.ArgumentParser) -> None:
    """Let keys follow options: argparse takes them only beside NAME before Python 3.13, and knows no other way for a
    sub-command."""
    parse = parser.parse_known_args

    def parse_known_args(args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        found, rest = parse(args, namespace)
        found.keys = [*found.keys, *(each for each in rest if not each.startswith("-"))]
        return found, [each for each in rest if each.startswith("-")]

    setattr(parser, "parse_known_args", parse_known_args)  # noqa: B010 (mypy would not let a method be assigned)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to 3600")
    return seconds

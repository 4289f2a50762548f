"""`manage.py mq listen`: print the messages of a queue or an exchange, one a line."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from messaging import conf
from messaging.broker.arrival import Arrival
from messaging.broker.calls import CALL_TIMEOUT
from messaging.broker.queue_answers import CURE, is_stream
from messaging.exceptions import BrokerUnavailable, OperationRefused
from messaging.management.arguments import from_one, number, positive
from messaging.management.errors import broker_told_in_one_line
from messaging.management.tables import reader_left
from messaging.mq.declaring import declare, exists
from messaging.mq.listener import Ended, Listener
from messaging.mq.message_lines import write_message
from messaging.mq.options import add_declare, add_header, check_declare, check_short, named_values, usage_error
from messaging.processes import StopSignals
from messaging.routing import Binding

EXAMPLES = """
examples:
  manage.py mq listen hello                          the messages of a queue; each is acknowledged once it is printed
  manage.py mq listen task_queue --dots 1 --prefetch 1    work a second for each dot, one message at a time
  manage.py mq listen warren.logs "orders.#" "#.error"    what a topic exchange routes by these keys: # takes any
                                                     number of words, * one
  manage.py mq listen direct_logs info warning --json     one JSON object a line
  manage.py mq listen offers --header format=pdf --header kind=report --match any
  manage.py mq listen history --from-start           what a stream holds already, and what comes
  manage.py mq listen topic_logs "kern.*" --declare --type topic    declare the exchange, if need be

A queue is preferred to an exchange of the same name, unless keys or headers are given. For an exchange this command
has a queue of its own, which is deleted when it ends.

exit codes: 0 stopped, or --max-messages arrived, 1 no such thing, refused, or deleted meanwhile, 2 wrong arguments,
3 broker unreachable, 7 it did not answer in time
"""

#: Seconds between two checks whether to stop.
CHECK_EVERY = 0.1
#: Seconds before listening starts again where the connection is open.
TRY_AGAIN = 1.0
#: The longest work for one dot, in seconds.
MAX_DOTS = 3600


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this sub-command."""
    parser.usage = "manage.py mq listen NAME [KEY…] [options]"
    parser.add_argument("name", metavar="NAME", help="a queue or an exchange")
    parser.add_argument(
        "keys", nargs="*", default=[], metavar="KEY", help="keys of an exchange, or patterns (default: #)"
    )
    add_header(parser, "what a headers exchange routes by,")
    parser.add_argument("--match", choices=("all", "any"), default="all", help="how many of these headers must match")
    parser.add_argument(
        "--prefetch", type=positive, metavar="N",
        help="unacknowledged messages to hold (default: settings; with --max-messages 1, so that no other is touched)",
    )  # fmt: skip
    parser.add_argument(
        "--max-messages", type=from_one, metavar="N",
        help="leave after N messages. Prefer this to `| head -N`: with a pipe more than N may be acknowledged",
    )  # fmt: skip
    parser.add_argument(
        "--dots", type=number(0, MAX_DOTS), default=0.0, metavar="SECONDS",
        help="work this long for each dot in a body, then acknowledge",
    )  # fmt: skip
    parser.add_argument("--from-start", action="store_true", help="begin with the first message of a stream")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    add_declare(parser, exchange_type="--type")


def run(command: BaseCommand, options: dict[str, Any]) -> None:
    """Listen until told to stop. Raises CommandError where that cannot be."""
    _check(options)
    with broker_told_in_one_line(), StopSignals() as signals, Listener("mq listen") as listener:
        try:
            _Listening(command, options, listener, lambda: signals.received).run()
        except (BrokerUnavailable, OperationRefused):
            if not signals.received:  # else the command ends as it was told to
                raise


def _check(options: dict[str, Any]) -> None:
    check_short("the name", options["name"])
    for key in options["keys"]:
        check_short("a key", key)
    if not options["name"]:
        raise usage_error("NAME is empty.")
    if options["keys"] and options["header"]:
        raise usage_error("Give keys or --header: a headers exchange routes by headers, the others by keys.")
    options["headers"] = named_values("--header", options["header"])
    check_declare(options, "--type", of_exchange=_kind(options) == "exchange")


def _kind(options: dict[str, Any]) -> str:
    """Return what NAME means, unless only an exchange of that name exists."""
    return "exchange" if options["keys"] or options["header"] or options["type"] else "queue"


class _Listening:
    """Writes messages alone to standard output; everything else goes to standard error."""

    def __init__(
        self, command: BaseCommand, options: dict[str, Any], listener: Listener, stopped: Callable[[], bool]
    ) -> None:
        self._command = command
        self._options = options
        self._listener = listener
        self._stopped = stopped
        self._name: str = options["name"]
        self._kind = _kind(options)
        self._shown = 0
        #: Of the connection that it listens on.
        self._generation = 0

    def run(self) -> None:
        """Listen until told to stop, or until all messages have arrived."""
        if not self._listener.connection.reach(self._stopped):
            return
        self._find()
        from_start, offset = self._options["from_start"], ""
        if self._kind == "queue" and is_stream(self._listener.connection, self._name):
            offset = "first" if from_start else "next"
        elif from_start:
            raise usage_error(f"--from-start is for streams, and {self._what()} is none.")
        prefetch, most = self._options["prefetch"], self._options["max_messages"]
        self._listener.subscribe(
            self._bindings() if self._kind == "exchange" else self._name,
            # With more than 1 each acknowledgement would bring another message; the last ones would be requeued.
            prefetch=min(prefetch or (1 if most else conf.get().prefetch), most or 65_535),
            offset=offset,
        )
        try:
            self._generation = self._listener.connection.generation
            if self._open():
                if offset == "next":
                    self._say(f"{self._name} is a stream: what it holds already is not shown, unless by --from-start.")
                self._say(f"Listening on {self._what()}. Press CTRL+C to stop.")
            self._take_all()
        finally:
            self._say(f"Stopped after {self._shown} message{'s' * (self._shown != 1)}.")

    def _open(self) -> bool:
        """Start to consume; return whether the broker has agreed. If it takes long, say so once."""
        due = time.monotonic() + CALL_TIMEOUT

        def given_up() -> bool:
            nonlocal due
            if time.monotonic() > due:
                due = math.inf
                self._say(f"No answer from {self._what()} for {CALL_TIMEOUT:g} s. If none comes: {CURE}.")
            return self._stopped()

        return self._listener.open(given_up)

    def _find(self) -> None:
        """Declare the queue or exchange, or see which of them exists. Raises CommandError where neither does."""
        connection, exchange = self._listener.connection, "exchange"
        if self._options["declare"]:
            if note := declare(connection, self._kind, self._name, self._options):
                self._say(note)
        elif self._kind == exchange or not exists(connection, "queue", self._name):
            if not exists(connection, exchange, self._name):
                kinds = exchange if self._kind == exchange else "queue and no exchange"
                raise CommandError(f"There is no {kinds} {self._name}. Is the name right, and the virtual host?")
            self._kind = exchange

    def _bindings(self) -> list[Binding]:
        if headers := self._options["headers"]:
            return [Binding(self._name, "", "", {"x-match": self._options["match"], **headers})]
        return [Binding(self._name, "", key) for key in self._options["keys"] or ["#"]]

    def _what(self) -> str:
        keys = ", ".join(self._options["keys"])
        return f"{self._kind} {self._name}" + (f" for {keys}" if keys else "")

    def _take_all(self) -> None:
        most = self._options["max_messages"]
        while not self._stopped() and (most is None or self._shown < most):
            if reader_left(self._command.stdout):
                raise BrokenPipeError
            arrived = self._listener.next(CHECK_EVERY)
            if isinstance(arrived, Arrival):
                self._take(arrived)
            elif arrived is not None:
                self._listen_again(arrived)

    def _take(self, arrival: Arrival) -> None:
        write_message(self._command, arrival, as_json=self._options["json"])
        self._shown += 1
        if self._waited(self._options["dots"] * arrival.message.body.count(b".")):
            if self._shown == self._options["max_messages"]:
                # Else the broker would send the next one, and redeliver it to others.
                self._listener.subscription.cancel()
            self._listener.subscription.ack(arrival)

    def _waited(self, seconds: float) -> bool:
        """Wait; return whether it was not stopped meanwhile."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self._stopped():
                return False
            time.sleep(min(left, CHECK_EVERY))
        return True

    def _listen_again(self, ended: Ended) -> None:
        """Listen again after the connection was lost. Raises CommandError where the queue is gone, OperationRefused."""
        if ended.refusal is not None:
            raise ended.refusal
        since, told = time.strftime("%H:%M:%S"), False
        while not self._stopped():
            still_exists = self._still_exists()
            if still_exists is None:
                if not told:
                    self._say(f"The connection is lost ({ended.reason}). Connecting again…")
                told = True
                self._waited(CHECK_EVERY)
                continue
            if not still_exists:
                raise CommandError(f"{self._kind.capitalize()} {self._name} is gone. Nothing more can arrive.")
            if not self._open():
                self._waited(TRY_AGAIN)  # the next end says why
                return
            self._generation = self._listener.connection.generation
            missed = f" What was published since {since} was missed." if self._kind == "exchange" else ""
            self._say(f"Listening again on {self._what()}.{missed}")
            return

    def _still_exists(self) -> bool | None:
        """Whether it exists, declared again on a fresh connection; None while the connection is lost."""
        connection = self._listener.connection
        if not connection.wait_until_open(CHECK_EVERY):
            return None
        try:
            if self._options["declare"] and connection.generation != self._generation:
                self._find()
            return exists(connection, self._kind, self._name)
        except BrokerUnavailable:
            return None

    def _say(self, text: str) -> None:
        self._command.stderr.write(text, style_func=str)
        self._command.stderr.flush()

"""`manage.py mq call`: call a procedure, ours or any server's, from a terminal."""

from __future__ import annotations

import argparse
import json
import threading
from concurrent.futures import Future
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from messaging import procedures, rpc
from messaging.exceptions import AccessRefused, BodyTooLarge
from messaging.management.arguments import number
from messaging.management.errors import EXIT_INTERRUPTED, EXIT_TIMED_OUT, EXIT_UNREACHABLE, EXIT_USAGE, what_to_do
from messaging.management.tables import printable
from messaging.procedures import request_queue
from messaging.rpc import client

EXIT_FAILED = 1
#: --timeout in seconds.
SHORTEST_TIMEOUT, MAX_TIMEOUT = 0.001, 86_400

EXAMPLES = """
examples:
  manage.py mq call fib 30                         prints 832040
  manage.py mq call fib 10 20 30 40 50             five calls at the same time, each answer beside its value
  manage.py mq call shipping.quote '{"weight_grams": 500, "destination": "CN"}'    an object holds named arguments
  manage.py mq call anything 4 --queue rpc_queue   another program's server, by its queue

Values are JSON: a text needs its quotation marks ('"abc"').

exit codes: 0 answered, 1 no server, or it answered with an error, 2 wrong arguments, 3 broker unreachable,
7 no answer in time, 130 interrupted
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this sub-command."""
    parser.add_argument("name", metavar="NAME", help="the procedure")
    parser.add_argument(
        "values", nargs="*", type=_json_value, metavar="JSON",
        help="the arguments, as JSON; with several values, one call for each, all at the same time",
    )  # fmt: skip
    parser.add_argument("--queue", metavar="QUEUE", help="where its requests go (default: the procedure's own queue)")
    parser.add_argument(
        "--timeout",
        type=number(SHORTEST_TIMEOUT, MAX_TIMEOUT),
        default=10.0,
        metavar="S",
        help="seconds to wait for the answer (default 10)",
    )  # fmt: skip


def run(command: BaseCommand, options: dict[str, Any]) -> None:
    """Call, and print the answers in the order of the values."""
    name, queue = options["name"], options["queue"]
    values = options["values"] or [procedures.NO_ARGUMENTS]
    calls: list[Future[Any]] = []
    failures: list[CommandError] = []
    try:
        for value in values:
            calls.append(_called(name, value, options["timeout"], queue))
        for value, call in zip(values, calls, strict=True):
            before = f"{_text(value)}{' → ' if command.stdout.isatty() else chr(9)}" if len(values) > 1 else ""
            try:
                command.stdout.write(f"{before}{_text(call.result())}")
                command.stdout.flush()
            except Exception as error:
                failures.append(_failure(error, name, queue or request_queue(name)))
                if len(values) > 1:
                    command.stderr.write(f"{_text(value)} → {failures[-1]}")
    except KeyboardInterrupt:
        raise _interrupted(len(values), sum(call.done() for call in calls)) from None
    if failures:
        raise _one_of(failures, len(values))


def _called(name: str, value: Any, timeout: float, queue: str | None) -> Future[Any]:
    """Call on a thread of its own. After Ctrl-C the process would wait for a pool's."""
    result: Future[Any] = Future()

    def call() -> None:
        try:
            result.set_result(rpc.call(name, value, timeout=timeout, queue=queue))
        except Exception as error:
            result.set_exception(error)

    try:
        threading.Thread(target=call, daemon=True).start()
    except RuntimeError as error:
        result.set_exception(rpc.NoBroker(f"{name}: not sent: no thread could be started for it ({error})"))
    return result


def _failure(error: Exception, name: str, queue: str) -> CommandError:
    """Return what happened, what it means and what to do, with its exit code."""
    said, code = f"RabbitMQ: {str(error).rstrip('.')}.", EXIT_FAILED
    match error:
        case rpc.NoServer():
            said = (
                f"{error} It was not executed. Start a server: manage.py run_rpc_worker {name}; or name another queue "
                "with --queue."
            )
        case rpc.RpcTimeout():
            said = f"{error} Is {queue} served? Look at `manage.py mq queues`, or wait longer with --timeout."
            code = EXIT_TIMED_OUT
        case rpc.NoBroker() | rpc.ConnectionLost() if isinstance(error.__cause__, AccessRefused):
            hint = "Use an account that may (AMQP_URL); `manage.py mq grants` prints what an rpc-caller needs."
            said = f"RabbitMQ refuses: {str(error).rstrip('.')}. {hint}"
        case rpc.NoBroker() if error.silent:
            said, code = f"{said} It may be frozen, overworked or full.", EXIT_TIMED_OUT
        case rpc.NoBroker():
            said, code = f"{said} {what_to_do(error.__cause__)}", EXIT_UNREACHABLE
        case rpc.ConnectionLost():
            said, code = f"{said} It is unknown whether it was executed.", EXIT_UNREACHABLE
        case rpc.RemoteError():
            said = f"{name} answered with an error: {printable(str(error))}"
        case BodyTooLarge() | ValueError():
            said, code = printable(str(error)), EXIT_USAGE
        case rpc.RpcError():
            said = printable(str(error))
        case _:
            raise error
    return CommandError(said, returncode=code)


def _interrupted(calls: int, done: int) -> CommandError:
    sent = client.close()
    not_sent = max(0, calls - done - sent)
    said = [
        *([f"{not_sent} of {calls} not sent"] if not_sent else []),
        *([f"{sent} of {calls} not answered: unknown whether executed"] if sent else []),
    ]
    return CommandError(f"{'; '.join(['Interrupted', *said])}.", returncode=EXIT_INTERRUPTED)


def _one_of(failures: list[CommandError], calls: int) -> CommandError:
    """Return the error that the command ends with: the exit code is theirs if all have the same."""
    if calls == 1:
        return failures[0]
    codes = {failure.returncode for failure in failures}
    return CommandError(
        f"{len(failures)} of {calls} calls failed.", returncode=codes.pop() if len(codes) == 1 else EXIT_FAILED
    )


def _text(value: Any) -> str:
    return printable(json.dumps(value, ensure_ascii=False))


def _json_value(text: str) -> Any:
    try:
        return procedures.decode(text.encode(errors="surrogateescape"))
    except ValueError as error:
        quoted = json.dumps(text, ensure_ascii=False)
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON ({error}); a text is written '{quoted}'") from None

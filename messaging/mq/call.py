"""`manage.py mq call`: ask a procedure, ours or anybody's, from a terminal."""

from __future__ import annotations

import argparse
import json
import math
import threading
from concurrent.futures import Future
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from messaging import procedures, rpc
from messaging.exceptions import AccessRefused, BodyTooLarge
from messaging.management.arguments import EXIT_INTERRUPTED, EXIT_TIMED_OUT, EXIT_UNREACHABLE, EXIT_USAGE, what_to_do
from messaging.management.tables import printable
from messaging.procedures import request_queue
from messaging.rpc import client

EXIT_FAILED = 1
#: Longest --timeout in seconds; a person waits no longer.
MAX_TIMEOUT = 86_400

HELP = "call a procedure and print its result"
EXAMPLES = """
examples:
  manage.py mq call fib 30                         prints 832040
  manage.py mq call fib 10 20 30 40 50             five calls at the same time, each answer beside its value
  manage.py mq call shipping.quote '{"weight_grams": 500, "destination": "CN"}'    an object holds named arguments
  manage.py mq call anything 4 --queue rpc_queue   a server that is not ours, by its queue

Values are JSON: a text needs its quotation marks ('"abc"').

exit codes: 0 answered, 1 nobody serves it, or it answered with an error, 2 wrong arguments, 3 broker unreachable,
7 no answer in time, 130 interrupted
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this sub-command."""
    parser.add_argument("name", metavar="NAME", help="the procedure")
    parser.add_argument(
        "values", nargs="*", type=_json_value, metavar="JSON",
        help="what to pass: several are called at the same time; none: called without arguments",
    )  # fmt: skip
    parser.add_argument("--queue", metavar="QUEUE", help="where its requests go (default: the procedure's own queue)")
    parser.add_argument(
        "--timeout", type=_seconds, default=10.0, metavar="S", help="seconds to wait for the answer (default 10)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object for each call, errors included")


def run(command: BaseCommand, options: dict[str, Any]) -> None:
    """Call, and print what was answered in the order of the values."""
    name, queue = options["name"], options["queue"]
    values = options["values"] or [procedures.NO_ARGUMENTS]
    calls: list[Future[Any]] = []
    failures: list[CommandError] = []
    try:
        for value in values:
            calls.append(_called(name, value, options["timeout"], queue))
        for value, call in zip(values, calls, strict=True):
            try:
                _write(command, options, value, call.result())
            except Exception as error:
                failure = _failure(error, name, queue or request_queue(name))
                failures.append(failure)
                if options["json"]:
                    _write_error(command, name, value, error)
                elif len(values) > 1:
                    command.stderr.write(f"{_text(value)} → {failure}")
    except KeyboardInterrupt:
        raise _interrupted(len(values), sum(call.done() for call in calls)) from None
    if failures:
        raise _one_of(failures, len(values))


def _called(name: str, value: Any, timeout: float, queue: str | None) -> Future[Any]:
    """Call on a thread of its own. Not a pool's: the process would wait for it after Ctrl-C."""
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


def _write(command: BaseCommand, options: dict[str, Any], value: Any, result: Any) -> None:
    if options["json"]:
        command.stdout.write(_text({"name": options["name"], "value": value, "result": result}))
    elif len(options["values"]) > 1:
        command.stdout.write(f"{_text(value)}{' → ' if command.stdout.isatty() else chr(9)}{_text(result)}")
    else:
        command.stdout.write(_text(result))
    command.stdout.flush()


def _write_error(command: BaseCommand, name: str, value: Any, error: Exception) -> None:
    if isinstance(error, rpc.RemoteError):
        said = {"type": error.type, "message": error.message}
    else:
        said = {"type": type(error).__name__, "message": str(error)}
    command.stdout.write(_text({"name": name, "value": value, "error": said}))
    command.stdout.flush()


def _failure(error: Exception, name: str, queue: str) -> CommandError:
    """Say what happened, what it means and what to do, with the exit code that goes with it."""
    match error:
        case rpc.NoServer():
            return CommandError(
                f"{error} It was not executed. Start a server: manage.py run_rpc_worker {name}; or name another "
                "queue with --queue.",
                returncode=EXIT_FAILED,
            )
        case rpc.RpcTimeout():
            return CommandError(
                f"{error} Does anybody serve {queue}? Look at `manage.py mq queues`, or wait longer with --timeout.",
                returncode=EXIT_TIMED_OUT,
            )
        case rpc.NoBroker() | rpc.ConnectionLost() if isinstance(error.__cause__, AccessRefused):
            return CommandError(
                f"RabbitMQ refuses: {_sentence(error)} Use an account that may (AMQP_URL); `manage.py mq grants` "
                "prints what an rpc-caller needs.",
                returncode=EXIT_FAILED,
            )
        case rpc.NoBroker():
            if error.silent:
                return CommandError(
                    f"RabbitMQ: {_sentence(error)} It may be frozen, overworked or full.", returncode=EXIT_TIMED_OUT
                )
            return CommandError(
                f"RabbitMQ: {_sentence(error)} {what_to_do(error.__cause__)}", returncode=EXIT_UNREACHABLE
            )
        case rpc.ConnectionLost():
            return CommandError(
                f"RabbitMQ: {_sentence(error)} Executed or not, nobody knows.", returncode=EXIT_UNREACHABLE
            )
        case rpc.RemoteError():
            return CommandError(f"{name} answered with an error: {printable(str(error))}", returncode=EXIT_FAILED)
        case BodyTooLarge() | ValueError():
            return CommandError(printable(str(error)), returncode=EXIT_USAGE)
        case rpc.RpcError():
            return CommandError(printable(str(error)), returncode=EXIT_FAILED)
    raise error


def _interrupted(calls: int, done: int) -> CommandError:
    sent = client.close()
    not_sent = max(0, calls - done - sent)
    said = [
        *([f"{not_sent} of {calls} not sent"] if not_sent else []),
        *([f"{sent} of {calls} not answered: executed or not, nobody knows"] if sent else []),
    ]
    return CommandError(f"{'; '.join(['Interrupted', *said])}.", returncode=EXIT_INTERRUPTED)


def _sentence(error: Exception) -> str:
    return f"{str(error).rstrip('.')}."


def _one_of(failures: list[CommandError], calls: int) -> CommandError:
    """Return the error that the command ends with; where they differ nobody can say more than that it failed."""
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


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number <= MAX_TIMEOUT:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, above 0 and up to {MAX_TIMEOUT}")
    return number

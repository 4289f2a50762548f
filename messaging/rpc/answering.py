"""The answer to a request: a reply, or the reason why there is none. No broker here, and no threads."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from pydantic import ValidationError

from messaging import conf, consumers, procedures
from messaging.broker.request_queue import Request
from messaging.exceptions import HandlerTimeout
from messaging.message import Message, whole_number
from messaging.procedures import Arguments, Procedure
from messaging.topology import desired
from messaging.validation import functions
from messaging.worker import time_limit


class Ending(StrEnum):
    """How a request ended."""

    HANDLED = "handled"
    FAILED = "failed"
    EXPIRED = "expired"
    UNANSWERABLE = "unanswerable"
    GIVEN_UP = "given up"


@dataclass(frozen=True, slots=True)
class Answer:
    """The body of a reply. An error has the name of its type, as the caller sees it, and what was raised, if any."""

    body: bytes
    error: str = ""
    cause: BaseException | None = None


def answer(procedure: Procedure, request: Message) -> Answer:
    """Run `procedure` on `request` and return the result, or what went wrong. Never raises.

    Errors of the request itself are BadRequest, TooLarge and BadArguments: then the procedure did not run. Errors of
    the result are BadResult and TooLarge. HandlerTimeout says that it took too long; a procedure that ignores its time
    limit ends this process. All others are the procedure's own, by the name of their class.
    """
    limit = conf.get().max_body_bytes
    if len(request.body) > limit:
        return refusal("TooLarge", f"the request has {len(request.body)} bytes, the limit is {limit}")
    if not request.has_plain_body:
        return refusal("BadRequest", f"content encoding {request.content_encoding!r:.50} is not understood")
    try:
        arguments = procedure.bind(procedures.decode(request.body))
    except ValidationError as error:
        return refusal("BadArguments", _problems(procedure, error))
    except ValueError as error:
        return refusal("BadRequest", f"the body is not JSON: {error}")
    except BaseException as error:
        # Of the project's code for its arguments; SystemExit included, which must not end the thread.
        return refusal(type(error).__name__, _text(error), error)
    result = _run(procedure, arguments, f"{procedure.name} {request.correlation_id}")
    if len(result.body) > limit:
        return refusal("TooLarge", f"the result has {len(result.body)} bytes, the limit is {limit}")
    return result


def why_unanswerable(reply_to: str) -> str:
    """Return why nothing may be sent to the queue `reply_to`; empty if it may.

    A client that can send a request names the queue that this process then writes to. Without this check it could name
    any of ours.
    """
    if not reply_to:
        return "it has no reply_to"
    if reply_to.startswith(procedures.REPLY_QUEUE_PREFIX):
        return ""
    ours = {each.queue for each in consumers.registered()} | {each.queue for each in procedures.registered()}
    prefixes = (f"{conf.get().app_id}.", procedures.QUEUE_PREFIX)
    if reply_to in ours or reply_to == desired.dead_letter_queue() or reply_to.startswith(prefixes):
        return f"its reply_to {reply_to!r:.300} is a queue of ours, and no queue of replies"
    return ""


def seconds_late(request: Request) -> float | None:
    """Return by how many seconds the caller's deadline is past; None if it is not, or there is none."""
    message = request.arrival.message
    deadline = whole_number(message.headers.get(procedures.DEADLINE_HEADER))
    if deadline is not None:
        late = (procedures.now_ms() - deadline) / 1000
    elif message.expiration.isdecimal():
        # RabbitMQ drops requests that expire in the queue. Since then this process has held it.
        late = time.monotonic() - request.arrived_at - int(message.expiration) / 1000
    else:
        return None
    return late if late > 0 else None


def refusal(type: str, message: str, cause: BaseException | None = None) -> Answer:
    """Return the answer that says what went wrong."""
    return Answer(procedures.encode_error(type, message), error=type, cause=cause)


def _run(procedure: Procedure, arguments: Arguments, name: str) -> Answer:
    bodies: list[bytes] = []
    ran = False

    def run_and_encode() -> None:
        # Encoding can run code of the procedure too: a generator, a query set.
        nonlocal ran
        result = procedure.run(arguments)
        ran = True
        functions.require_awaited(result, "the procedure")
        bodies.append(procedures.encode(result))

    try:
        time_limit.run(run_and_encode, seconds=procedure.seconds, name=name)
    except HandlerTimeout as error:
        return refusal("HandlerTimeout", str(error), error)
    except BaseException as error:
        # SystemExit included: a procedure must not end the thread that serves the others.
        if ran:
            return refusal("BadResult", f"the result cannot be sent: {_text(error)}", error)
        return refusal(type(error).__name__, _text(error), error)
    return Answer(bodies[0])


def _text(error: BaseException) -> str:
    # The __str__ of an error can fail too.
    for written in (str, repr):
        with suppress(BaseException):
            if text := written(error):
                return text
    return ""


def _problems(procedure: Procedure, error: ValidationError) -> str:
    # Which argument and why, never its value: it may be personal.
    problems = error.errors(include_input=False, include_url=False)
    return "; ".join(f"{_place(procedure, each['loc'])}: {each['msg']}" for each in problems[:5])


def _place(procedure: Procedure, location: tuple[int | str, ...]) -> str:
    # Callers know an argument by the parameter's name, not by its position.
    match location:
        case (int(position), *within):
            location = (*procedure.positional[position : position + 1], *within)
    return ".".join(map(str, location)) or "arguments"

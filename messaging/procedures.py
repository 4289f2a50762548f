"""Procedures: functions that other processes may call. Their declaration, and how requests and replies travel.

A request is JSON: an object of keyword arguments, or any other value as the one positional argument. A reply is the
result as JSON, or `{"error": {"type": …, "message": …}}`. Our headers add to that, and clients and servers may omit
them: without `x-deadline` a request is valid until its `expiration`, and a reply without `x-rpc-status` is a result.
`rpc.server` runs the procedures.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps
from inspect import Parameter, signature
from typing import Any, Final, TypeVar

from django.core.exceptions import ImproperlyConfigured
from pydantic import ConfigDict, TypeAdapter
from pydantic_core import ArgsKwargs, from_json, to_json

from messaging import conf
from messaging.exceptions import RemoteError, UnknownProcedure
from messaging.message import Message
from messaging.registry import Registry
from messaging.retry import check_times
from messaging.validation import fields, functions, numbers, texts

AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])

#: Positional arguments, keyword arguments.
Arguments = tuple[tuple[Any, ...], dict[str, Any]]

#: Prefix of the names of request queues.
QUEUE_PREFIX = "rpc."
#: Prefix of the names of reply queues, to which a server may publish.
REPLY_QUEUE_PREFIX = "rpc.reply."

#: When the caller stops waiting: milliseconds since 1970, UTC, by the server's clock as far as the caller knows it.
DEADLINE_HEADER = "x-deadline"
#: The sender's time: milliseconds since 1970, UTC. A server's reply has its own, so that the caller learns by how much
#: their clocks differ.
CLOCK_HEADER = "x-clock"
#: "ok" or "error", which tells an error from a result that looks like one. "expired", only for a caller that sent its
#: clock: the request was not run, because its deadline had passed by the server's clock.
STATUS_HEADER = "x-rpc-status"
OK = "ok"
ERROR = "error"
EXPIRED = "expired"

#: The payload for a procedure without parameters; None is the value null.
NO_ARGUMENTS: Final[Mapping[str, Any]] = {}

#: Characters of an error's message that travel.
MAX_ERROR_TEXT = 2000

_TAKEN_PREFIXES = (texts.RESERVED_PREFIX, REPLY_QUEUE_PREFIX)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")


@dataclass(frozen=True, slots=True)
class Procedure:
    """A function that can be called over the broker, and the queue of its requests."""

    name: str
    queue: str
    function: Callable[..., Any]
    _bind: Callable[[ArgsKwargs], Arguments]
    #: Whether its queue is declared as in the RabbitMQ tutorials.
    plain_queue: bool = False
    #: How long it may take; None means the project's setting.
    timeout: timedelta | None = None

    @property
    def seconds(self) -> float:
        """Seconds that it may take."""
        return self.timeout.total_seconds() if self.timeout else conf.get().procedure_timeout

    def bind(self, payload: Any) -> Arguments:
        """Return the arguments in `payload`, checked against the function's annotations.

        A JSON object holds keyword arguments; any other JSON value is the one positional argument.
        Raises pydantic.ValidationError.
        """
        return self._bind(ArgsKwargs((), payload) if isinstance(payload, dict) else ArgsKwargs((payload,)))

    @property
    def positional(self) -> list[str]:
        """The names of the parameters that a positional argument can be for, in their order."""
        by_position = {Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD}
        return [each.name for each in signature(self.function).parameters.values() if each.kind in by_position]

    def run(self, arguments: Arguments) -> Any:
        """Call the function and return its result. Raises what it raises."""
        positional, named = arguments
        return self.function(*positional, **named)


registry: Registry[Procedure] = Registry(
    "procedure", name_of=lambda each: each.name, defined_by=lambda each: each.function, unknown=UnknownProcedure
)
get, named, registered = registry.get, registry.named, registry.all


def procedure(
    name: str, queue: str | None = None, *, plain_queue: bool = False, timeout: timedelta | None = None
) -> Callable[[AnyFunction], AnyFunction]:
    """Declare the decorated function as the procedure `name`; `manage.py run_rpc_worker` runs it.

    Its parameters are annotated; a call's JSON is converted to those types, or refused before the function runs.
    It returns anything that pydantic can turn into JSON. An exception reaches the caller as `RemoteError`. A request
    can be run twice (if its server dies before it replies): declare questions, not effects.
    After its `timeout` (default: `PROCEDURE_TIMEOUT`) HandlerTimeout is raised in it, and is the reply.

    The queue of its requests is `queue`, by default `rpc.<name>`. It is durable, and deleted with its last server: a
    call without a server fails at once, with NoServer. With `plain_queue` an existing queue is used unchanged, and a
    missing one is declared as in the RabbitMQ tutorials (durable, quorum), so that their servers can share it. It is
    not deleted, and a call without a server only ends by its timeout.

    Raises ImproperlyConfigured for a bad or taken name or queue, a bad timeout, and an async function.
    """
    if not isinstance(name, str):
        raise ImproperlyConfigured(f'a procedure has a name: write @procedure("shipping.quote"), not {name!r:.100}')
    if not _NAME.fullmatch(name):
        raise ImproperlyConfigured(
            f"procedure name {name!r}: use up to 200 letters, digits, dots, dashes and underscores"
        )
    queue = queue or f"{QUEUE_PREFIX}{name}"
    if not texts.is_short(queue) or queue.startswith(_TAKEN_PREFIXES):
        raise ImproperlyConfigured(
            f"procedure {name!r}: the name of a queue has 255 bytes at most, no NUL, and begins with none of "
            f"{_TAKEN_PREFIXES}"
        )
    check_times(f"procedure {name!r}", timeout)
    try:
        numbers.check_switch("plain_queue", plain_queue)
    except ValueError as error:
        raise ImproperlyConfigured(f"procedure {name!r}: {error}") from None

    def register(function: AnyFunction) -> AnyFunction:
        if not callable(function):
            raise ImproperlyConfigured(f"procedure {name!r} is {functions.kind_of(function)}, and no function")
        functions.check_runs(function, f"procedure {name!r}")
        for other in registered():
            if other.queue == queue and other.name != name:
                raise ImproperlyConfigured(f"procedures {other.name!r} and {name!r} share the queue {queue!r}")
        registry.add(Procedure(name, queue, function, _binder(function), plain_queue, timeout))
        return function

    return register


def request_queue(name: str) -> str:
    """Return the queue that requests for `name` go to; it need not be a procedure of this process."""
    known = registry.find(name)
    return known.queue if known else f"{QUEUE_PREFIX}{name}"


def _binder(function: Callable[..., Any]) -> Callable[[ArgsKwargs], Arguments]:
    # Checked apart from the call: an error is then the caller's, not the procedure's.
    @wraps(function)
    def bind(*positional: Any, **named: Any) -> Arguments:
        return positional, named

    # Not `validate_call`: before pydantic 2.12 an argument named "self" collides with one of its own.
    bind.__annotations__ = functions.type_hints(function)
    return TypeAdapter(bind, config=ConfigDict(populate_by_name=True)).validate_python  # type: ignore[arg-type]


def now_ms() -> int:
    """Return the time in the unit of `DEADLINE_HEADER`."""
    return time.time_ns() // 1_000_000


def encode(value: Any) -> bytes:
    """Return `value` as JSON. Raises ValueError for values without a JSON form, NaN and infinity (which would arrive as
    null), secrets (which would arrive as asterisks), and values in a model's field with `exclude` (which would not
    arrive)."""
    body = to_json(value, inf_nan_mode="constants")
    if (b"NaN" in body or b"Infinity" in body or b"null" in body) and not fields.is_finite(value):
        raise ValueError("it holds a number without a JSON form: NaN, or an infinite one")
    if b"NaN" in body or b"Infinity" in body:
        decode(body)  # the value was a generator, which is empty by now
    if b'"**********"' in body and fields.holds_secret(value):
        raise ValueError("it holds a secret, which would be sent as asterisks: pass what get_secret_value() returns")
    if (field := fields.excluded(value)) is not None:
        raise ValueError(f"field {field} in it has exclude=True, so its value would not be sent")
    return body


def decode(body: bytes) -> Any:
    """Return the value of a JSON text. Raises ValueError, also for NaN and numbers that are too large for a float."""
    value = from_json(body, allow_inf_nan=False)
    if fields.is_too_large(body, value):
        raise ValueError("a number in it is too large")
    return value


def encode_error(type: str, message: str) -> bytes:
    """Return the body of a reply that reports an error."""
    clean = message.encode(errors="replace").decode()
    return encode({"error": {"type": type, "message": clean[:MAX_ERROR_TEXT]}})


def is_expired(reply: Message) -> bool:
    """Whether a reply says that the request was not run, because it came too late by the server's clock."""
    return reply.headers.get(STATUS_HEADER) == EXPIRED


def result_of(reply: Message) -> Any:
    """Return the result in `reply`. Raises RemoteError if it is an error, ValueError if it is not JSON."""
    value = decode(reply.body)
    if reply.headers.get(STATUS_HEADER) != ERROR:
        return value
    error = value.get("error") if isinstance(value, dict) else None
    if not isinstance(error, dict):
        error = {"message": value}
    raise RemoteError(str(error.get("type", "Error")), str(error.get("message", "")))

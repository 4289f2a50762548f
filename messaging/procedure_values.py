"""What a call looks like on the wire, the same for client and server.

A request is JSON: an object of keyword arguments, or any other value as the one positional argument. A reply is the
result as JSON, or `{"error": {"type": …, "message": …}}`. Headers of ours say more, and every client and server may
leave them out: without `x-deadline` a request is good for as long as its `expiration` allows, and a reply without
`x-rpc-status` is a result.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from pydantic_core import from_json, to_json

from messaging.exceptions import RemoteError
from messaging.message import Message
from messaging.validation import fields

#: When the caller stops waiting: milliseconds since 1970, UTC, by the server's clock as far as the caller knows it.
DEADLINE_HEADER = "x-deadline"
#: What time it is for whoever sends this: milliseconds since 1970, UTC. A server answers it with its own, so that a
#: caller learns by how much their clocks differ.
CLOCK_HEADER = "x-clock"
#: "ok" or "error"; what tells a result that looks like an error from an error. "expired" only to a caller that sent its
#: clock: the request was not run, because its deadline is past by the server's clock.
STATUS_HEADER = "x-rpc-status"
OK = "ok"
ERROR = "error"
EXPIRED = "expired"

#: What is passed to a procedure that takes nothing. Not None: that is null, a value like any other.
NO_ARGUMENTS: Final[Mapping[str, Any]] = {}

#: Characters of an error's message that travel.
MAX_ERROR_TEXT = 2000


def now_ms() -> int:
    """Return the time as `DEADLINE_HEADER` has it."""
    return time.time_ns() // 1_000_000


def encode(value: Any) -> bytes:
    """Return `value` as JSON. Raises ValueError for what JSON has no form for: NaN and infinity included, which would
    arrive as null, and secrets, which would arrive as stars."""
    body = to_json(value, inf_nan_mode="constants")
    if (b"NaN" in body or b"Infinity" in body or b"null" in body) and not fields.is_finite(value):
        raise ValueError("it holds a number that JSON cannot say: NaN, or an infinite one")
    if b"NaN" in body or b"Infinity" in body:
        decode(body)  # of a generator, which can be looked into only once
    if b'"**********"' in body and fields.holds_secret(value):
        raise ValueError("it holds a secret, which would be sent as stars: pass what get_secret_value() returns")
    return body


def decode(body: bytes) -> Any:
    """Return the value of a JSON text. Raises ValueError, also for NaN, numbers that are too large for a float, bad
    UTF-8 and bottomless nesting."""
    value = from_json(body, allow_inf_nan=False)
    if fields.is_too_large(body, value):
        raise ValueError("a number in it is too large")
    return value


def encode_error(type: str, message: str) -> bytes:
    """Return the body of a reply that says what went wrong."""
    clean = message.encode(errors="replace").decode()
    return encode({"error": {"type": type, "message": clean[:MAX_ERROR_TEXT]}})


def is_expired(reply: Message) -> bool:
    """Whether a reply says that the request came too late by the server's clock, and was not run."""
    return reply.headers.get(STATUS_HEADER) == EXPIRED


def result_of(reply: Message) -> Any:
    """Return the result that `reply` holds. Raises RemoteError where it holds an error, ValueError for no JSON."""
    value = decode(reply.body)
    if reply.headers.get(STATUS_HEADER) != ERROR:
        return value
    error = value.get("error") if isinstance(value, dict) else None
    if not isinstance(error, dict):
        error = {"message": value}
    raise RemoteError(str(error.get("type", "Error")), str(error.get("message", "")))

"""The caller's side of RPC: `call`, and `acall` for coroutines. All threads of a process share one connection."""

from __future__ import annotations

import atexit
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.core.signals import setting_changed
from django.utils.asyncio import async_unsafe

from messaging import conf, procedures, processes
from messaging.exceptions import BadReply, BodyTooLarge, NoBroker, RpcError, ThreadNotStarted
from messaging.headers import request_headers
from messaging.logs import get_logger
from messaging.message import Message
from messaging.procedures import request_queue
from messaging.routing import MAX_SHORT_STRING
from messaging.rpc.connection import Call, RpcConnection
from messaging.validation import texts

log = get_logger(__name__)

#: Longest timeout in seconds: AMQP expirations are 32 bits of milliseconds.
_MAX_TIMEOUT = 2**32 // 1000


@async_unsafe(
    "rpc.call() waits for its reply, and an event loop would stand still meanwhile. In a coroutine write "
    "`await rpc.acall(…)`, with the same arguments."
)
def call(name: str, payload: Any = procedures.NO_ARGUMENTS, *, timeout: float, queue: str | None = None) -> Any:
    """Call the procedure `name` on whichever server takes the request, and return its result, decoded from JSON.

    `payload` is anything pydantic turns into JSON: a mapping for keyword arguments, another value, None
    included, for the one positional argument. `timeout` is in seconds and covers everything, connecting included.
    The request goes to `queue` if that is given: a foreign server need not follow our names.

    Raises NoServer (at once; not executed), NoBroker (not sent), RpcTimeout and ConnectionLost (it may have been
    executed), RemoteError (the procedure's own error) and BadReply; all are RpcError, and are logged with the
    correlation id that the server's log has too. Raises BodyTooLarge, and ValueError for a payload without a JSON
    form, a model in it with a value in a field with `exclude`, a bad timeout, or a queue name that AMQP does not take;
    SynchronousOnlyOperation in a coroutine, which uses `acall`. A call that may have been executed is never repeated:
    only the caller knows whether that is harmless. The clocks of caller and server may differ.
    """
    waiting = _call_of(name, payload, timeout, queue)
    with _failure_logged(waiting):
        return _result(name, connection(name).reply_to(waiting))


async def acall(name: str, payload: Any = procedures.NO_ARGUMENTS, *, timeout: float, queue: str | None = None) -> Any:
    """Call a procedure from a coroutine, with the arguments, result and errors of `call`. It takes no thread, so any
    number of calls can wait at once.

    If the coroutine is cancelled, a request that was sent may be executed all the same.
    """
    waiting = _call_of(name, payload, timeout, queue)
    with _failure_logged(waiting):
        return _result(name, await connection(name).areply_to(waiting))


def _call_of(name: str, payload: Any, timeout: float, queue: str | None) -> Call:
    if not (isinstance(timeout, int | float) and math.isfinite(timeout) and 0 < timeout <= _MAX_TIMEOUT):
        raise ValueError(f"timeout is {timeout!r}; it is a number of seconds, above 0 and up to {_MAX_TIMEOUT}")
    deadline = time.monotonic() + timeout
    body = procedures.encode(payload)
    if len(body) > conf.get().max_body_bytes:
        raise BodyTooLarge(f"{name}: the request has {len(body)} bytes, the limit is {conf.get().max_body_bytes}.")
    return Call(
        name=name,
        queue=texts.checked("queue", queue or request_queue(name), octets=MAX_SHORT_STRING),
        body=body,
        deadline=deadline,
        headers=request_headers(),
    )


@contextmanager
def _failure_logged(waiting: Call) -> Iterator[None]:
    try:
        yield
    except RpcError as error:
        log.info(
            "rpc.call_failed",
            procedure=waiting.name,
            outcome=type(error).__name__,
            reason=str(error),
            correlation_id=waiting.correlation_id,
        )
        raise


def _result(name: str, reply: Message) -> Any:
    limit = conf.get().max_body_bytes
    if len(reply.body) > limit:
        raise BadReply(f"{name}: the reply has {len(reply.body)} bytes, the limit is {limit}")
    try:
        return procedures.result_of(reply)
    except ValueError as error:
        raise BadReply(f"{name}: the reply is not JSON: {error}") from None


class _Own:
    """The connection of this process for calls, if it has one."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.connection: RpcConnection | None = None


_own = _Own()


def close() -> int:
    """Close this process's connection for calls, if there is one; the next call opens another.

    Returns how many calls were sent and have no reply: they may have been executed. None is sent from here on.
    """
    with _own.lock:
        connection, _own.connection = _own.connection, None
    return connection.stop() if connection is not None else 0


def connection(name: str = "a call") -> RpcConnection:
    """Return the connection of this process for calls; `name` is the procedure that is called.

    Raises NoBroker if the system allows no thread for it; the next call tries again.
    """
    with _own.lock:
        if _own.connection is None:
            try:
                opened = RpcConnection()
                opened.connection.start()
            except (ThreadNotStarted, OSError) as error:
                raise NoBroker(f"{name}: not sent: {error}") from error
            _own.connection = opened
        return _own.connection


def _close_with_old_settings(*, setting: str, **kwargs: Any) -> None:
    if setting == "MESSAGING":
        close()


def _begin_anew_after_fork() -> None:
    # The parent's thread does not exist here, its socket is not ours, and its lock may be held for ever.
    global _own
    _own = _Own()


setting_changed.connect(_close_with_old_settings)
processes.in_each_child(_begin_anew_after_fork)
atexit.register(close)

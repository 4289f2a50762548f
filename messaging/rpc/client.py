"""The caller's side: one connection per process serves all threads, which wait for replies by correlation id."""

from __future__ import annotations

import atexit
import math
import threading
import time
import uuid
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from asgiref.sync import sync_to_async
from django.core.signals import setting_changed
from django.utils.asyncio import async_unsafe

from messaging import conf, procedures, processes
from messaging.broker.requester import Requester
from messaging.exceptions import (
    BadReply,
    BodyTooLarge,
    BrokerSilent,
    ConnectionLost,
    NoBroker,
    NoServer,
    RpcError,
    RpcTimeout,
    ThreadNotStarted,
)
from messaging.headers import request_headers
from messaging.logs import Throttle, get_logger
from messaging.message import Message, new_id, whole_number
from messaging.procedures import REPLY_QUEUE_PREFIX, request_queue
from messaging.routing import MAX_SHORT_STRING
from messaging.validation import texts

log = get_logger(__name__)

#: Longest timeout in seconds: AMQP expirations are 32 bits of milliseconds.
_MAX_TIMEOUT = 2**32 // 1000
#: Milliseconds from which a difference between two clocks is told.
WORTH_SAYING = 1000


@async_unsafe(
    "rpc.call() waits for its reply, and an event loop would stand still meanwhile. In a coroutine write "
    "`await rpc.acall(…)`, with the same arguments."
)
def call(name: str, payload: Any = procedures.NO_ARGUMENTS, *, timeout: float, queue: str | None = None) -> Any:
    """Call the procedure `name` on whichever server takes the request, and return its result, decoded from JSON.

    `payload` is anything pydantic turns into JSON: a mapping for keyword arguments, another value, None
    included, for the one positional argument. `timeout` is in seconds and covers everything, connecting included.
    The request goes to `queue` where that is given: a server that is not ours need not follow our names.

    Raises NoServer (at once; not executed), NoBroker (not sent), RpcTimeout and ConnectionLost (executed or not:
    nobody knows), RemoteError (the procedure's own error) and BadReply; all are RpcError, and are logged with the
    correlation id that the server's log has too. Raises BodyTooLarge, and ValueError for a payload without a JSON
    form, a timeout that is none, or a queue whose name AMQP does not take; SynchronousOnlyOperation in a coroutine,
    which uses `acall`. What may have been executed is never tried again: whoever calls knows whether that is harmless.
    The clocks of caller and server may differ.
    """
    if not (isinstance(timeout, int | float) and math.isfinite(timeout) and 0 < timeout <= _MAX_TIMEOUT):
        raise ValueError(f"timeout is {timeout!r}; it is a number of seconds, above 0 and up to {_MAX_TIMEOUT}")
    deadline = time.monotonic() + timeout
    body = procedures.encode(payload)
    if len(body) > conf.get().max_body_bytes:
        raise BodyTooLarge(f"{name}: the request has {len(body)} bytes, the limit is {conf.get().max_body_bytes}.")
    waiting = _Call(
        name=name,
        queue=texts.checked("queue", queue or request_queue(name), octets=MAX_SHORT_STRING),
        body=body,
        deadline=deadline,
        headers=request_headers(),
    )
    try:
        return _result(name, _client(name).reply_to(waiting))
    except RpcError as error:
        log.info(
            "rpc.call_failed",
            procedure=name,
            outcome=type(error).__name__,
            reason=str(error),
            correlation_id=waiting.correlation_id,
        )
        raise


async def acall(name: str, payload: Any = procedures.NO_ARGUMENTS, *, timeout: float, queue: str | None = None) -> Any:
    """Call a procedure from a coroutine: `call` on a thread of its own, with the same arguments, result and errors.

    A coroutine that is cancelled leaves the call to itself: it may have been executed.
    """
    return await sync_to_async(call, thread_sensitive=False)(name, payload, timeout=timeout, queue=queue)


def _result(name: str, reply: Message) -> Any:
    limit = conf.get().max_body_bytes
    if len(reply.body) > limit:
        raise BadReply(f"{name}: the reply has {len(reply.body)} bytes, the limit is {limit}")
    try:
        return procedures.result_of(reply)
    except ValueError as error:
        raise BadReply(f"{name}: the reply is not JSON: {error}") from None


@dataclass(slots=True, kw_only=True, eq=False)
class _Call:
    """A caller's wait. All but `answer` belongs to the I/O thread once the call was handed over."""

    name: str
    queue: str
    body: bytes
    #: By the monotonic clock.
    deadline: float
    headers: dict[str, str]
    correlation_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    answer: Future[Message] = field(default_factory=Future)
    sent: bool = False
    #: By this host's clock, in milliseconds.
    sent_at: int = 0
    #: Attempts to connect that failed while this call waited to be sent.
    failures: int = 0

    def request(self, ahead: int) -> Message:
        """Return the request, for a server whose clock is `ahead` milliseconds ahead of this host's."""
        left_ms = max(1, int((self.deadline - time.monotonic()) * 1000))
        self.sent_at = procedures.now_ms()
        return Message(
            body=self.body,
            id=new_id(),
            type=texts.fitted(self.name),
            correlation_id=self.correlation_id,
            app_id=conf.get().app_id,
            timestamp=datetime.now(UTC),
            expiration=str(left_ms),
            persistent=False,
            headers={
                **self.headers,
                procedures.CLOCK_HEADER: self.sent_at,
                procedures.DEADLINE_HEADER: self.sent_at + left_ms + ahead,
            },
        )


class RpcClient:
    """The calls of this process that wait for a reply."""

    def __init__(self) -> None:
        self._requester = Requester(
            REPLY_QUEUE_PREFIX,
            on_change=self._send_waiting,
            on_reply=self._replied,
            on_returned=self._returned,
            on_broken=self._broken,
        )
        self._calls: dict[str, _Call] = {}
        #: A call by the present reply queue has ended without its reply: that may still come.
        self._reply_may_be_late = False
        #: A reply without a correlation id was ignored: only a fresh reply queue tells whose the next one is.
        self._needs_fresh_queue = False
        #: By how many milliseconds the servers' clock at a queue is ahead of ours, as far as it is known.
        self._ahead: dict[str, int] = {}
        #: What was said of clocks.
        self._throttle = Throttle()
        #: Replies that nobody waited for: late, repeated, or somebody else's.
        self.ignored_replies = 0

    def start(self) -> None:
        """Connect in the background. Returns at once."""
        self._requester.start()

    def stop(self) -> int:
        """Close the connection, within a bounded time; return how many calls were sent and have no answer."""
        self._requester.stop()
        return sum(call.sent for call in list(self._calls.values()))

    def reply_to(self, call: _Call) -> Message:
        """Send `call` and wait for its reply until its deadline. Raises NoServer, NoBroker, RpcTimeout,
        ConnectionLost."""
        connection = self._requester.connection
        connection.call_soon(lambda: self._take(call))
        try:
            return call.answer.result(max(0.0, call.deadline - time.monotonic()))
        except FutureTimeout:
            # cancel() fails where the reply came in this very moment: then it counts.
            if not call.answer.cancel():
                return call.answer.result()
            if call.sent:
                raise RpcTimeout(
                    f"{call.name}: no reply in time. It may have been executed, or may still be."
                    f"{self._clocks(call.queue)}"
                ) from None
            blocked = "it takes no messages (memory or disk alarm)" if connection.blocked else "no connection in time"
            raise NoBroker(
                f"{call.name}: not sent: {connection.error or blocked}",
                silent=connection.error is None or isinstance(connection.error, BrokerSilent),
            ) from connection.error
        finally:
            connection.call_soon(lambda: self._forget(call))

    # --- on the I/O thread ---------------------------------------------------------------------------------

    def _take(self, call: _Call) -> None:
        self._calls[call.correlation_id] = call
        if self._requester.ready:
            self._send(call)
        elif self._requester.connection.refused:
            # Not tried again for a while: nobody shall wait for it.
            error = self._requester.connection.error
            self._fail(call, NoBroker(f"{call.name}: not sent: {error}", cause=error))
        else:
            self._requester.prepare()

    def _forget(self, call: _Call) -> None:
        left = self._calls.pop(call.correlation_id, None)
        if left is not None and left.sent:
            self._reply_may_be_late = True
        if self._needs_fresh_queue and not self._calls:
            self._reply_may_be_late = self._needs_fresh_queue = False
            self._requester.renew()

    def _send_waiting(self) -> None:
        for call in list(self._calls.values()):
            if not call.sent and self._requester.ready:
                self._send(call)

    def _send(self, call: _Call) -> None:
        if time.monotonic() >= call.deadline:
            return  # its caller is leaving: do not have it executed for nobody
        # In this order: a caller that leaves now and does not see it as sent has cancelled before the next line.
        call.sent = True
        if call.answer.cancelled():
            return
        try:
            self._requester.send(call.queue, call.request(self._ahead.get(call.queue, 0)))
        except ValueError as error:
            self._fail(call, RpcError(f"{call.name}: the request cannot be sent: {error}"))

    def _clocks(self, queue: str) -> str:
        ahead = self._ahead.get(queue, 0)
        if abs(ahead) < WORTH_SAYING:
            return ""
        how = "ahead of" if ahead > 0 else "behind"
        return f" The clock of its server is {abs(ahead) / 1000:.1f} s {how} this host's: let NTP set both."

    def _says_expired(self, reply: Message) -> bool:
        """Compare clocks; return whether the reply says that the request came too late. By a clock that is ahead of
        ours it may have seemed so: it was not run, and is sent once more. Else its caller is leaving, or has left."""
        call = self._calls.get(reply.correlation_id)
        if call is None:
            return False
        is_further_ahead = self._compare_clocks(call, reply)
        if procedures.is_expired(reply) and is_further_ahead:
            self._send(call)
        return procedures.is_expired(reply)

    def _compare_clocks(self, call: _Call, reply: Message) -> bool:
        """Learn from a reply how the server's clock differs from ours; return whether it is further ahead than was
        known. The server wrote its time between the request and now: what lies in between is no difference."""
        clock = whole_number(reply.headers.get(procedures.CLOCK_HEADER))
        if clock is None:
            return False
        known, now = self._ahead.get(call.queue, 0), procedures.now_ms()
        ahead = clock - now if clock > now else min(0, clock - call.sent_at)
        self._ahead[call.queue] = ahead
        if abs(ahead - known) >= WORTH_SAYING:
            said = self._clocks(call.queue).strip() or "they agree again"
            # Several servers of one queue may have clocks of their own: each reply would make a line.
            if self._throttle.allows(f"{call.queue}: {said}"):
                log.warning("rpc.clocks_differ", queue=call.queue, reason=said)
        return ahead > known

    def _replied(self, reply: Message) -> None:
        if self._says_expired(reply):
            return
        call = self._calls.pop(reply.correlation_id, None) if reply.correlation_id else self._only_call()
        if call is None or not call.answer.set_running_or_notify_cancel():
            self.ignored_replies += 1
            log.info("rpc.reply_ignored", correlation_id=reply.correlation_id, ignored=self.ignored_replies)
        else:
            call.answer.set_result(reply)

    def _only_call(self) -> _Call | None:
        """Return the call that a reply without a correlation id answers, and forget it; None where that is not sure.

        Servers of the simplest tutorials reply so. It is sure where one call is open, and none has ended on this reply
        queue without its reply.
        """
        if len(self._calls) == 1 and not self._reply_may_be_late:
            [call] = self._calls.values()
            if call.sent:
                return self._calls.pop(call.correlation_id)
        self._needs_fresh_queue = True
        return None

    def _returned(self, correlation_id: str) -> None:
        call = self._calls.pop(correlation_id, None)
        if call is not None:
            self._fail(call, NoServer(f"{call.name}: nobody serves the queue {call.queue}."))

    def _broken(self, error: Exception) -> None:
        self._reply_may_be_late = self._needs_fresh_queue = False
        for call in list(self._calls.values()):
            call.failures += 1
            if call.sent:
                lost = f"{call.name}: the connection broke before the reply: {error}"
                self._fail(call, ConnectionLost(lost, cause=error))
            elif call.failures >= len(conf.get().amqp_urls):
                silent = isinstance(self._requester.connection.error, BrokerSilent)
                self._fail(call, NoBroker(f"{call.name}: not sent: {error}", silent=silent, cause=error))
            else:
                self._requester.prepare()

    def _fail(self, call: _Call, error: RpcError) -> None:
        self._calls.pop(call.correlation_id, None)
        if call.answer.set_running_or_notify_cancel():
            call.answer.set_exception(error)


class _Home:
    """The client of this process, if it has one."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.client: RpcClient | None = None


_home = _Home()


def close() -> int:
    """Close this process's connection for calls, if there is one; the next call opens another.

    Return how many calls were sent and have no answer: executed or not, nobody knows. None is sent from here on.
    """
    with _home.lock:
        client, _home.client = _home.client, None
    return client.stop() if client is not None else 0


def _client(name: str = "a call") -> RpcClient:
    """Return the client of this process, for a call of `name`.

    Raises NoBroker where the system does not let its thread start; the next call tries again.
    """
    with _home.lock:
        if _home.client is None:
            try:
                client = RpcClient()
                client.start()
            except (ThreadNotStarted, OSError) as error:
                raise NoBroker(f"{name}: not sent: {error}") from error
            _home.client = client
        return _home.client


def _forget_settings(*, setting: str, **kwargs: Any) -> None:
    if setting == "MESSAGING":
        close()


def _forget_after_fork() -> None:
    # The parent's thread does not exist here, its socket is not ours, and its lock may be held by nobody.
    global _home
    _home = _Home()


setting_changed.connect(_forget_settings)
processes.in_each_child(_forget_after_fork)
atexit.register(close)

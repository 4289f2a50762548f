"""The connection for calls: one for each process. Its threads wait for replies by correlation id."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

from messaging import conf, procedures
from messaging.broker.requester import Requester
from messaging.exceptions import (
    BrokerSilent,
    BrokerUnavailable,
    ConnectionLost,
    NoBroker,
    NoServer,
    OperationRefused,
    RpcError,
    RpcTimeout,
)
from messaging.logs import get_logger
from messaging.message import Message, new_id
from messaging.procedures import REPLY_QUEUE_PREFIX
from messaging.rpc.clocks import Clocks
from messaging.validation import texts

log = get_logger(__name__)


@dataclass(slots=True, kw_only=True, eq=False)
class Call:
    """A call that waits for its reply. All but `answer` belongs to the I/O thread once the call was handed over."""

    name: str
    queue: str
    body: bytes
    #: By the monotonic clock.
    deadline: float
    headers: dict[str, str]
    correlation_id: str = field(default_factory=partial(secrets.token_hex, 16))
    answer: Future[Message] = field(default_factory=Future)
    sent: bool = False
    #: By this host's clock, in milliseconds.
    sent_at: int = 0
    #: Attempts to connect that failed while this call waited to be sent.
    failures: int = 0

    @property
    def seconds_left(self) -> float:
        """Seconds until its deadline; 0 if it is over."""
        return max(0.0, self.deadline - time.monotonic())

    def request(self, ahead: int) -> Message:
        """Return the request, for a server whose clock is `ahead` milliseconds ahead of this host's."""
        left_ms = max(1, int(self.seconds_left * 1000))
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


class RpcConnection(Requester):
    """This process's connection for calls, and the calls that wait for a reply."""

    def __init__(self) -> None:
        super().__init__(REPLY_QUEUE_PREFIX)
        self._calls: dict[str, Call] = {}
        #: Whether a call on this reply queue has ended without its reply, which may still come.
        self._reply_may_be_late = False
        #: Whether a reply without a correlation id was ignored: only on a fresh reply queue is the next one certain.
        self._needs_fresh_queue = False
        self._clocks = Clocks()
        #: Replies for which no call waits: late, repeated, or foreign.
        self.ignored_replies = 0

    def stop(self) -> int:
        """Close the connection, within a bounded time; return how many calls were sent and have no answer."""
        self.connection.stop()
        return sum(call.sent for call in list(self._calls.values()))

    def reply_to(self, call: Call) -> Message:
        """Send `call` and wait for its reply until its deadline. Raises NoServer, NoBroker, RpcTimeout,
        ConnectionLost."""
        with self._under_way(call):
            try:
                return call.answer.result(call.seconds_left)
            except FutureTimeout:
                return self._given_up(call)

    async def areply_to(self, call: Call) -> Message:
        """As `reply_to`, in a coroutine, which the event loop runs on as soon as the reply is there."""
        with self._under_way(call):
            reply = asyncio.wrap_future(call.answer)
            await asyncio.wait({reply}, timeout=call.seconds_left)
            return reply.result() if reply.done() else self._given_up(call)

    @contextmanager
    def _under_way(self, call: Call) -> Iterator[None]:
        """Hand `call` to the I/O thread, and take it back if it ends without an answer: it is not sent from then on."""
        self.connection.call_soon(partial(self._take, call))
        try:
            yield
        finally:
            # What is answered the I/O thread has forgotten before.
            if call.answer.cancel():
                self.connection.call_soon(partial(self._forget, call))

    def _given_up(self, call: Call) -> Message:
        """Return the reply that came at this very moment. Raises RpcTimeout if there is none, or NoBroker."""
        if not call.answer.cancel():
            return call.answer.result()
        if call.sent:
            raise RpcTimeout(
                f"{call.name}: no reply in time. It may have been executed, or may still be."
                f"{self._clocks.difference(call.queue)}"
            )
        connection = self.connection
        blocked = "it takes no messages (memory or disk alarm)" if connection.blocked else "no connection in time"
        raise NoBroker(
            f"{call.name}: not sent: {connection.error or blocked}",
            silent=connection.error is None or isinstance(connection.error, BrokerSilent),
        ) from connection.error

    # --- on the I/O thread ---------------------------------------------------------------------------------

    def _take(self, call: Call) -> None:
        self._calls[call.correlation_id] = call
        if self.ready:
            self._send(call)
        elif self.connection.refused:
            # Not tried again for a while, so the caller does not wait.
            error = self.connection.error
            self._fail(call, NoBroker(f"{call.name}: not sent: {error}", cause=error))
        else:
            self.prepare()

    def _forget(self, call: Call) -> None:
        left = self._calls.pop(call.correlation_id, None)
        if left is not None and left.sent:
            self._reply_may_be_late = True
        self._renew_if_due()

    def _renew_if_due(self) -> None:
        if self._needs_fresh_queue and not self._calls:
            self._reply_may_be_late = self._needs_fresh_queue = False
            self.renew()

    def _may_be_ready(self) -> None:
        for call in list(self._calls.values()):
            if not call.sent and self.ready:
                self._send(call)

    def _send(self, call: Call) -> None:
        if time.monotonic() >= call.deadline:
            return  # its caller is leaving
        # In this order: a caller that leaves now and does not see it as sent has cancelled before the next line.
        call.sent = True
        if call.answer.cancelled():
            return
        try:
            self.send(call.queue, call.request(self._clocks.ahead(call.queue)))
        except ValueError as error:
            self._fail(call, RpcError(f"{call.name}: the request cannot be sent: {error}"))

    def _says_expired(self, call: Call, reply: Message) -> bool:
        """Whether the reply says that the request came too late, by the server's clock, and was not run.

        If that clock is further ahead of ours than was known, the request is sent once more. Otherwise its caller is
        leaving, or has left.
        """
        is_further_ahead = self._clocks.compare(call.queue, call.sent_at, reply)
        if procedures.is_expired(reply) and is_further_ahead:
            self._send(call)
        return procedures.is_expired(reply)

    def _replied(self, reply: Message) -> None:
        call = self._calls.get(reply.correlation_id) if reply.correlation_id else self._only_call()
        if call is not None:
            if reply.correlation_id and self._says_expired(call, reply):
                return
            del self._calls[call.correlation_id]
        if call is None or not call.answer.set_running_or_notify_cancel():
            self.ignored_replies += 1
            log.info("rpc.reply_ignored", correlation_id=reply.correlation_id, ignored=self.ignored_replies)
        else:
            call.answer.set_result(reply)
        self._renew_if_due()

    def _only_call(self) -> Call | None:
        """Return the call that a reply without a correlation id answers; None if that is not sure.

        Servers of the simplest tutorials reply so. It is sure if one call is open, and none has ended on this reply
        queue without its reply.
        """
        if len(self._calls) == 1 and not self._reply_may_be_late:
            [call] = self._calls.values()
            if call.sent:
                return call
        self._needs_fresh_queue = True
        return None

    def _unserved(self, correlation_id: str) -> None:
        call = self._calls.pop(correlation_id, None)
        if call is not None:
            self._fail(call, NoServer(f"{call.name}: no server consumes the queue {call.queue}."))

    def _broken(self, error: BrokerUnavailable | OperationRefused) -> None:
        self._reply_may_be_late = self._needs_fresh_queue = False
        for call in list(self._calls.values()):
            call.failures += 1
            if call.sent:
                lost = f"{call.name}: the connection broke before the reply: {error}"
                self._fail(call, ConnectionLost(lost, cause=error))
            elif call.failures >= len(conf.get().amqp_urls):
                silent = isinstance(self.connection.error, BrokerSilent)
                self._fail(call, NoBroker(f"{call.name}: not sent: {error}", silent=silent, cause=error))
            else:
                self.prepare()

    def _fail(self, call: Call, error: RpcError) -> None:
        self._calls.pop(call.correlation_id, None)
        if call.answer.set_running_or_notify_cancel():
            call.answer.set_exception(error)
        self._renew_if_due()

"""The server's side of RPC: takes requests, runs procedures on its threads, replies.

Callers do not wait for long, so nothing is retried here. A request is acknowledged once its reply is on the way, or
cannot be given. A server that dies before hands it to the next, so a procedure can run twice. It does not run three
times: a request that two servers were lost with may be what killed them.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from django.db import connections
from structlog.contextvars import bind_contextvars, reset_contextvars

from messaging import conf, database, procedures
from messaging.broker.request_queue import Request, RequestQueue
from messaging.broker.subscription import Subscription
from messaging.headers import headers_to_pass_on
from messaging.logs import Successes, get_logger
from messaging.message import REQUEST_ID_HEADER, Message, new_id
from messaging.procedures import Procedure
from messaging.rpc.answering import Answer, Ending, answer, refusal, seconds_late, why_unanswerable
from messaging.topology import desired
from messaging.worker.service import Service

log = get_logger(__name__)

#: How often a request may be redelivered because its server was lost.
MAX_RETURNS = 1
#: Seconds between two looks at the age of a thread's connections to the databases.
CHECK_AGE_EVERY = 1.0
#: Where and why a message died, as RabbitMQ writes it (https://www.rabbitmq.com/docs/dlx#effects).
DEATH_HEADER = "x-death"


class Databases(threading.local):
    """The connections of a thread to the databases."""

    def __init__(self) -> None:
        self._checked_at = -math.inf

    def refresh(self) -> None:
        """Give up connections that do not work any more, and those that are older than CONN_MAX_AGE, as Django does
        between two requests. For their age they are given up once a second: Django's default is 0, and to connect takes
        longer than most requests."""
        now = time.monotonic()
        if due := now - self._checked_at >= CHECK_AGE_EVERY:
            self._checked_at = now
        for each in connections.all(initialized_only=True):
            close_at = each.close_at
            if not due:
                each.close_at = None
            each.close_if_unusable_or_obsolete()
            each.close_at = close_at


class RpcServer(Service):
    """Serves procedures until told to stop. All share `concurrency` threads; each holds up to `prefetch` requests.

    `on_serving` is called once all queues are consumed.
    """

    kind = "rpc"

    def __init__(
        self,
        procedures: Sequence[Procedure],
        *,
        concurrency: int = 4,
        prefetch: int | None = None,
        max_messages: int | None = None,
        on_serving: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__("rpc server", max_messages=max_messages)
        self.successes = Successes(log, "rpc.handled", named="procedure")
        self.procedures = list(procedures)
        self.prefetch = prefetch or concurrency
        self._on_serving = on_serving
        self._announced = False
        self._databases = Databases()
        self._requests: queue.SimpleQueue[tuple[Procedure, RequestQueue, Request] | None] = queue.SimpleQueue()
        self.subscriptions = [self._request_queue(procedure) for procedure in self.procedures]
        self.threads = [
            threading.Thread(target=self._work, name=f"rpc-{number}", daemon=True)
            for number in range(1, concurrency + 1)
        ]

    # --- on the main thread --------------------------------------------------------------------------------

    def _declare(self, closed: Sequence[Subscription]) -> None:
        # The dead-letter queue, for requests that cannot be answered. Consumers declare it too, but may never have run.
        self._declaration.declare(replace(desired.topology([]), exchanges=()))

    def _usable(self, closed: Iterable[Subscription]) -> list[Subscription]:
        return [each for each in closed if isinstance(each, RequestQueue) and each.declare()]

    def _is_done(self) -> bool:
        if not self._announced and all(each.consuming for each in self.subscriptions):
            self._announced = True
            self._on_serving()
        return False

    def _stop(self) -> None:
        for each in self.subscriptions:
            each.cancel()
        for _ in self.threads:
            self._requests.put(None)

    # --- on the I/O thread ---------------------------------------------------------------------------------

    def _request_queue(self, procedure: Procedure) -> RequestQueue:
        def arrived(request: Request) -> None:
            self._requests.put((procedure, mine, request))

        mine = RequestQueue(
            self._connection, procedure.queue, prefetch=self.prefetch, on_request=arrived, plain=procedure.plain_queue
        )
        return mine

    # --- on a handler thread -------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while (taken := self._requests.get()) is not None:
                procedure, requests, request = taken
                if not requests.is_current(request.arrival):
                    continue  # its channel is gone, and it is redelivered
                if self.tally.take():
                    self._serve(procedure, requests, request)
                else:
                    requests.cancel()  # first: otherwise it would be redelivered at once
                    requests.give_back(request)
        finally:
            connections.close_all()

    def _serve(self, procedure: Procedure, requests: RequestQueue, request: Request) -> None:
        ending = Ending.FAILED
        try:
            # A procedure reads outside transactions. A connection that broke, or is too old, is replaced in between.
            self._databases.refresh()
            with _named_in_log(procedure, request.arrival.message):
                ending = _serve(procedure, requests, request, self.successes)
            database.release_between_messages()
        except BaseException:
            # A fault of our own: no reply is possible, and a repetition would end the same way.
            log.exception("rpc.fault", procedure=procedure.name)
            requests.finish(request)
        finally:
            self.tally.finish()
            self.tally.count(ending)


@contextmanager
def _named_in_log(procedure: Procedure, request: Message) -> Iterator[None]:
    """Name the request in each line that this thread logs inside."""
    context = {"procedure": procedure.name, "correlation_id": request.correlation_id}
    if request.request_id:
        context["request_id"] = request.request_id
    # `bound_contextvars` would look through the whole context first.
    tokens = bind_contextvars(**context)
    try:
        yield
    finally:
        reset_contextvars(**tokens)


def _serve(procedure: Procedure, requests: RequestQueue, request: Request, successes: Successes) -> Ending:
    message = request.arrival.message
    if reason := why_unanswerable(message.reply_to):
        log.warning("rpc.unanswerable", reason=reason)
        requests.finish(request, {desired.dead_letter_queue(): _dead_letter(request, reason)})
        return Ending.UNANSWERABLE
    if late := seconds_late(request):
        log.warning(
            "rpc.expired", seconds_late=round(late, 3), returns=request.returns, **_if_late_on_arrival(request, late)
        )
        # A caller with another clock still waits. A caller that sent no clock does not understand this reply.
        replies = {message.reply_to: _late(message)} if procedures.CLOCK_HEADER in message.headers else {}
        requests.finish(request, replies)
        return Ending.EXPIRED
    if request.returns > MAX_RETURNS:
        reason = f"{request.returns} servers were lost while they held it"
        log.error("rpc.given_up", reason=reason)
        reply = _reply(refusal("ServerLost", reason), message)
        letter = _dead_letter(request, reason)
        requests.finish(request, {desired.dead_letter_queue(): letter, message.reply_to: reply})
        return Ending.GIVEN_UP
    started = time.monotonic()
    result = answer(procedure, message)
    requests.finish(request, {message.reply_to: _reply(result, message)})
    seconds = time.monotonic() - started
    if result.error:
        milliseconds = round(seconds * 1000, 1)
        log.warning("rpc.failed", error=result.error, milliseconds=milliseconds, exc_info=result.cause)
        return Ending.FAILED
    successes.add(procedure.name, seconds=seconds)
    if log.prints_debug:
        log.debug("rpc.replied", milliseconds=round(seconds * 1000, 1))
    return Ending.HANDLED


def _reply(result: Answer, request: Message) -> Message:
    return _message(result.body, procedures.ERROR if result.error else procedures.OK, request)


def _late(request: Message) -> Message:
    text = "by the clock of this server its deadline is past: it was not run"
    return _message(procedures.encode_error("Expired", text), procedures.EXPIRED, request)


def _if_late_on_arrival(request: Request, late: float) -> dict[str, str]:
    if late < time.monotonic() - request.arrived_at:
        return {}
    return {"reason": "it was late when it arrived: it had waited, or the clocks of its caller and this host differ"}


def _message(body: bytes, status: str, request: Message) -> Message:
    headers: dict[str, Any] = {procedures.STATUS_HEADER: status}
    if request.request_id:
        headers[REQUEST_ID_HEADER] = request.request_id
    if procedures.CLOCK_HEADER in request.headers:
        headers[procedures.CLOCK_HEADER] = procedures.now_ms()
    return Message(
        body=body, id=new_id(), app_id=conf.get().app_id, timestamp=datetime.now(UTC), persistent=False, headers=headers
    )


def _dead_letter(request: Request, reason: str) -> Message:
    # Without its expiration it is kept until a person has looked. Without CC it goes nowhere else.
    death = {"queue": request.arrival.queue, "reason": reason, "exchange": request.arrival.exchange, "count": 1}
    headers = {**headers_to_pass_on(request.arrival.message.headers), DEATH_HEADER: [death]}
    return replace(request.arrival.message, headers=headers, expiration="", persistent=True)

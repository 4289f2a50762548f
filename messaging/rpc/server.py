"""The server's side: takes requests, runs procedures on its threads, replies.

Whoever waits for a reply will not wait for long: nothing is retried here. A request is acknowledged once its reply is
on the way, or once it turned out that it can have none; a server that dies before hands it to the next, so a
procedure can run twice. Not three times: a request that two servers were lost with may be what killed them.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import structlog
from django.db import close_old_connections, connections

from messaging import conf, database, procedures, processes
from messaging.broker.connection import Connection
from messaging.broker.queue_answers import SILENT
from messaging.broker.request_queue import Request, RequestQueue
from messaging.exceptions import BrokerRefused, BrokerUnavailable
from messaging.headers import headers_to_pass_on
from messaging.logs import Throttle, get_logger
from messaging.message import REQUEST_ID_HEADER, Message, new_id
from messaging.procedures import Procedure
from messaging.relay import thread as relay_thread
from messaging.rpc.answering import Answer, Ending, answer, refusal, seconds_late, why_unanswerable
from messaging.topology import desired
from messaging.topology.declare import Declaration

log = get_logger(__name__)

#: Seconds between two looks at whether to stop or to reopen.
TICK = 0.1
#: Seconds before a request queue that was lost is opened again.
REOPEN_PAUSE = 1.0
#: How often a request may come back because its server was lost.
MAX_RETURNS = 1
#: Where and why a message died, in the form the broker writes (https://www.rabbitmq.com/docs/dlx#effects).
DEATH_HEADER = "x-death"


@dataclass(slots=True)
class Summary:
    """What a server did."""

    endings: Counter[Ending] = field(default_factory=Counter)
    seconds: float = 0.0
    #: Requests still being run when the time for stopping was up.
    abandoned: int = 0


class RpcServer:
    """Serves procedures until told to stop. All share `concurrency` threads; each holds up to `prefetch` requests."""

    def __init__(
        self,
        procedures: Sequence[Procedure],
        *,
        concurrency: int = 4,
        prefetch: int | None = None,
        max_messages: int | None = None,
    ) -> None:
        self.procedures = list(procedures)
        self.prefetch = prefetch or concurrency
        self._connection = Connection("rpc server", on_lost=self._lost)
        self._declaration = Declaration(self._connection)
        self._throttle = Throttle()
        self._requests: queue.SimpleQueue[tuple[Procedure, RequestQueue, Request] | None] = queue.SimpleQueue()
        self._queues = [self._request_queue(procedure) for procedure in self.procedures]
        self._counting = threading.Lock()
        self._remaining = max_messages
        self._busy = 0
        self.endings: Counter[Ending] = Counter()
        self.threads = [
            threading.Thread(target=self._work, name=f"rpc-{number}", daemon=True)
            for number in range(1, concurrency + 1)
        ]

    # --- on the main thread --------------------------------------------------------------------------------

    def run(self, should_stop: Callable[[], bool], on_serving: Callable[[], None] = lambda: None) -> Summary:
        """Serve until `should_stop()` or the last of `max_messages`; call `on_serving` once all queues are open.

        Requests that have arrived are still answered, within `STOP_TIMEOUT`. Waits for a broker that is away, for
        as long as it takes; raises BrokerRefused where it refuses this user at the first attempt.
        """
        started = time.monotonic()
        try:
            relay_thread.enable()
            if self._start(should_stop):
                self._supervise(should_stop, on_serving)
        finally:
            abandoned = self._finish()
        return Summary(endings=self.endings, seconds=time.monotonic() - started, abandoned=abandoned)

    def _start(self, should_stop: Callable[[], bool]) -> bool:
        """Start all threads, the handlers' before the connection that brings them work; return whether all run."""
        workers = all(processes.start_thread(each.name, each.start, should_stop) for each in self.threads)
        return workers and processes.start_thread("connection", self._connection.start, should_stop)

    def _supervise(self, should_stop: Callable[[], bool], on_serving: Callable[[], None]) -> None:
        next_open = 0.0
        announced = False
        while not should_stop() and self._remaining != 0:
            if self._connection.refused and not self._connection.generation:
                raise BrokerRefused(self._connection.last_error)
            relay_thread.revive()
            if time.monotonic() >= next_open and self._open_queues():
                next_open = time.monotonic() + REOPEN_PAUSE
            self._say_what_does_not_begin()
            if not announced and all(each.consuming for each in self._queues):
                announced = True
                on_serving()
            time.sleep(TICK)

    def _open_queues(self) -> bool:
        closed = [each for each in self._queues if not each.active]
        if not closed or not self._connection.is_open:
            return False
        try:
            # Where requests go that cannot be answered; consumers declare it too, but may never have run.
            self._declaration.declare(replace(desired.topology([]), exchanges=()))
        except BrokerUnavailable as error:
            if self._throttle.allows(str(error)):
                log.warning("rpc.broker_error", reason=str(error))
            return True
        for each in closed:
            each.open()
        return True

    def _say_what_does_not_begin(self) -> None:
        """Name, each minute, the queues that have not answered the wish to consume."""
        for each in self._queues:
            if each.begins_late() and self._throttle.allows(f"silent: {each.queue}"):
                log.error("rpc.queue_silent", queue=each.queue, reason=SILENT)

    def _finish(self) -> int:
        for each in self._queues:
            each.cancel()
        for _ in self.threads:
            self._requests.put(None)
        deadline = time.monotonic() + conf.get().stop_timeout
        for thread in self.threads:
            processes.join(thread, deadline - time.monotonic())
        self._connection.stop()
        return self._busy

    # --- on the I/O thread ---------------------------------------------------------------------------------

    def _request_queue(self, procedure: Procedure) -> RequestQueue:
        def arrived(request: Request) -> None:
            self._requests.put((procedure, mine, request))

        mine = RequestQueue(
            self._connection,
            procedure.queue,
            prefetch=self.prefetch,
            on_request=arrived,
            plain=procedure.plain_queue,
        )
        return mine

    def _lost(self, reason: str) -> None:
        for each in self._queues:
            each.lost(reason)

    # --- on a handler thread -------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while (taken := self._requests.get()) is not None:
                procedure, requests, request = taken
                if not requests.is_current(request.arrival):
                    continue  # its channel is gone, and it comes again
                if self._may_take():
                    self._serve(procedure, requests, request)
                else:
                    requests.cancel()  # first: else it would come again at once
                    requests.give_back(request)
        finally:
            connections.close_all()

    def _may_take(self) -> bool:
        """Count one request against `max_messages`; False where there is none left."""
        with self._counting:
            if self._remaining == 0:
                return False
            if self._remaining is not None:
                self._remaining -= 1
            self._busy += 1
            return True

    def _serve(self, procedure: Procedure, requests: RequestQueue, request: Request) -> None:
        ending = Ending.FAILED
        try:
            # A procedure reads outside transactions; a connection that broke, or is too old, is replaced in between.
            close_old_connections()
            with structlog.contextvars.bound_contextvars(**_context(procedure, request.arrival.message)):
                ending = _serve(procedure, requests, request)
            database.give_back_pooled()
        except BaseException:
            # A fault of our own: nobody can be answered, and a repeat would end the same way.
            log.exception("rpc.fault", procedure=procedure.name)
            requests.finish(request)
        finally:
            with self._counting:
                self._busy -= 1
                self.endings[ending] += 1


def _context(procedure: Procedure, request: Message) -> dict[str, str]:
    context = {"procedure": procedure.name, "correlation_id": request.correlation_id}
    return {**context, "request_id": request.request_id} if request.request_id else context


def _serve(procedure: Procedure, requests: RequestQueue, request: Request) -> Ending:
    message = request.arrival.message
    if reason := why_unanswerable(message.reply_to):
        log.warning("rpc.unanswerable", reason=reason)
        requests.finish(request, {desired.dead_letter_queue(): _dead_letter(request, reason)})
        return Ending.UNANSWERABLE
    if late := seconds_late(request):
        log.warning(
            "rpc.expired", seconds_late=round(late, 3), returns=request.returns, **_if_late_on_arrival(request, late)
        )
        # A caller whose clock differs waits still; one that sent no clock is not told, as others never were.
        told = {message.reply_to: _late(message)} if procedures.CLOCK_HEADER in message.headers else {}
        requests.finish(request, told)
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
    milliseconds = round((time.monotonic() - started) * 1000, 1)
    if result.error:
        log.warning("rpc.failed", error=result.error, milliseconds=milliseconds, exc_info=result.cause)
        return Ending.FAILED
    log.info("rpc.handled", milliseconds=milliseconds)
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
        body=body,
        id=new_id(),
        app_id=conf.get().app_id,
        timestamp=datetime.now(UTC),
        persistent=False,
        headers=headers,
    )


def _dead_letter(request: Request, reason: str) -> Message:
    # Without its expiration: it is kept until somebody has looked. Without CC: it goes nowhere else.
    death = {"queue": request.arrival.queue, "reason": reason, "exchange": request.arrival.exchange, "count": 1}
    headers = {**headers_to_pass_on(request.arrival.message.headers), DEATH_HEADER: [death]}
    return replace(request.arrival.message, headers=headers, expiration="", persistent=True)

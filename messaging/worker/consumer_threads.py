"""One consumer's deliveries in this process: from its subscription through handler threads to the ack."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

from django.db import connections

from messaging import database, effects
from messaging.broker.arrival import Arrival
from messaging.broker.connection import Connection
from messaging.broker.subscription import Subscription
from messaging.consumers import Consumer
from messaging.exceptions import OperationRefused
from messaging.logs import Successes, Throttle, get_logger
from messaging.message import Delivery
from messaging.models.counts import MinuteCount, counting
from messaging.worker import effect_runner, handling
from messaging.worker.database_wait import DatabaseWait
from messaging.worker.service import Tally
from messaging.worker.verdict import Verdict

log = get_logger(__name__)

#: Seconds for which a batch waits to fill.
LINGER = 0.02
#: Seconds to rest after an error of our own code, so that it cannot spin.
FAULT_PAUSE = 1.0


class ConsumerThreads:
    """One consumer at work: its subscription and handler threads, which count in `tally` and `successes`.

    `writer`, if given, is held while a delivery is handled: SQLite has one writer.
    """

    def __init__(
        self,
        consumer: Consumer,
        connection: Connection,
        tally: Tally,
        successes: Successes,
        *,
        threads: int,
        prefetch: int,
        writer: threading.Lock | None,
    ) -> None:
        self.consumer = consumer
        self._connection = connection
        self._tally = tally
        self._successes = successes
        self._arrivals: queue.SimpleQueue[Arrival | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._wait = DatabaseWait(consumer.name, self._stopping, writer)
        #: Why the subscription ended, since it was last consuming.
        self._throttle = Throttle()
        self.subscription = Subscription(
            connection,
            consumer.bindings if consumer.broadcast else consumer.queue,
            prefetch=max(prefetch, consumer.batch),
            threads=threads,
            on_arrival=self._arrived,
            on_ended=self._ended,
        )
        self.threads = [
            threading.Thread(target=self._work, name=f"{consumer.name}-{number}", daemon=True)
            for number in range(1, threads + 1)
        ]

    # --- from the worker -----------------------------------------------------------------------------------

    def stop(self) -> None:
        """Take no further delivery: those that have not begun go back to the queue at once."""
        self._stopping.set()
        self.subscription.cancel()
        for _ in self.threads:
            self._arrivals.put(None)

    def is_idle(self) -> bool:
        """Whether nothing is being handled and the queue is empty. Raises BrokerUnavailable."""
        if self._holds_work() or not self.subscription.consuming:
            return False
        try:
            answer = self._connection.call("queue_declare", queue=self.subscription.queue, passive=True)
        except OperationRefused:
            return False  # deleted, or not there yet: the worker declares it again
        return not (answer.messages or self._holds_work())

    def _holds_work(self) -> bool:
        return bool(self._tally.busy) or not self._arrivals.empty()

    def _arrived(self, arrival: Arrival) -> None:
        if self._stopping.is_set():
            self.subscription.requeue(arrival)
        else:
            self._arrivals.put(arrival)

    def _ended(self, reason: str) -> None:
        # It is opened again every second.
        if self.subscription.had_begun:
            self._throttle.reset()
        if self._throttle.allows(reason) and not self._stopping.is_set():
            log.warning("consumer.ended", consumer=self.consumer.name, queue=self.subscription.queue, reason=reason)

    # --- on a handler thread -------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    arrivals = self._next()
                    if arrivals:
                        self._handle_all(arrivals)
                        database.release_between_messages()
                except BaseException:
                    # The thread must go on: it holds deliveries, and the process looks as if it handled them.
                    log.exception("consumer.fault", consumer=self.consumer.name)
                    self._stopping.wait(FAULT_PAUSE)
        finally:
            self._requeue_the_rest()
            connections.close_all()

    def _next(self) -> list[Arrival]:
        """Wait for a delivery; for a consumer with batches take those behind it too, up to a redelivered one."""
        arrival = self._take(None)
        arrivals = [arrival] if arrival else []
        deadline = time.monotonic() + LINGER
        while arrivals and len(arrivals) < self.consumer.batch and not arrivals[-1].redelivered:
            arrival = self._take(max(0.0, deadline - time.monotonic()))
            if arrival is None:
                break
            arrivals.append(arrival)
        return arrivals

    def _take(self, timeout: float | None) -> Arrival | None:
        try:
            arrival = self._arrivals.get(timeout=timeout)
        except queue.Empty:
            return None
        if arrival is None or not self.subscription.is_current(arrival):
            return None  # told to stop; or its channel is gone, and it is redelivered
        if self._stopping.is_set() or not self._tally.take():
            # Requeued while consuming, it would be redelivered at once and count towards the delivery limit.
            self.subscription.cancel()
            self.subscription.requeue(arrival)
            return None
        return arrival

    def _handle_all(self, arrivals: list[Arrival]) -> None:
        alone = arrivals
        try:
            # A redelivered message may be one that kills its process: its start is committed before it is handled.
            together = [arrival for arrival in arrivals if not arrival.redelivered]
            if len(together) > 1 and self._handle_together(together):
                alone = [arrival for arrival in arrivals if arrival.redelivered]
            while alone:
                self._handle(alone[0])
                alone = alone[1:]
        except BaseException:
            # A fault of our own, not of a message: what was not acknowledged is requeued, so nothing is lost. To
            # requeue what was acknowledged would make the broker close the channel.
            for arrival in alone:
                self.subscription.requeue(arrival)
            raise
        finally:
            self._tally.finish(len(arrivals))

    def _handle_together(self, arrivals: list[Arrival]) -> bool:
        deliveries = [self._delivery(arrival) for arrival in arrivals]
        verdicts = self._wait.run(lambda: handling.handle_together(self.consumer, deliveries))
        if verdicts is None:
            return False
        handled = list(zip(deliveries, verdicts, strict=True))
        self._run_effects(handled)
        self._done(arrivals, handled)
        return True

    def _handle(self, arrival: Arrival) -> None:
        delivery = self._delivery(arrival)
        # When the database is back the start is not counted again: this process did not die of the message.
        again = replace(delivery, redelivered=False) if delivery.redelivered else delivery
        deliveries = iter([delivery])
        verdict = self._wait.run(lambda: handling.handle(self.consumer, next(deliveries, again)))
        if verdict is not None:
            handled = [(delivery, verdict)]
            self._run_effects(handled)
            self._done([arrival], handled)

    def _run_effects(self, handled: Sequence[tuple[Delivery, Verdict]]) -> None:
        """Carry out the intended effects, after the commit and outside any transaction.

        Those of a duplicate too: its process may have died before. What a stopping process leaves, the upkeep of
        another takes.
        """
        message_ids = [
            delivery.message_id
            for delivery, verdict in handled
            if delivery.intended or (verdict is Verdict.DUPLICATE and effects.registered())
        ]
        if message_ids:
            effect_runner.run_of(self.consumer.name, message_ids, self._wait)

    def _done(self, arrivals: Sequence[Arrival], handled: Sequence[tuple[Delivery, Verdict]]) -> None:
        # Last of all, after the commit: a crash before this line redelivers the messages, which then find their rows.
        self.subscription.ack(*arrivals)
        for delivery, verdict in handled:
            self._tally.count(verdict)
            if verdict is Verdict.HANDLED:
                self._successes.add(self.consumer.name, seconds=delivery.tries.seconds)
            elif verdict in {Verdict.RETRYING, Verdict.DEAD}:
                counting.add(MinuteCount.What.FAILED, self.consumer.name)

    def _requeue_the_rest(self) -> None:
        while True:
            try:
                arrival = self._arrivals.get_nowait()
            except queue.Empty:
                return
            if arrival is None:
                self._arrivals.put(None)  # meant for another thread, which waits for it
                return
            self.subscription.requeue(arrival)

    def _delivery(self, arrival: Arrival) -> Delivery:
        return handling.delivery_of(
            self.consumer,
            arrival.message,
            queue=arrival.queue,
            exchange=arrival.exchange,
            routing_key=arrival.routing_key,
            redelivered=arrival.redelivered,
        )

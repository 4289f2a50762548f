"""A lane: one consumer's deliveries in this process, from its subscription through handler threads to the ack."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from django.db import connections

from messaging import conf, database, effects, encoding, processes
from messaging.broker.connection import Connection
from messaging.broker.subscription import Arrival, PrivateQueue, Subscription
from messaging.consumers import Consumer
from messaging.exceptions import OperationRefused, Undecodable
from messaging.logs import Throttle, get_logger
from messaging.message import Delivery, identity, new_id
from messaging.worker import effect_runner as sending
from messaging.worker import handling, ledger
from messaging.worker.database_wait import Turns
from messaging.worker.handling import Verdict

log = get_logger(__name__)

Result = TypeVar("Result")

#: Seconds for which a batch waits to fill.
LINGER = 0.02
#: Seconds to rest after an error of our own code, so that it cannot spin.
FAULT_PAUSE = 1.0


class Lane:
    """One consumer at work. `may_take` is asked before each delivery is begun; `turn`, where given, is held while
    one is handled: SQLite has one writer."""

    def __init__(
        self,
        consumer: Consumer,
        connection: Connection,
        *,
        threads: int,
        prefetch: int,
        may_take: Callable[[], bool],
        turn: threading.Lock | None,
    ) -> None:
        self.consumer = consumer
        self._connection = connection
        self._may_take = may_take
        self._arrivals: queue.SimpleQueue[Arrival | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._turns = Turns(consumer.name, self._stopping, turn)
        self._count_lock = threading.Lock()
        self.verdicts: Counter[Verdict] = Counter()
        #: Deliveries being handled now.
        self.busy = 0
        #: Why the subscription ended, since it was last consuming.
        self._throttle = Throttle()
        self.subscription = self._subscription(max(prefetch, consumer.batch))
        self.threads = [
            threading.Thread(target=self._work, name=f"{consumer.name}-{number}", daemon=True)
            for number in range(1, threads + 1)
        ]

    # --- from the worker -----------------------------------------------------------------------------------

    def start(self, given_up: Callable[[], bool] = lambda: False) -> bool:
        """Start the handler threads; they wait for deliveries. Return False where `given_up` came before all had
        started."""
        return all(processes.start_thread(thread.name, thread.start, given_up) for thread in self.threads)

    def stop(self) -> None:
        """Take no further delivery: what has not been begun goes back to the queue at once."""
        self._stopping.set()
        self.subscription.cancel()
        for _ in self.threads:
            self._arrivals.put(None)

    def join(self, deadline: float) -> None:
        """Wait until `deadline` (monotonic) for what has been begun."""
        for thread in self.threads:
            processes.join(thread, deadline - time.monotonic())

    def bind_again(self) -> None:
        """Bind the queue of a broadcast once more; those of others are looked after by the relays. Returns at once."""
        if isinstance(self.subscription, PrivateQueue):
            self.subscription.bind_again()

    def is_idle(self) -> bool:
        """Whether nothing is being handled and the queue is empty. Raises BrokerUnavailable."""
        if self.busy or not self._arrivals.empty() or not self.subscription.consuming:
            return False
        try:
            answer = self._connection.call("queue_declare", queue=self.subscription.queue, passive=True)
        except OperationRefused:
            return False  # deleted, or not there yet: the worker declares it again
        return not (answer.messages or self.busy or not self._arrivals.empty())

    def _subscription(self, prefetch: int) -> Subscription:
        if self.consumer.broadcast:
            return PrivateQueue(
                self._connection,
                self.consumer.bindings,
                prefetch=prefetch,
                on_arrival=self._arrived,
                on_ended=self._ended,
            )
        return Subscription(
            self._connection, self.consumer.queue, prefetch=prefetch, on_arrival=self._arrived, on_ended=self._ended
        )

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
                        database.give_back_pooled()
                except BaseException:
                    # The thread must go on: it holds deliveries, and the process looks as if it handled them.
                    log.exception("consumer.fault", consumer=self.consumer.name)
                    self._stopping.wait(FAULT_PAUSE)
        finally:
            self._return_the_rest()
            connections.close_all()

    def _next(self) -> list[Arrival]:
        """Wait for a delivery; with a batching consumer, take those behind it too, until one was redelivered."""
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
            return None  # told to stop; or its channel is gone, and it comes again
        if self._stopping.is_set() or not self._may_take():
            # Given back while still consuming, it would come again at once, and each time a little nearer to the
            # queue's delivery limit.
            self.subscription.cancel()
            self.subscription.requeue(arrival)
            return None
        with self._count_lock:
            self.busy += 1
        return arrival

    def _handle_all(self, arrivals: list[Arrival]) -> None:
        alone = arrivals
        try:
            # A redelivered message may be one that kills its process: it goes alone, its start committed first.
            together = [arrival for arrival in arrivals if not arrival.redelivered]
            if len(together) > 1 and self._handle_together(together):
                alone = [arrival for arrival in arrivals if arrival.redelivered]
            while alone:
                self._handle(alone[0])
                alone = alone[1:]
        except BaseException:
            # A fault of our own, not of a message: what was not acknowledged goes back, so nothing is lost. To give
            # back what was acknowledged would make the broker close the channel.
            for arrival in alone:
                self.subscription.requeue(arrival)
            raise
        finally:
            with self._count_lock:
                self.busy -= len(arrivals)

    def _handle_together(self, arrivals: list[Arrival]) -> bool:
        deliveries = [self._delivery(arrival) for arrival in arrivals]
        verdicts = self._turns.take(lambda: handling.handle_together(self.consumer, deliveries))
        if verdicts is None:
            return False
        self._look_after_effects(list(zip(deliveries, verdicts, strict=True)))
        for arrival, verdict in zip(arrivals, verdicts, strict=True):
            self._done(arrival, verdict)
        return True

    def _handle(self, arrival: Arrival) -> None:
        delivery = self._delivery(arrival)
        # When the database comes back the start is not counted again: this process did not die of the message.
        deliveries = itertools.chain([delivery], itertools.repeat(replace(delivery, redelivered=False)))
        verdict = self._turns.take(lambda: handling.handle(self.consumer, next(deliveries)))
        if verdict is not None:
            self._look_after_effects([(delivery, verdict)])
            self._done(arrival, verdict)

    def _look_after_effects(self, handled: Sequence[tuple[Delivery, Verdict]]) -> None:
        """Carry out what was intended, after the commit and outside any transaction. A duplicate's process may have
        died in the middle of it."""
        concerned = [
            delivery.message_id
            for delivery, verdict in handled
            if delivery.intended or (verdict is Verdict.DUPLICATE and effects.registered())
        ]
        if not concerned:
            return
        which = ledger.of_messages(self.consumer.name, concerned)
        full = True
        while full:
            claimed = self._turns.take(partial(ledger.claim, which, sending.PARALLEL)) or []
            if claimed:
                self._turns.take(partial(ledger.note, sending.carry_out(claimed)))
            # What a stopping process leaves over, a sweep takes up.
            full = len(claimed) == sending.PARALLEL and not self._stopping.is_set()

    def _done(self, arrival: Arrival, verdict: Verdict) -> None:
        # Last of all, after the commit: a crash before this line brings the message back, to find its row.
        self.subscription.ack(arrival)
        with self._count_lock:
            self.verdicts[verdict] += 1

    def _return_the_rest(self) -> None:
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
        message = encoding.named(arrival.message, arrival.routing_key)
        known_as = identity(message.id, message.app_id, own_app_id=conf.get().app_id)
        try:
            attempt = message.attempt
        except Undecodable:
            attempt = 1  # the handling looks again, and says what is wrong
        return Delivery(
            consumer=self.consumer.name,
            queue=arrival.queue,
            message=message,
            message_id=known_as or new_id(),
            attempt=attempt,
            identified=bool(known_as),
            redelivered=arrival.redelivered,
            exchange=arrival.exchange,
            routing_key=arrival.routing_key,
        )

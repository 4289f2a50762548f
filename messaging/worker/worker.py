"""The worker: runs consumers in this process, from the broker's deliveries to the acknowledgements."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from functools import partial

from messaging import conf, database
from messaging.broker.connection import opened
from messaging.broker.queue_answers import CURE, SILENT, ask_queues, is_stream
from messaging.broker.rights import lacks_right
from messaging.broker.subscription import Subscription
from messaging.consumers import MAX_PREFETCH, Consumer
from messaging.exceptions import BrokerUnavailable
from messaging.logs import Successes, get_logger
from messaging.models.counts import MinuteCount, counting
from messaging.relay import thread as relay_thread
from messaging.topology import desired
from messaging.worker.consumer_threads import ConsumerThreads
from messaging.worker.service import Service
from messaging.worker.upkeep import Upkeep

log = get_logger(__name__)

#: Seconds before a queue that cannot be consumed is looked at again.
UNUSABLE_PAUSE = 30.0
#: Looks at empty queues, one after the other, that end a burst.
EMPTY_LOOKS = 3


class Worker(Service):
    """Runs consumers until told to stop; with `burst` until their queues are empty.

    Each consumer has a subscription and `concurrency` handler threads of its own, so that a slow one delays none of
    the others. On SQLite, which has one writer, the whole process handles one delivery at a time.
    """

    kind = "consumer"

    def __init__(
        self,
        consumers: Sequence[Consumer],
        *,
        concurrency: int = 1,
        prefetch: int | None = None,
        max_messages: int | None = None,
        burst: bool = False,
    ) -> None:
        super().__init__("consumer", max_messages=max_messages)
        self.successes = Successes(
            log, "messages.handled", named="consumer", also=partial(counting.add, MinuteCount.What.HANDLED)
        )
        self._burst = burst
        self._empty_looks = 0
        self._bind_due = time.monotonic() + conf.DECLARE_INTERVAL
        writer = threading.Lock() if database.is_sqlite() else None
        threads = 1 if writer else concurrency
        self.consumers = [
            ConsumerThreads(
                consumer,
                self._connection,
                self.tally,
                self.successes,
                threads=threads,
                prefetch=prefetch or consumer.prefetch or _prefetch(consumer, threads),
                writer=writer,
            )
            for consumer in consumers
        ]
        # One without a fence may have had one before: its effects and waiting messages are still to be looked after.
        self._upkeep = Upkeep([consumer for consumer in consumers if consumer.records_failures])
        self.subscriptions = [each.subscription for each in self.consumers]
        self.threads = [*(thread for each in self.consumers for thread in each.threads), self._upkeep.thread]
        #: Until when a queue that cannot be consumed is left alone (monotonic).
        self._unusable_until: dict[str, float] = {}

    def _enable_relay(self) -> None:
        relay_thread.enable(at_once=True)

    def _stop(self) -> None:
        for each in self.consumers:
            each.stop()
        self._upkeep.stopping.set()

    def _is_done(self) -> bool:
        """Bind the queues of broadcasts again every `DECLARE_INTERVAL`; return whether a burst is over.

        Raises BrokerUnavailable if a burst cannot reach the broker: without `burst` it is waited for.
        """
        if time.monotonic() >= self._bind_due:
            self._bind_due = time.monotonic() + conf.DECLARE_INTERVAL
            for each in self.subscriptions:
                each.bind_again()  # does nothing to a queue that the relays declare
        if not self._burst:
            return False
        if self._connection.never_reached:
            raise self._connection.unavailable()
        self._empty_looks = self._empty_looks + 1 if self._is_idle() else 0
        return self._empty_looks >= EMPTY_LOOKS

    def _is_idle(self) -> bool:
        try:
            return all(each.is_idle() for each in self.consumers)
        except BrokerUnavailable:
            return False

    def _to_open(self) -> Iterable[Subscription]:
        now = time.monotonic()
        return [each for each in super()._to_open() if now >= self._unusable_until.get(each.queue, 0.0)]

    def _declare(self, closed: Sequence[Subscription]) -> None:
        self._declaration.declare(desired.topology(each.consumer for each in self._of(closed)))

    def _usable(self, closed: Iterable[Subscription]) -> Iterable[Subscription]:
        """Return those whose queues can be consumed. The others are logged, and left alone for UNUSABLE_PAUSE: over a
        quorum queue without a leader RabbitMQ closes the connection of all consumers. Raises BrokerUnavailable."""
        for each in self._of(closed):
            reason = "" if each.consumer.broadcast else self._why_unusable(each.subscription)
            if reason:
                queue = each.consumer.queue
                self._unusable_until[queue] = time.monotonic() + UNUSABLE_PAUSE
                log.error("consumer.queue_unusable", consumer=each.consumer.name, queue=queue, reason=reason)
            else:
                yield each.subscription

    def _why_unusable(self, subscription: Subscription) -> str:
        queue = subscription.queue
        if queue in self._declaration.silent:
            return SILENT
        if queue in self._declaration.differing and is_stream(self._connection, queue):
            return (
                "it is a stream, which shows nothing of what came while its consumer did not run: give the consumer "
                "another queue, or delete the stream"
            )
        if subscription.failures and not lacks_right(subscription.refusal):
            try:
                with opened("probe") as connection:
                    silent = ask_queues(connection, [queue], quorum=[queue])[queue].silent
            except BrokerUnavailable:
                return ""  # unknown: at a limit of connections this process may have the last one
            return f"it exists but does not answer ({silent.rstrip('.')}): {CURE}" if silent else ""
        return ""

    def _of(self, subscriptions: Iterable[Subscription]) -> list[ConsumerThreads]:
        chosen = set(subscriptions)
        return [each for each in self.consumers if each.subscription in chosen]


def _prefetch(consumer: Consumer, threads: int) -> int:
    """Return how many deliveries a consumer holds that does not say so. While its threads handle batches, another one
    arrives."""
    usual = conf.get().prefetch
    return usual if consumer.batch == 1 else max(usual, min((threads + 1) * consumer.batch, MAX_PREFETCH))

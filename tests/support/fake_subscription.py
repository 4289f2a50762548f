"""A consumer's threads without a broker: what they acknowledge and give back is noted."""

from collections.abc import Callable
from typing import Any

from messaging.broker.arrival import Arrival
from messaging.broker.connection import Connection
from messaging.consumers import Consumer
from messaging.logs import Successes, get_logger
from messaging.worker.consumer_threads import ConsumerThreads
from messaging.worker.service import Tally
from tests.support.consuming import a_message


class Busy:
    """A connection whose I/O thread does nothing until it is told to."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []
        self.may_wait: list[bool] = []

    def call_soon(self, function: Callable[[], None], *, may_wait: bool = False) -> None:
        self.calls.append(function)
        self.may_wait.append(may_wait)

    def catch_up(self) -> None:
        while self.calls:
            self.calls.pop(0)()


class FakeSubscription:
    """Takes acknowledgements. What `channel_is_gone` says is of every arrival."""

    queue = "tests.notes"

    def __init__(self) -> None:
        self.acked: list[Arrival] = []
        self.requeued: list[Arrival] = []
        self.channel_is_gone = self.cancelled = self.had_begun = False
        self.consuming = True

    def is_current(self, arrival: Arrival) -> bool:
        return isinstance(arrival, Arrival) and not self.channel_is_gone

    def cancel(self) -> None:
        self.cancelled = True

    def ack(self, *arrivals: Arrival) -> None:
        self.acked.extend(arrivals)

    def requeue(self, arrival: Arrival) -> None:
        self.requeued.append(arrival)


def consumer_threads_of(
    consumer: Consumer, *, connection: Any = None, max_messages: int | None = None, **options: Any
) -> tuple[ConsumerThreads, FakeSubscription]:
    """A consumer's threads, not started, and the subscription that they use."""
    subscription = FakeSubscription()
    successes = Successes(get_logger("messaging"), "messages.handled", named="consumer")
    made = ConsumerThreads(
        consumer,
        connection or Connection("tests"),
        Tally(max_messages),
        successes,
        **{"threads": 1, "prefetch": 1, "writer": None, **options},
    )
    made.subscription = subscription  # type: ignore[assignment]
    return made, subscription


def an_arrival(text: str = "hello", *, redelivered: bool = False) -> Arrival:
    """A message that has arrived and is not acknowledged."""
    return Arrival("tests.notes", a_message(text, app_id="warren"), 1, 1, redelivered, "", "test.noted")

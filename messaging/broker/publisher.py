"""Publisher: pipelined publishing, and an outcome for each message."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from itertools import takewhile
from typing import Any, Self

import pika
from django.utils.asyncio import async_unsafe
from pika import spec
from pika.channel import Channel

from messaging.broker.calls import CALL_TIMEOUT
from messaging.broker.connection import Connection
from messaging.broker.errors import describe, no_confirm_within
from messaging.broker.properties import check_size, to_pika
from messaging.exceptions import BrokerSilent, BrokerUnavailable, OperationRefused
from messaging.logs import get_logger
from messaging.message import OUTBOX_ID_HEADER, Message

log = get_logger(__name__)


class Status(Enum):
    """What became of one publish."""

    #: Every queue that the message was routed to has stored it.
    CONFIRMED = "confirmed"
    #: No queue is bound for it; the broker returned it.
    RETURNED = "returned"
    #: A queue did not take it: it is full, or failing.
    NACKED = "nacked"
    #: It does not fit into AMQP's frames.
    UNSENDABLE = "unsendable"
    #: The broker closed the channel over this message or over another of its batch.
    REFUSED = "refused"
    #: The connection was lost, or the deadline passed, before the confirm. It may have arrived.
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one publish, and why."""

    status: Status
    reason: str = ""
    #: Why the broker closed the channel, if `status` is REFUSED.
    refusal: OperationRefused | None = None
    #: No confirm came in time, although the connection was open.
    late: bool = False
    #: No other message of its channel was without the broker's answer: if it is REFUSED, it was refused itself.
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Publishing:
    """A message and where to send it.

    A returned message is matched by `key`, which is unique in its batch; those without a key must be alike. A message
    that is not `mandatory` is confirmed even if no queue takes it.
    """

    key: str
    exchange: str
    routing_key: str
    message: Message
    mandatory: bool = True


@dataclass(slots=True, eq=False)
class InFlight:
    """A publish, and its outcome once that is known; the first one counts. `settled` is told of it, on the I/O
    thread."""

    publishing: Publishing
    settled: Callable[[Any], None]
    outcome: Outcome | None = None

    @property
    def is_answered(self) -> bool:
        """Whether the broker has said something of it."""
        return self.outcome is not None and self.outcome.status is not Status.UNKNOWN

    def settle(self, outcome: Outcome) -> None:
        """Note the outcome."""
        if self.outcome is None:
            self.outcome = outcome
            self.settled(self)


class ConfirmChannel:
    """A channel in confirm mode, and the publishes on it that have no outcome yet. For the I/O thread.

    With it, `on_ready` is called once it is `ready` to send, and `on_closed` when it was closed and all are settled.
    """

    def __init__(
        self, connection: Connection, on_ready: Callable[[Any], None], on_closed: Callable[[Any], None]
    ) -> None:
        self._connection = connection
        self._on_ready = on_ready
        self._on_closed = on_closed
        self._channel: Channel | None = None
        self._next_tag = 1
        #: By delivery tag; in order of tags, as dicts keep it.
        self.unconfirmed: dict[int, InFlight] = {}
        self._by_key: dict[str, InFlight] = {}
        self.ready = False
        #: When the broker last answered anything on it (monotonic).
        self.heard_at = 0.0

    def open(self) -> bool:
        """Begin to open it; return False if there is no connection, or no channel left on it."""
        return self._connection.open_channel(self._opened, self._closed)

    def send(self, publishings: Sequence[InFlight]) -> None:
        """Publish all. It must be ready."""
        channel = self._channel
        assert channel is not None
        for each in publishings:
            self._send(channel, each)

    def settle_all(self, outcome: Outcome) -> None:
        """Give all that have no outcome this one, and forget them."""
        # A returned message has been answered. One that was given up has not, and may be what the broker refuses.
        unanswered = [each for each in self.unconfirmed.values() if not each.is_answered]
        self.unconfirmed.clear()
        self._by_key.clear()
        if len(unanswered) == 1:
            outcome = replace(outcome, alone=True)
        for each in unanswered:
            each.settle(outcome)

    def close(self) -> None:
        """Close it, without waiting for the broker's answer. What it has not confirmed may still arrive."""
        self.ready = False
        if self._channel is not None and self._channel.is_open:
            self._channel.close()

    def _opened(self, channel: Channel) -> None:
        self._channel = channel
        channel.add_on_return_callback(self._returned)
        channel.confirm_delivery(self._confirmed, callback=lambda _: self._begin())

    def _begin(self) -> None:
        self.ready, self.heard_at = True, time.monotonic()
        self._on_ready(self)

    def _send(self, channel: Channel, each: InFlight) -> None:
        sent = each.publishing
        try:
            properties = to_pika(sent.message)
            check_size(properties)
            channel.basic_publish(
                sent.exchange, sent.routing_key, sent.message.body, properties, mandatory=sent.mandatory
            )
        except (pika.exceptions.AMQPConnectionError, pika.exceptions.AMQPChannelError) as error:
            each.settle(Outcome(Status.UNKNOWN, describe(error)))
        except Exception as error:
            # pika marshals the whole message before it sends a byte: nothing of it is on the wire.
            each.settle(Outcome(Status.UNSENDABLE, describe(error)))
        else:
            self.unconfirmed[self._next_tag] = each
            if sent.key:
                self._by_key[sent.key] = each
            self._next_tag += 1

    def _returned(self, _: Channel, method: spec.Basic.Return, properties: pika.BasicProperties, __: bytes) -> None:
        # It comes before the confirm of the same message, which then finds the publish settled.
        key = (properties.headers or {}).get(OUTBOX_ID_HEADER, properties.message_id)
        each = self._by_key.get(str(key)) or self._first_without_key()
        if each is None:
            log.error("amqp.returned_unknown", message_id=properties.message_id, routing_key=method.routing_key)
        else:
            each.settle(Outcome(Status.RETURNED, f"{method.reply_code} {method.reply_text}"))

    def _first_without_key(self) -> InFlight | None:
        in_flight = self.unconfirmed.values()
        return next((each for each in in_flight if not each.publishing.key and each.outcome is None), None)

    def _confirmed(self, frame: pika.frame.Method) -> None:
        method = frame.method
        self.heard_at = time.monotonic()
        nacked = isinstance(method, spec.Basic.Nack)
        for tag in self._tags(method.delivery_tag, multiple=method.multiple):
            each = self.unconfirmed.pop(tag)
            key = each.publishing.key
            if self._by_key.get(key) is each:  # else the key belongs to a newer publish of the same row
                del self._by_key[key]
            each.settle(_NACKED if nacked else CONFIRMED)

    def _tags(self, tag: int, *, multiple: bool) -> list[int]:
        if multiple:
            return list(takewhile(lambda earlier: earlier <= tag, self.unconfirmed))
        return [tag] if tag in self.unconfirmed else []

    def _closed(self, _: Channel, error: OperationRefused | BrokerUnavailable) -> None:
        self.ready = False
        refusal = error if isinstance(error, OperationRefused) else None
        self.settle_all(Outcome(Status.REFUSED if refusal else Status.UNKNOWN, str(error), refusal))
        self._on_closed(self)


#: The outcome of every message that the broker confirmed.
CONFIRMED = Outcome(Status.CONFIRMED)
_NACKED = Outcome(Status.NACKED, "the broker could not store it")


class Publisher:
    """Publishes lists of messages with confirms, on a connection of its own with one channel."""

    def __init__(self, role: str) -> None:
        self._reached = threading.Event()
        self.connection = Connection(role, on_open=self._open, on_lost=self._lost)
        self._channel: ConfirmChannel | None = None

    def start(self) -> Self:
        """Connect in the background. Returns at once."""
        self.connection.start()
        return self

    def stop(self) -> None:
        """Close the connection, within a bounded time."""
        self.connection.stop()

    def reach(self, given_up: Callable[[], bool] = lambda: False) -> bool:
        """Wait until it can publish for the first time. Returns and raises as `Connection.reach`."""
        if not self.connection.reach(given_up):
            return False
        if not self._reached.wait(CALL_TIMEOUT):
            raise BrokerSilent(self.connection.last_error or "the broker did not open a channel in time")
        return True

    @property
    def ready(self) -> bool:
        """Whether a publish would be sent now: connected, channel in confirm mode, broker not blocked."""
        channel = self._channel
        return channel is not None and channel.ready and self.connection.usable

    @async_unsafe("This waits for RabbitMQ's confirms. In a coroutine write `await sync_to_async(function)(…)`.")
    def publish(self, publishings: Sequence[Publishing], timeout: float) -> list[Outcome]:
        """Send all, wait up to `timeout` seconds for their outcomes, and return these.

        Never raises for what the broker or the network does: the outcomes say that. After the deadline the connection
        is given up as dead, unless the broker is blocked: a blocked broker reads what was sent once its alarm is over,
        and messages sent again on a new connection would be doubled.
        """
        if not publishings:
            return []
        done = threading.Event()
        left = len(publishings)

        def settled(_: InFlight) -> None:
            nonlocal left
            left -= 1
            if not left:
                done.set()

        batch = [InFlight(each, settled) for each in publishings]
        self.connection.call_soon(partial(self._send, batch))
        done.wait(timeout)
        outcomes = [each.outcome for each in batch]
        if any(outcome and outcome.status is Status.CONFIRMED for outcome in outcomes):
            self.connection.succeeded()
        if None not in outcomes:
            return [outcome for outcome in outcomes if outcome]
        reason = no_confirm_within(timeout, blocked=self.connection.blocked)
        if not self.connection.blocked:
            # At once, so that nothing more is sent by this connection before it is given up.
            self._channel = None
            self.connection.reset(reason)
        return [outcome or Outcome(Status.UNKNOWN, reason, late=True) for outcome in outcomes]

    # --- on the I/O thread ---------------------------------------------------------------------------------

    def _open(self) -> None:
        self._channel = ConfirmChannel(self.connection, lambda _: self._reached.set(), self._reopen)
        self._channel.open()

    def _reopen(self, channel: ConfirmChannel) -> None:
        if channel is self._channel and self.connection.is_open:
            self._open()

    def _send(self, batch: list[InFlight]) -> None:
        if self._channel is not None and self._channel.ready:
            self._channel.send(batch)
            return
        for each in batch:
            each.settle(Outcome(Status.UNKNOWN, self.connection.last_error or "no channel to the broker"))

    def _lost(self, reason: str) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.settle_all(Outcome(Status.UNKNOWN, reason))

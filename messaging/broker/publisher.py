"""Publisher: pipelined publishing, and an outcome for each message."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from itertools import takewhile
from typing import Self

import pika
from django.utils.asyncio import async_unsafe
from pika import spec
from pika.channel import Channel

from messaging.broker.calls import CALL_TIMEOUT
from messaging.broker.connection import Connection
from messaging.broker.errors import describe
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


@dataclass(frozen=True, slots=True)
class Publishing:
    """A message and where to send it. `key` is unique in its batch: a returned message is matched by it.

    Without a key a returned message is matched by exchange, routing key and body. A message that is not `mandatory` is
    confirmed even if no queue takes it.
    """

    key: str
    exchange: str
    routing_key: str
    message: Message
    mandatory: bool = True


class _Batch:
    """Publishes in flight: an outcome for each, and an event once all are known."""

    def __init__(self, publishings: Sequence[Publishing]) -> None:
        self.publishings = publishings
        self.outcomes: list[Outcome | None] = [None] * len(publishings)
        self.open = len(publishings)
        self.done = threading.Event()

    def settle(self, index: int, outcome: Outcome) -> None:
        """Set the outcome of one publish; the first one counts."""
        if self.outcomes[index] is None:
            self.outcomes[index] = outcome
            self.open -= 1
            if not self.open:
                self.done.set()


#: A publish in flight: its batch, and its index there.
_Place = tuple[_Batch, int]


class Publisher:
    """Publishes with confirms, on a connection of its own.

    `on_change` is called on the I/O thread whenever `ready` may have changed.
    """

    def __init__(self, role: str, *, on_change: Callable[[], None] | None = None) -> None:
        self._on_change = on_change
        self._reached = threading.Event()
        self.connection = Connection(role, on_open=self._open_channel, on_lost=self._lost, on_change=on_change)
        self._channel: Channel | None = None
        self._next_tag = 1
        #: By delivery tag; in order of tags, as dicts keep it.
        self._unconfirmed: dict[int, _Place] = {}
        self._by_key: dict[str, _Place] = {}

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
        return self._channel is not None and self.connection.usable

    @async_unsafe("This waits for RabbitMQ's confirms. In a coroutine write `await sync_to_async(function)(…)`.")
    def publish(self, publishings: Sequence[Publishing], timeout: float) -> list[Outcome]:
        """Send all, wait up to `timeout` seconds for their outcomes, and return these.

        Never raises for what the broker or the network does: the outcomes say that. After the deadline the connection
        is given up as dead, unless the broker is blocked: a blocked broker reads what was sent once its alarm is over,
        and messages sent again on a new connection would be doubled.
        """
        batch = _Batch(publishings)
        if not publishings:
            return []
        self.connection.call_soon(partial(self._send, batch))
        done = batch.done.wait(timeout)
        if any(outcome and outcome.status is Status.CONFIRMED for outcome in list(batch.outcomes)):
            self.connection.succeeded()
        if done:
            return [outcome for outcome in batch.outcomes if outcome is not None]
        blocked = self.connection.blocked
        alarm = ": a memory or disk alarm blocks the broker" if blocked else ""
        reason = f"no confirm within {timeout:g} s{alarm}"
        # Taken before the reset below, after which the I/O thread settles the rest as lost: they are late.
        outcomes = [outcome or Outcome(Status.UNKNOWN, reason, late=True) for outcome in list(batch.outcomes)]
        if not blocked:
            # At once, so that nothing more is sent by this connection before it is given up.
            self._channel = None
            self.connection.reset(reason)
        return outcomes

    # --- on the I/O thread ---------------------------------------------------------------------------------

    def _open_channel(self) -> None:
        self.connection.open_channel(self._channel_opened, self._channel_closed)

    def _channel_opened(self, channel: Channel) -> None:
        channel.add_on_return_callback(self._returned)
        channel.confirm_delivery(self._confirmed, callback=lambda _: self._channel_ready(channel))

    def _channel_ready(self, channel: Channel) -> None:
        self._channel = channel
        self._next_tag = 1
        self._reached.set()
        self._changed()

    def _send(self, batch: _Batch) -> None:
        channel = self._channel
        if channel is None or not channel.is_open:
            for index in range(len(batch.publishings)):
                batch.settle(index, Outcome(Status.UNKNOWN, self.connection.last_error or "no channel to the broker"))
            return
        for index, publishing in enumerate(batch.publishings):
            try:
                properties = to_pika(publishing.message)
                check_size(properties)
                channel.basic_publish(
                    publishing.exchange,
                    publishing.routing_key,
                    publishing.message.body,
                    properties,
                    mandatory=publishing.mandatory,
                )
            except (pika.exceptions.AMQPConnectionError, pika.exceptions.AMQPChannelError) as error:
                batch.settle(index, Outcome(Status.UNKNOWN, describe(error)))
            except Exception as error:
                # pika marshals the whole message before it sends a byte: nothing of it is on the wire.
                batch.settle(index, Outcome(Status.UNSENDABLE, describe(error)))
            else:
                place = (batch, index)
                self._unconfirmed[self._next_tag] = place
                if publishing.key:
                    self._by_key[publishing.key] = place
                self._next_tag += 1

    def _returned(self, _: Channel, method: spec.Basic.Return, properties: pika.BasicProperties, body: bytes) -> None:
        # It comes before the confirm of the same message, which then finds the publish settled.
        key = (properties.headers or {}).get(OUTBOX_ID_HEADER, properties.message_id)
        place = self._by_key.get(str(key)) or self._equal_to(method, body)
        if place is None:
            log.error("amqp.returned_unknown", message_id=properties.message_id, routing_key=method.routing_key)
            return
        batch, index = place
        batch.settle(index, Outcome(Status.RETURNED, f"{method.reply_code} {method.reply_text}"))

    def _equal_to(self, method: spec.Basic.Return, body: bytes) -> _Place | None:
        returned = ("", method.exchange, method.routing_key, body)
        for batch, index in self._unconfirmed.values():
            each = batch.publishings[index]
            sent = (each.key, each.exchange, each.routing_key, each.message.body)
            if batch.outcomes[index] is None and returned == sent:
                return batch, index
        return None

    def _confirmed(self, frame: pika.frame.Method) -> None:
        method = frame.method
        nacked = isinstance(method, spec.Basic.Nack)
        outcome = Outcome(Status.NACKED, "the broker could not store it") if nacked else Outcome(Status.CONFIRMED)
        self._settle(method.delivery_tag, outcome, multiple=method.multiple)

    def _settle(self, up_to: int, outcome: Outcome, *, multiple: bool) -> None:
        for tag in self._tags(up_to, multiple=multiple):
            place = self._unconfirmed.pop(tag)
            batch, index = place
            key = batch.publishings[index].key
            if self._by_key.get(key) == place:  # else the key belongs to a newer publish of the same row
                del self._by_key[key]
            batch.settle(index, outcome)

    def _tags(self, tag: int, *, multiple: bool) -> list[int]:
        if multiple:
            return list(takewhile(lambda earlier: earlier <= tag, self._unconfirmed))
        return [tag] if tag in self._unconfirmed else []

    def _channel_closed(self, channel: Channel, error: OperationRefused | BrokerUnavailable) -> None:
        if self._channel is not None and channel is not self._channel:
            return
        self._channel = None
        if isinstance(error, OperationRefused):
            self._settle_in_flight(Outcome(Status.REFUSED, str(error), error))
        else:
            self._settle_in_flight(Outcome(Status.UNKNOWN, str(error)))
        self._changed()
        if channel.connection.is_open:
            self._open_channel()

    def _lost(self, reason: str) -> None:
        self._channel = None
        self._settle_in_flight(Outcome(Status.UNKNOWN, reason))

    def _settle_in_flight(self, outcome: Outcome) -> None:
        in_flight = list(self._unconfirmed.values())
        self._unconfirmed.clear()
        self._by_key.clear()
        for batch, index in in_flight:
            batch.settle(index, outcome)

    def _changed(self) -> None:
        if self._on_change:
            self._on_change()

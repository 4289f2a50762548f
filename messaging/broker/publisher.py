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
class _InFlight:
    """A publish of a batch, and its outcome once that is known; the first one counts."""

    publishing: Publishing
    batch: _Batch
    outcome: Outcome | None = None

    def settle(self, outcome: Outcome) -> None:
        if self.outcome is None:
            self.outcome = outcome
            self.batch.open -= 1
            if not self.batch.open:
                self.batch.done.set()


class _Batch:
    def __init__(self, publishings: Sequence[Publishing]) -> None:
        self.all = [_InFlight(each, self) for each in publishings]
        self.open = len(publishings)
        self.done = threading.Event()


class Publisher:
    """Publishes with confirms, on a connection of its own.

    `on_change` is called on the I/O thread whenever `ready` may have changed.
    """

    def __init__(self, role: str, *, on_change: Callable[[], None] = lambda: None) -> None:
        self._on_change = on_change
        self._reached = threading.Event()
        self.connection = Connection(role, on_open=self._open_channel, on_lost=self._lost, on_change=on_change)
        self._channel: Channel | None = None
        self._next_tag = 1
        #: By delivery tag; in order of tags, as dicts keep it.
        self._unconfirmed: dict[int, _InFlight] = {}
        self._by_key: dict[str, _InFlight] = {}

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
        batch.done.wait(timeout)
        outcomes = [each.outcome for each in batch.all]
        if any(outcome and outcome.status is Status.CONFIRMED for outcome in outcomes):
            self.connection.succeeded()
        if None not in outcomes:
            return [outcome for outcome in outcomes if outcome]
        blocked = self.connection.blocked
        alarm = ": a memory or disk alarm blocks the broker" if blocked else ""
        reason = f"no confirm within {timeout:g} s{alarm}"
        if not blocked:
            # At once, so that nothing more is sent by this connection before it is given up.
            self._channel = None
            self.connection.reset(reason)
        return [outcome or Outcome(Status.UNKNOWN, reason, late=True) for outcome in outcomes]

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
        self._on_change()

    def _send(self, batch: _Batch) -> None:
        channel = self._channel
        if channel is None or not channel.is_open:
            for each in batch.all:
                each.settle(Outcome(Status.UNKNOWN, self.connection.last_error or "no channel to the broker"))
            return
        for each in batch.all:
            self._send_one(channel, each)

    def _send_one(self, channel: Channel, each: _InFlight) -> None:
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
            self._unconfirmed[self._next_tag] = each
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

    def _first_without_key(self) -> _InFlight | None:
        in_flight = self._unconfirmed.values()
        return next((each for each in in_flight if not each.publishing.key and each.outcome is None), None)

    def _confirmed(self, frame: pika.frame.Method) -> None:
        method = frame.method
        nacked = isinstance(method, spec.Basic.Nack)
        outcome = Outcome(Status.NACKED, "the broker could not store it") if nacked else Outcome(Status.CONFIRMED)
        for tag in self._tags(method.delivery_tag, multiple=method.multiple):
            each = self._unconfirmed.pop(tag)
            key = each.publishing.key
            if self._by_key.get(key) is each:  # else the key belongs to a newer publish of the same row
                del self._by_key[key]
            each.settle(outcome)

    def _tags(self, tag: int, *, multiple: bool) -> list[int]:
        if multiple:
            return list(takewhile(lambda earlier: earlier <= tag, self._unconfirmed))
        return [tag] if tag in self._unconfirmed else []

    def _channel_closed(self, channel: Channel, error: OperationRefused | BrokerUnavailable) -> None:
        if self._channel is not None and channel is not self._channel:
            return
        self._channel = None
        refusal = error if isinstance(error, OperationRefused) else None
        self._settle_in_flight(Outcome(Status.REFUSED if refusal else Status.UNKNOWN, str(error), refusal))
        self._on_change()
        if channel.connection.is_open:
            self._open_channel()

    def _lost(self, reason: str) -> None:
        self._channel = None
        self._settle_in_flight(Outcome(Status.UNKNOWN, reason))

    def _settle_in_flight(self, outcome: Outcome) -> None:
        in_flight = list(self._unconfirmed.values())
        self._unconfirmed.clear()
        self._by_key.clear()
        for each in in_flight:
            each.settle(outcome)

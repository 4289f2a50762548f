"""A broker in memory that misleads its clients as RabbitMQ was measured to; only it and the gateways are models.

`Publisher` and `Subscription` get its `Link` instead of `broker.connection.Connection`. It misleads them on purpose in
three ways: a message that no queue takes is confirmed all the same; a message whose publish timed out arrives, perhaps
much later; a copy that was published again comes without the redelivered flag.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pika
from pika import exceptions, spec

from messaging.broker.calls import Answer
from messaging.broker.errors import refused_or_lost
from messaging.broker.properties import PERSISTENT
from messaging.exceptions import BrokerUnavailable, NotFound, OperationRefused
from messaging.message import OUTBOX_ID_HEADER

if TYPE_CHECKING:
    from tests.faults.model.world import World

#: What can happen to one message of a batch, or to it and all behind it, on the way to the queue.
WEATHERS = (
    "fine",
    "fine",
    "fine",
    "one confirm for many",
    "nacked",
    "nacked though taken",
    "silent though taken",
    "silent and gone",
    "silent and late",
    "cut though taken",
    "cut and gone",
    "cut and late",
    "alarm",
)


@dataclass(eq=False)
class Copy:
    """One copy of a message in one queue."""

    exchange: str
    routing_key: str
    properties: pika.BasicProperties
    body: bytes
    redelivered: bool = False

    @property
    def message_id(self) -> str:
        return str(self.properties.message_id)

    @property
    def outbox_id(self) -> int:
        return int((self.properties.headers or {})[OUTBOX_ID_HEADER])

    @property
    def attempt(self) -> int:
        return int((self.properties.headers or {}).get("x-attempt", 1))


@dataclass
class Weather:
    """What happens to the `at`-th message of the next batch."""

    kind: str = "fine"
    at: int = 0


@dataclass
class Queue:
    ready: deque[Copy] = field(default_factory=deque)
    #: The channels that consume it, or hold some of its messages.
    channels: list[Channel] = field(default_factory=list)


@dataclass(frozen=True)
class _Reply:
    """The broker's reply to one published message: a return, an ack or a nack."""

    kind: str
    tag: int
    sent: Copy
    queues: set[str]
    multiple: bool = False


class Broker:
    """Exchanges, queues, bindings, and what is known of every publish."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.up = True
        self.exchanges: set[str] = set()
        self.queues: dict[str, Queue] = {}
        self.bindings: set[tuple[str, str, str]] = set()
        self.links: list[Link] = []
        #: Sent over connections that are closed, not arrived yet.
        self.late: list[Copy] = []
        #: Outbox row → the queues that have taken it, for rows that the broker confirmed.
        self.confirmed: dict[int, set[str]] = {}
        self.weather = Weather()

    # --- what happens to it --------------------------------------------------------------------------------

    def stop(self) -> None:
        """All connections end; what is in the queues stays, except what was not to be kept."""
        self.up = False
        for link in list(self.links):
            link.lose("the broker went away")
        for queue in self.queues.values():
            queue.ready = deque(each for each in queue.ready if each.properties.delivery_mode == PERSISTENT)

    def start(self) -> None:
        self.up = True

    def delete_queue(self, name: str) -> list[Copy]:
        """Delete a queue, cancel its consumers, and return its messages."""
        queue = self.queues.pop(name)
        self.bindings = {each for each in self.bindings if each[2] != name}
        gone = list(queue.ready)
        for channel in list(queue.channels):
            gone += channel.unacked.values()
            channel.unacked.clear()
            channel.cancelled()
        return gone

    def purge(self, name: str) -> list[Copy]:
        """Drop what is ready in a queue, and return it."""
        gone = list(self.queues[name].ready)
        self.queues[name].ready.clear()
        return gone

    def take_out_one(self, name: str) -> list[Copy]:
        """Take the first message that is ready out of a queue, as a person may by hand, and return it."""
        ready = self.queues[name].ready
        return [ready.popleft()] if ready else []

    def unbind(self, name: str) -> None:
        """Remove the bindings of one queue."""
        self.bindings = {each for each in self.bindings if each[2] != name}

    def give_up(self, name: str, dead_letters: str) -> list[Copy]:
        """Move what is ready in a queue to the queue of dead letters, and return it."""
        if name not in self.queues or dead_letters not in self.queues:
            return []
        moved = [replace(each, redelivered=False) for each in self.purge(name)]
        for each in moved:
            each.properties = copy(each.properties)
            deaths = [{"queue": name, "reason": "delivery_limit"}]
            each.properties.headers = {**each.properties.headers, "x-death": deaths}
        self.queues[dead_letters].ready.extend(moved)
        return moved

    def copy_one(self, choose: Callable[[list[Copy]], Copy]) -> None:
        """Copy a message of a queue into that queue, without the redelivered flag."""
        everywhere = {each: queue for name, queue in self.queues.items() for each in self.copies(name)}
        if everywhere:
            one = choose(list(everywhere))
            everywhere[one].ready.append(replace(one, redelivered=False))

    def let_late_ones_arrive(self) -> None:
        late, self.late = self.late, []
        for each in late:
            self.take(each)

    def copies(self, queue: str) -> list[Copy]:
        """Every copy in a queue, handed out or not."""
        here = self.queues.get(queue)
        if here is None:
            return []
        return [*here.ready, *(each for channel in here.channels for each in channel.unacked.values())]

    def has_ready(self) -> bool:
        return any(queue.ready for queue in self.queues.values())

    def given_up(self, consumer: str) -> list[Copy]:
        """What is in the queue of dead letters, and died in a consumer's queue."""
        name = f"model.{consumer}"
        return [
            each
            for queue in self.queues
            for each in self.copies(queue)
            if name == ((each.properties.headers or {}).get("x-death") or [{}])[0].get("queue")
        ]

    # --- messages in ---------------------------------------------------------------------------------------

    def routed_to(self, exchange: str, key: str) -> set[str]:
        if not exchange:
            return {key} & self.queues.keys()
        return {queue for each, bound, queue in self.bindings if (each, bound) == (exchange, key)}

    def take(self, sent: Copy) -> set[str]:
        """Put a copy into each queue that it is routed to, and return their names."""
        if self.world.is_refused(sent):
            return set()
        queues = self.routed_to(sent.exchange, sent.routing_key)
        if queues and sent.exchange:
            self.world.passed_by(sent, queues)
        for name in queues:
            self.queues[name].ready.append(copy(sent))
        return queues

    # --- messages out --------------------------------------------------------------------------------------

    def deliver(self, channel: Channel, count: int) -> int:
        """Hand up to `count` messages to a consumer; return how many went."""
        queue = self.queues.get(channel.queue)
        given = 0
        while channel.consuming and queue and queue.ready and given < count and len(channel.unacked) < channel.prefetch:
            channel.hand_out(queue.ready.popleft())
            given += 1
        return given


class Link:
    """One client's connection, in the place of the product's `Connection`: it answers at once, on the same thread.

    To `Publisher` and `Subscription` it is pika's connection as well.
    """

    def __init__(
        self,
        broker: Broker,
        role: str,
        *,
        on_open: Callable[[], None] | None = None,
        on_lost: Callable[[str], None] | None = None,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        self.broker = broker
        self.role = role
        self._on_open, self._on_lost, self._on_change = on_open, on_lost, on_change
        self.generation = 0
        self.blocked = False
        self.refused = False
        self.last_error = ""
        self.error: BrokerUnavailable | None = None
        self.is_open = False
        self.channels: list[Channel] = []
        #: Sent while the broker was not reading.
        self.unread: list[tuple[Channel, Copy, bool]] = []

    # --- as the product sees it ----------------------------------------------------------------------------

    def start(self) -> Link:
        self.connect()
        return self

    def stop(self) -> None:
        self.vanish()

    def reach(self, given_up: Callable[[], bool] = lambda: False) -> bool:
        if not self.wait_until_open(0):
            raise BrokerUnavailable("the model's broker is away")
        return True

    def wait_until_open(self, timeout: float) -> bool:
        return self.is_open

    @property
    def never_reached(self) -> bool:
        return not self.generation

    @property
    def usable(self) -> bool:
        return self.is_open and not self.blocked

    def call_soon(self, function: Callable[[], None], *, may_wait: bool = False) -> None:
        function()
        for channel in list(self.channels):
            channel.speak()

    def call(self, method: str, **arguments: Any) -> Any:
        """Declare and bind; nothing else is asked of it here."""
        broker = self.broker
        if not self.is_open:
            raise BrokerUnavailable(self.last_error)
        if method == "exchange_declare":
            broker.exchanges.add(arguments["exchange"])
        elif method == "queue_declare":
            if arguments.get("passive") and arguments["queue"] not in broker.queues:
                raise NotFound("NOT_FOUND")
            queue = broker.queues.setdefault(arguments["queue"], Queue())
            return Answer(messages=len(queue.ready))
        elif method == "queue_bind":
            if arguments["queue"] not in broker.queues:
                raise NotFound("NOT_FOUND")
            broker.bindings.add((arguments["exchange"], arguments["routing_key"], arguments["queue"]))
        else:
            raise AssertionError(f"the model's broker knows no {method}")
        return None

    def reset(self, reason: str) -> None:
        self.lose(reason)

    def succeeded(self) -> None:
        """Nothing rests here between attempts to connect."""

    def open_channel(
        self,
        on_open: Callable[[Channel], None],
        on_close: Callable[[Channel, BrokerUnavailable | OperationRefused], None],
    ) -> bool:
        if not self.is_open:
            return False
        channel = Channel(self, on_close)
        self.channels.append(channel)
        on_open(channel)
        return True

    # --- what happens to it --------------------------------------------------------------------------------

    def connect(self) -> None:
        """Connect, if the broker is there."""
        if self.is_open or not self.broker.up:
            return
        self.is_open = True
        self.generation += 1
        self.broker.links.append(self)
        if self._on_open:
            self._on_open()
        self._changed()

    def lose(self, reason: str) -> None:
        """Both ends learn that the connection is gone."""
        if not self.is_open:
            return
        self.vanish()
        self.last_error = reason
        if self._on_lost:
            self._on_lost(reason)
        self._changed()

    def vanish(self) -> None:
        """The client is gone or has hung up: the broker requeues what it held."""
        if not self.is_open:
            return
        self.is_open = self.blocked = False
        self.broker.links.remove(self)
        # What the broker had not read is in its buffers: it may read it yet.
        self.broker.late += [sent for _, sent, _ in self.unread]
        self.unread.clear()
        channels, self.channels = self.channels, []
        for channel in channels:
            channel.end()

    def block(self) -> None:
        """The broker has an alarm: it reads nothing from publishers."""
        self.blocked = True
        self._changed()

    def unblock(self) -> None:
        """The alarm is over: what was sent is read, and answered."""
        self.blocked = False
        unread, self.unread = self.unread, []
        for channel, sent, mandatory in unread:
            channel.receive(sent, mandatory)
        for channel in list(self.channels):
            channel.speak()
        self._changed()

    def _changed(self) -> None:
        if self._on_change:
            self._on_change()


class Channel:
    """One channel: pika's, as far as the product uses it."""

    def __init__(self, link: Link, on_close: Callable[[Channel, BrokerUnavailable | OperationRefused], None]) -> None:
        self.link = self.connection = link
        self._on_close = on_close
        self.broker = link.broker
        self.is_open = True
        self._on_cancel: list[Callable[[Any], None]] = []
        self._on_return: Callable[..., None] | None = None
        self._on_confirm: Callable[[Any], None] | None = None
        #: Counts the messages sent, and those handed out.
        self._sent = self._given = 0
        self._batch = 0
        #: Replies that are not sent yet.
        self._replies: list[_Reply] = []
        #: How this channel ends after the replies: closed by the broker, or its connection cut.
        self._ending: exceptions.ChannelClosedByBroker | str | None = None
        self.queue = ""
        self.prefetch = 0
        self.consuming = False
        self._on_message: Callable[..., None] | None = None
        self.unacked: dict[int, Copy] = {}

    # --- as the publisher sees it --------------------------------------------------------------------------

    def add_on_return_callback(self, callback: Callable[..., None]) -> None:
        self._on_return = callback

    def confirm_delivery(self, on_confirm: Callable[[Any], None], callback: Callable[[Any], None]) -> None:
        self._on_confirm = on_confirm
        callback(None)

    def basic_publish(
        self, exchange: str, routing_key: str, body: bytes, properties: pika.BasicProperties, mandatory: bool = False
    ) -> None:
        self.broker.world.boundary("publish")
        sent = Copy(exchange, routing_key, properties, body)
        self.broker.world.was_sent(sent)
        weather = self.broker.weather
        index, self._batch = self._batch, self._batch + 1
        if weather.kind == "alarm" and index == weather.at:
            self.link.block()
        if self.link.blocked:
            self.link.unread.append((self, sent, mandatory))
        else:
            self.receive(sent, mandatory, index)

    def receive(self, sent: Copy, mandatory: bool, index: int = -1) -> None:
        """Take one message, or not, by the weather."""
        self._sent += 1
        kind, at = self.broker.weather.kind, self.broker.weather.at
        broken = kind.startswith(("silent", "cut")) and index >= at
        if kind.startswith("cut") and index == at:
            self._ending = "the connection was cut"
        if self._ending is not None and not broken:
            return  # sent behind the one that closes the channel
        if broken:
            if kind.endswith("though taken"):
                self.broker.take(sent)
            elif kind.endswith("late"):
                self.broker.late.append(sent)
            return
        if sent.exchange and sent.exchange not in self.broker.exchanges:
            self._ending = exceptions.ChannelClosedByBroker(404, "NOT_FOUND - no exchange")
            return
        if self.broker.world.is_refused(sent):
            self._ending = exceptions.ChannelClosedByBroker(406, "PRECONDITION_FAILED - message size")
            return
        if kind.startswith("nacked") and index == at:
            if kind.endswith("though taken"):
                self.broker.take(sent)
            self._replies.append(_Reply("nack", self._sent, sent, set()))
            return
        queues = self.broker.take(sent)
        if not queues and mandatory:
            self._replies.append(_Reply("return", self._sent, sent, queues))
        self._replies.append(_Reply("ack", self._sent, sent, queues))

    def speak(self) -> None:
        """Send the replies, and then end the channel if it has to end."""
        weather = self.broker.weather
        if self._batch:
            self._batch = 0
            self.broker.weather = Weather()
        replies, self._replies = self._replies, []
        if not replies and self._ending is None:
            return
        self.broker.world.boundary("confirm")
        ending, self._ending = self._ending, None
        if ending is not None:
            replies = replies[: weather.at]  # later ones do not arrive
        if weather.kind == "one confirm for many" and all(reply.kind == "ack" for reply in replies):
            for reply in replies[:-1]:
                self._count_confirmed(reply)
            replies = [replace(reply, multiple=True) for reply in replies[-1:]]
        for reply in replies:
            self._say(reply)
        if isinstance(ending, str):
            self.link.lose(ending)
        elif ending is not None:
            self.close_over(ending)

    def _say(self, reply: _Reply) -> None:
        assert self._on_return
        assert self._on_confirm
        if reply.kind == "return":
            method = spec.Basic.Return(312, "NO_ROUTE", reply.sent.exchange, reply.sent.routing_key)
            self._on_return(self, method, reply.sent.properties, reply.sent.body)
            return
        if reply.kind == "ack":
            self._count_confirmed(reply)
        answer = spec.Basic.Ack if reply.kind == "ack" else spec.Basic.Nack
        self._on_confirm(pika.frame.Method(1, answer(reply.tag, reply.multiple)))

    def _count_confirmed(self, reply: _Reply) -> None:
        if reply.queues:
            self.broker.confirmed.setdefault(reply.sent.outbox_id, set()).update(reply.queues)

    # --- as the subscription sees it -----------------------------------------------------------------------

    def add_on_cancel_callback(self, callback: Callable[[Any], None]) -> None:
        self._on_cancel.append(callback)

    def basic_qos(self, prefetch_count: int) -> None:
        self.prefetch = prefetch_count

    def basic_consume(
        self,
        queue: str,
        on_message: Callable[..., None],
        callback: Callable[[Any], None],
        arguments: Any = None,
    ) -> str:
        assert not arguments
        if queue not in self.broker.queues:
            self.close_over(exceptions.ChannelClosedByBroker(404, "NOT_FOUND - no queue"))
        else:
            self.queue, self._on_message = queue, on_message
            self.consuming = True
            self.broker.queues[queue].channels.append(self)
            callback(None)
        return "tag"

    def basic_cancel(self, tag: str) -> None:
        self.consuming = False

    def hand_out(self, copy: Copy) -> None:
        assert self._on_message
        self._given += 1
        self.unacked[self._given] = copy
        method = spec.Basic.Deliver("tag", self._given, copy.redelivered, copy.exchange, copy.routing_key)
        self._on_message(self, method, copy.properties, copy.body)

    def basic_ack(self, tag: int, multiple: bool = False) -> None:
        world = self.broker.world
        world.boundary("ack")
        if tag not in self.unacked:
            self.close_over(exceptions.ChannelClosedByBroker(406, "PRECONDITION_FAILED - unknown delivery tag"))
            return
        for each in [held for held in self.unacked if held == tag or (multiple and held < tag)]:
            world.is_acked(self.queue, self.unacked.pop(each))
        world.boundary("acked")

    def basic_nack(self, tag: int, requeue: bool) -> None:
        assert requeue
        if self.broker.world.is_dying:
            return  # what Python still runs of a killed process reaches no broker
        self.broker.world.is_given_back(self.queue)
        self._requeue([self.unacked.pop(tag)])

    # --- what happens to it --------------------------------------------------------------------------------

    def close(self) -> None:
        self.end()
        self.link.channels.remove(self)

    def close_over(self, error: exceptions.ChannelClosedByBroker) -> None:
        """The broker closes it."""
        self.close()
        self._on_close(self, refused_or_lost(error))

    def cancelled(self) -> None:
        """The queue is gone: the broker cancels the consumer, and the channel stays open."""
        self.consuming, self.queue = False, ""
        self.unacked.clear()
        for told in self._on_cancel:
            told(None)

    def end(self) -> None:
        """It is gone: what was handed out is requeued."""
        self.is_open = self.consuming = False
        here = self.broker.queues.get(self.queue)
        if here is not None:
            here.channels.remove(self)
            self._requeue(list(self.unacked.values()))
        self.unacked.clear()
        self.queue = ""

    def _requeue(self, copies: list[Copy]) -> None:
        for each in copies:
            each.redelivered = True
        self.broker.queues[self.queue].ready.extendleft(reversed(copies))

"""A channel for each destination: which, when it opens and ends, and what becomes of its messages. The test is the
broker."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from pika import spec

from messaging.broker import channels as module
from messaging.broker.channels import Channels
from messaging.broker.publisher import InFlight, Outcome, Publishing, Status
from messaging.exceptions import BrokerUnavailable, LimitReached, NotFound, Unsupported
from messaging.message import OUTBOX_ID_HEADER, Message

LATE = Outcome(Status.UNKNOWN, "no confirm", late=True)
MISSING = NotFound("no exchange 'nowhere'", 404)


class BrokersChannel:
    """A channel as pika has it, and what the broker does with it."""

    def __init__(self, on_open: Callable[[Any], None], on_close: Callable[[Any, Any], None], link: Any) -> None:
        self.on_open, self.on_close = on_open, on_close
        self.connection = link
        self.is_open = False
        self.sent: list[Any] = []
        self.closed_by_us = False

    def open(self) -> None:
        """The broker opens it, and lets it confirm."""
        self.is_open = True
        self.on_open(self)
        self.begin(Mock())

    def end(self, error: Exception) -> None:
        """The broker closes it."""
        self.is_open = False
        self.on_close(self, error)

    def confirm(self, tag: int, *, multiple: bool = False) -> None:
        self.confirmed(Mock(method=spec.Basic.Ack(tag, multiple)))

    # --- what pika's channel does ---

    def add_on_return_callback(self, returned: Any) -> None:
        self.returned = returned

    def confirm_delivery(self, confirmed: Any, callback: Any) -> None:
        self.confirmed, self.begin = confirmed, callback

    def basic_publish(self, exchange: str, key: str, body: bytes, properties: Any, *, mandatory: bool) -> None:
        self.sent.append(properties.message_id)

    def close(self) -> None:
        self.closed_by_us, self.is_open = True, False


class Broker:
    """The connection, and the channels that were asked for, in their order."""

    def __init__(self, role: str, *, on_open: Any, on_lost: Any, on_change: Any) -> None:
        self.on_open, self.on_lost, self.on_change = on_open, on_lost, on_change
        self.is_open = self.usable = True
        self.blocked = False
        self.last_error = ""
        self.error: Exception | None = None
        self.most = 100
        self.channels: list[BrokersChannel] = []
        self.resets: list[str] = []
        #: Of each call of `call_soon`.
        self.may_wait: list[bool] = []

    def open_channel(self, on_open: Any, on_close: Any) -> bool:
        if not self.is_open or len(self.channels) >= self.most:
            return False
        self.channels.append(BrokersChannel(on_open, on_close, SimpleNamespace(is_open=True)))
        return True

    def call_soon(self, function: Callable[[], None], *, may_wait: bool = False) -> None:
        self.may_wait.append(may_wait)
        function()

    def reset(self, reason: str) -> None:
        self.resets.append(reason)

    def lose(self, error: BrokerUnavailable, of_channels: Exception | None = None) -> None:
        """The connection ends. pika tells its channels first."""
        for each in self.channels:
            each.connection.is_open = False
            each.end(of_channels or error)
        self.is_open, self.error, self.last_error = False, error, str(error)
        self.on_lost(str(error))

    def open_again(self) -> None:
        self.is_open, self.channels = True, []
        self.on_open()


@pytest.fixture
def channels(monkeypatch: pytest.MonkeyPatch) -> Channels:
    monkeypatch.setattr(module, "Connection", Broker)
    return Channels("test")


@pytest.fixture
def broker(channels: Channels) -> Broker:
    connection: Any = channels.connection
    assert isinstance(connection, Broker)
    return connection


def send(channels: Channels, where: str, *numbers: int) -> list[InFlight]:
    """Send messages to a destination."""
    publishings = [InFlight(_publishing(number), lambda _: None) for number in numbers]
    channels.send(where, publishings)
    return publishings


def _publishing(number: int) -> Publishing:
    message = Message(body=b"1", id=f"m-{number}", headers={OUTBOX_ID_HEADER: str(number)})
    return Publishing(str(number), "orders.events", "k", message)


def statuses(*publishings: InFlight) -> list[Status | None]:
    return [each.outcome and each.outcome.status for each in publishings]


def test_each_destination_has_a_channel_of_its_own(channels: Channels, broker: Broker) -> None:
    first = send(channels, "notes", 1)
    other = send(channels, "other", 2)
    more = send(channels, "notes", 3)
    for each in broker.channels:
        each.open()
    assert [each.sent for each in broker.channels] == [["m-1", "m-3"], ["m-2"]]
    broker.channels[0].confirm(2, multiple=True)
    assert statuses(*first, *more, *other) == [Status.CONFIRMED, Status.CONFIRMED, None]


@pytest.mark.parametrize("may_wait", [True, False])
def test_the_sender_says_whether_its_messages_may_wait_for_others(
    channels: Channels, broker: Broker, may_wait: bool
) -> None:
    channels.send("notes", [], may_wait=may_wait)
    assert broker.may_wait == [may_wait]


def test_over_one_refused_message_the_others_of_its_channel_suffer_and_no_other_channel(
    channels: Channels, broker: Broker
) -> None:
    together = send(channels, "notes", 1, 2)
    other = send(channels, "other", 3)
    for each in broker.channels:
        each.open()
    broker.channels[0].end(MISSING)
    assert statuses(*together, *other) == [Status.REFUSED, Status.REFUSED, None]
    assert not any(each.outcome and each.outcome.alone for each in together)
    alone = send(channels, "notes", 1)
    broker.channels[2].open()
    broker.channels[2].end(MISSING)
    assert alone[0].outcome == Outcome(Status.REFUSED, str(MISSING), MISSING, alone=True)


def test_a_message_beside_one_that_was_given_up_is_not_known_to_be_the_refused_one(
    channels: Channels, broker: Broker
) -> None:
    [late] = send(channels, "notes", 1)
    broker.channels[0].open()
    channels.settle("notes", LATE)
    assert (late.outcome, broker.channels[0].closed_by_us) == (LATE, False)
    [innocent] = send(channels, "notes", 2)
    broker.channels[0].end(MISSING)
    assert innocent.outcome == Outcome(Status.REFUSED, str(MISSING), MISSING, alone=False)


def test_a_message_beside_one_that_was_returned_is_the_refused_one(channels: Channels, broker: Broker) -> None:
    send(channels, "notes", 1)
    broker.channels[0].open()
    returned = SimpleNamespace(headers={OUTBOX_ID_HEADER: "1"}, message_id="m-1")
    broker.channels[0].returned(None, spec.Basic.Return(312, "NO_ROUTE", "", "k"), returned, b"")
    [guilty] = send(channels, "notes", 2)
    broker.channels[0].end(MISSING)
    assert guilty.outcome == Outcome(Status.REFUSED, str(MISSING), MISSING, alone=True)


def test_a_connection_that_ends_over_one_message_refuses_none(channels: Channels, broker: Broker) -> None:
    [first] = send(channels, "notes", 1)
    [other] = send(channels, "other", 2)
    broker.channels[0].open()
    broker.most = 2
    [waiting] = send(channels, "third", 3)
    broker.lose(BrokerUnavailable("540 not implemented"), of_channels=Unsupported("not implemented", 540))
    assert statuses(first, other, waiting) == [Status.UNKNOWN] * 3
    assert {each.outcome and each.outcome.reason for each in (first, other, waiting)} == {"540 not implemented"}


def test_a_channel_that_ends_before_it_has_opened_leaves_what_waited_for_it_unsent(
    channels: Channels, broker: Broker
) -> None:
    [waiting] = send(channels, "notes", 1)
    broker.channels[0].end(MISSING)
    assert waiting.outcome == Outcome(Status.UNKNOWN, "its channel was closed before it was sent")
    send(channels, "notes", 2)
    broker.channels[1].open()
    assert broker.channels[1].sent == ["m-2"]


def test_without_a_connection_nothing_is_sent(channels: Channels, broker: Broker) -> None:
    broker.lose(BrokerUnavailable("gone"))
    assert [each.outcome for each in send(channels, "notes", 1)] == [Outcome(Status.UNKNOWN, "gone")]
    broker.open_again()
    send(channels, "notes", 1)
    broker.channels[0].open()
    assert broker.channels[0].sent == ["m-1"]


def test_a_channel_that_is_given_up_makes_room_for_a_new_one_and_is_not_believed_any_more(
    channels: Channels, broker: Broker
) -> None:
    [late] = send(channels, "notes", 1)
    old = broker.channels[0]
    old.open()
    channels.give_up("notes", LATE)
    assert (late.outcome, old.closed_by_us) == (LATE, True)
    [again] = send(channels, "notes", 1)
    old.confirm(1)
    assert again.outcome is None
    broker.channels[1].open()
    broker.channels[1].confirm(1)
    assert again.outcome == Outcome(Status.CONFIRMED)


def test_a_channel_that_opens_after_it_was_given_up_is_closed(channels: Channels, broker: Broker) -> None:
    [waiting] = send(channels, "notes", 1)
    channels.give_up("notes", LATE)
    assert waiting.outcome == LATE
    broker.channels[0].open()
    assert broker.channels[0].closed_by_us
    assert not broker.channels[0].sent


def test_the_broker_is_heard_by_a_new_channel_and_by_a_confirm(
    channels: Channels, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=1.0)
    monkeypatch.setattr("messaging.broker.publisher.time", SimpleNamespace(monotonic=lambda: clock.now))
    send(channels, "notes", 1)
    assert channels.heard_at == 0.0
    broker.channels[0].open()
    assert channels.heard_at == 1.0
    clock.now = 2.0
    broker.channels[0].confirm(1)
    assert channels.heard_at == 2.0
    clock.now = 3.0
    channels.give_up("notes", LATE)
    assert channels.heard_at == 2.0
    broker.channels[1].open()
    assert channels.heard_at == 3.0


def test_its_owner_is_told_when_it_may_be_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Connection", Broker)
    told = Mock()
    connection: Any = Channels("test", on_change=told).connection
    assert connection.on_change is told


def test_one_destination_more_takes_the_place_of_the_idle_one_that_was_used_least_recently(
    channels: Channels, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "_most", 2)
    for number, where in enumerate(("first", "second"), start=1):
        send(channels, where, number)
        broker.channels[-1].open()
        broker.channels[-1].confirm(1)
    send(channels, "first", 3)
    broker.channels[0].confirm(2)
    send(channels, "third", 4)
    assert [each.closed_by_us for each in broker.channels] == [False, True, False]


def test_one_destination_more_waits_while_none_is_idle(
    channels: Channels, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "_most", 1)
    send(channels, "first", 1)
    broker.channels[0].open()
    [second] = send(channels, "second", 2)
    assert len(broker.channels) == 1
    broker.channels[0].confirm(1)
    broker.channels[1].open()
    broker.channels[1].confirm(1)
    assert second.outcome == Outcome(Status.CONFIRMED)


def test_what_waits_for_a_channel_is_given_up_like_all_else(
    channels: Channels, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "_most", 1)
    send(channels, "first", 1)
    broker.channels[0].open()
    [second] = send(channels, "second", 2)
    channels.settle("second", LATE)
    assert second.outcome == LATE
    broker.channels[0].confirm(1)
    assert len(broker.channels) == 1


def test_what_follows_for_a_destination_goes_by_its_own_channel_after_those_that_waited_for_one(
    channels: Channels, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "_most", 2)
    for number, where in enumerate(("busy", "second"), start=1):
        send(channels, where, number)
        broker.channels[-1].open()
    send(channels, "third", 3)
    send(channels, "busy", 4)
    assert broker.channels[0].sent == ["m-1"]
    broker.channels[1].confirm(1)
    broker.channels[2].open()
    assert [each.sent for each in broker.channels] == [["m-1", "m-4"], ["m-2"], ["m-3"]]


def test_a_destination_that_waits_for_a_channel_gets_its_turn_although_the_others_send_more_and_more(
    channels: Channels, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "_most", 1)
    send(channels, "busy", 1)
    broker.channels[0].open()
    send(channels, "second", 2)
    [more] = send(channels, "busy", 3)
    broker.channels[0].confirm(1)
    broker.channels[1].open()
    assert broker.channels[1].sent == ["m-2"]
    broker.channels[1].confirm(1)
    broker.channels[2].open()
    broker.channels[2].confirm(1)
    assert more.outcome == Outcome(Status.CONFIRMED)


def test_taking_the_place_of_idle_channels_leaves_as_many_as_the_connection_has(
    channels: Channels, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the broker has answered its end, a closed channel counts."""
    monkeypatch.setattr(channels, "_most", 2)
    broker.most = 2
    for number, where in enumerate(("first", "second"), start=1):
        send(channels, where, number)
        broker.channels[-1].open()
        broker.channels[-1].confirm(1)
    send(channels, "third", 3)
    broker.most = 3
    broker.channels[0].end(BrokerUnavailable("closed by client"))
    assert len(channels._channels) == 2


def test_what_the_connection_has_no_channel_for_waits(channels: Channels, broker: Broker) -> None:
    broker.most = 1
    send(channels, "first", 1)
    [second] = send(channels, "second", 2)
    broker.channels[0].open()
    assert second.outcome is None
    broker.most = 2
    broker.channels[0].confirm(1)
    broker.channels[1].open()
    assert broker.channels[1].sent == ["m-2"]


@pytest.mark.parametrize(("before", "after"), [(8, 4), (3, 1)])
def test_a_connection_that_ended_at_a_limit_is_followed_by_one_with_half_as_many_channels(
    before: int, after: int, channels: Channels, broker: Broker
) -> None:
    for number in range(before):
        send(channels, f"queue {number}", number)
        broker.channels[-1].open()
    broker.lose(LimitReached("the user has too many channels"))
    broker.open_again()
    for number in range(before):
        send(channels, f"queue {number}", number)
    assert len(broker.channels) == after


def test_channels_that_do_not_end_are_not_collected_for_ever(channels: Channels, broker: Broker) -> None:
    broker.most = 1000
    for number in range(module.MOST_CLOSING + 1):
        send(channels, "notes", number)
        broker.channels[-1].open()
        channels.give_up("notes", LATE)
    assert len(broker.resets) == 1


def test_channels_that_ended_are_forgotten(channels: Channels, broker: Broker) -> None:
    broker.most = 1000
    for number in range(2 * module.MOST_CLOSING):
        send(channels, "notes", number)
        broker.channels[-1].open()
        channels.give_up("notes", LATE)
        broker.channels[-2].end(BrokerUnavailable("closed by client"))
    assert not broker.resets

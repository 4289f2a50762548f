"""What a subscription asks of the broker, and what it tells its owner, whatever the broker does and in what order."""

import time
from typing import Any
from unittest.mock import Mock, call

import pika
import pytest
from pika import spec

from messaging.broker import subscription as module
from messaging.broker.arrival import Arrival
from messaging.broker.subscription import PRIVATE_QUEUE, Subscription
from messaging.exceptions import BrokerUnavailable, NotFound
from messaging.routing import Binding
from tests.support.fake_subscription import Busy

BINDINGS = (Binding("news", "ignored", "a.#"), Binding("files", "ignored", arguments={"format": "pdf"}))


class Io(Busy):
    """Its connection, whose channel opens when the test says so."""

    last_error = ""
    is_open = True
    has_channels = True

    def open_channel(self, on_open: Any, on_close: Any) -> bool:
        if self.has_channels:
            self.on_open, self.on_close = on_open, on_close
        return self.has_channels


class Subscribed:
    """A subscription, its owner and its broker."""

    def __init__(self, source: Any = "tests.notes", **options: Any) -> None:
        self.io = Io()
        self.arrived: list[Arrival] = []
        self.ended: list[str] = []
        self.it = Subscription(
            self.io,  # type: ignore[arg-type]
            source,
            prefetch=7,
            on_arrival=self.arrived.append,
            on_ended=self.ended.append,
        )

    def opens(self) -> Mock:
        """It is opened, and so is its channel; the broker has not answered yet."""
        self.it.open()
        self.io.catch_up()
        channel = Mock(is_open=True)
        channel.basic_consume.return_value = f"consumer-{self.it._opened}"
        self.io.on_open(channel)
        return channel

    def begins(self) -> Mock:
        """It consumes."""
        channel = self.opens()
        channel.basic_consume.call_args.kwargs["callback"](Mock())
        return channel

    def state(self) -> tuple[bool, bool, int]:
        return self.it.active, self.it.consuming, self.it.failures

    def cancelled(self, channel: Mock) -> None:
        """The broker cancels its consumer."""
        channel.add_on_cancel_callback.call_args.args[0](Mock())


def deliver(channel: Mock, tag: int = 1, **facts: Any) -> None:
    told = {"exchange": "orders.events", "routing_key": "test.noted", "redelivered": False, **facts}
    method = spec.Basic.Deliver(delivery_tag=tag, **told)
    channel.basic_consume.call_args.args[1](channel, method, pika.BasicProperties(message_id="m-1"), b"body")


@pytest.fixture
def mine() -> Subscribed:
    return Subscribed()


# --- beginning ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "queue"), [("tests.notes", "tests.notes"), (BINDINGS, "")])
def test_a_new_one_consumes_nothing_before_it_is_opened(source: Any, queue: str) -> None:
    mine = Subscribed(source)
    assert (mine.it.queue, mine.state(), mine.io.calls) == (queue, (False, False, 0), [])
    assert (mine.it.had_begun, mine.it.refusal, mine.it.asked_at) == (False, None, None)


def test_it_consumes_its_queue_with_its_prefetch_and_says_what_arrives(mine: Subscribed) -> None:
    channel = mine.opens()
    assert mine.state() == (True, False, 0)
    assert [each[0] for each in channel.method_calls] == ["add_on_cancel_callback", "basic_qos", "basic_consume"]
    assert channel.basic_qos.call_args == call(prefetch_count=7)
    consume = channel.basic_consume.call_args
    assert (consume.args[0], consume.kwargs["arguments"]) == ("tests.notes", None)
    consume.kwargs["callback"](Mock())
    assert (mine.state(), mine.it.asked_at) == ((True, True, 0), None)

    deliver(channel, 3, redelivered=True)
    [arrival] = mine.arrived
    assert (arrival.queue, arrival.tag, arrival.redelivered) == ("tests.notes", 3, True)
    assert (arrival.exchange, arrival.routing_key) == ("orders.events", "test.noted")
    assert (arrival.message.id, arrival.message.body) == ("m-1", b"body")
    assert mine.it.is_current(arrival)


def test_where_to_begin_in_a_stream_is_asked_for(mine: Subscribed) -> None:
    mine.it.arguments = {"x-stream-offset": "first"}
    assert mine.opens().basic_consume.call_args.kwargs["arguments"] == {"x-stream-offset": "first"}


def test_a_private_queue_is_declared_bound_and_then_consumed_each_time_anew() -> None:
    mine = Subscribed(BINDINGS)
    for name in ("amq.gen-1", "amq.gen-2"):
        channel = mine.opens()
        assert mine.it.queue == ""
        declared = channel.queue_declare.call_args.kwargs
        answer = declared.pop("callback")
        assert declared == PRIVATE_QUEUE
        channel.reset_mock()
        answer(Mock(**{"method.queue": name}))
        assert channel.method_calls[:2] == [
            call.queue_bind(name, "news", "a.#", arguments={}),
            call.queue_bind(name, "files", "", arguments={"format": "pdf"}),
        ]
        assert channel.basic_consume.call_args.args[0] == mine.it.queue == name
        mine.it.lost("gone")


def test_a_private_queue_is_bound_again_while_it_is_consumed_and_another_never() -> None:
    mine, of_all = Subscribed(BINDINGS), Subscribed()
    channel = mine.opens()
    channel.queue_declare.call_args.kwargs["callback"](Mock(**{"method.queue": "amq.gen-1"}))
    channel.reset_mock()
    for expected in (0, 2):
        mine.it.bind_again()
        mine.io.catch_up()
        assert channel.queue_bind.call_count == expected
        mine.it._consuming()
    channel.reset_mock()
    channel.is_open = False
    mine.it.bind_again()
    mine.io.catch_up()
    of_all.begins()
    of_all.it.bind_again()
    assert (channel.queue_bind.call_count, of_all.io.calls) == (0, [])


@pytest.mark.parametrize("source", ["tests.notes", BINDINGS])
def test_one_that_was_cancelled_before_its_channel_opened_consumes_nothing(source: Any) -> None:
    mine = Subscribed(source)
    mine.it.open()
    mine.it.cancel()
    mine.io.catch_up()
    channel = Mock(is_open=True)
    mine.io.on_open(channel)
    assert channel.method_calls == [call.close()]
    assert (mine.state(), mine.ended) == ((False, False, 0), [])


def test_one_that_was_cancelled_before_its_private_queue_was_declared_consumes_nothing() -> None:
    mine = Subscribed(BINDINGS)
    channel = mine.opens()
    answer = channel.queue_declare.call_args.kwargs["callback"]
    mine.it.cancel()
    mine.io.catch_up()
    channel.reset_mock()
    answer(Mock())
    assert channel.method_calls == [call.close()]


def test_an_answer_after_the_cancellation_makes_it_consume_no_more(mine: Subscribed) -> None:
    channel = mine.opens()
    mine.it.cancel()
    mine.io.catch_up()
    channel.basic_consume.call_args.kwargs["callback"](Mock())
    assert mine.state() == (False, False, 0)


def test_it_begins_late_once_an_open_connection_has_not_answered_for_long(
    mine: Subscribed, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not mine.it.begins_late()
    mine.opens()
    assert not mine.it.begins_late()
    later = time.monotonic() + module.BEGIN_PATIENCE + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert mine.it.begins_late()
    mine.io.is_open = False
    assert not mine.it.begins_late()
    mine.io.is_open = True
    mine.it._consuming()
    assert not mine.it.begins_late()


# --- the end -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "said"), [("", "there is no connection"), ("connection refused", "connection refused")]
)
def test_without_a_channel_it_ends_at_once_and_each_time_counts(mine: Subscribed, error: str, said: str) -> None:
    mine.io.has_channels, mine.io.last_error = False, error
    for failures in (1, 2):
        mine.it.open()
        mine.io.catch_up()
        assert (mine.state(), mine.ended) == ((False, False, failures), [said] * failures)
    mine.io.has_channels = True
    mine.begins()
    assert mine.state() == (True, True, 0)


@pytest.mark.parametrize("had_begun", [True, False])
def test_it_tells_its_owner_once_that_it_ended_and_why(mine: Subscribed, had_begun: bool) -> None:
    channel = mine.begins() if had_begun else mine.opens()
    deliver(channel)
    refusal = NotFound("NOT_FOUND - no queue 'tests.notes'")
    mine.io.on_close(channel, refusal)
    assert (mine.ended, mine.it.refusal) == ([str(refusal)], refusal)
    assert (mine.state(), mine.it.had_begun, mine.it.asked_at) == ((False, False, not had_begun), had_begun, None)
    assert not mine.it.is_current(mine.arrived[0])
    mine.io.on_close(channel, refusal)
    mine.it.lost("the connection was lost")
    assert len(mine.ended) == 1

    mine.begins()
    assert mine.it.refusal is None
    mine.it.lost("the connection was lost")
    assert mine.ended[1:] == ["the connection was lost"]


def test_a_lost_channel_is_no_refusal(mine: Subscribed) -> None:
    channel = mine.begins()
    mine.io.on_close(channel, BrokerUnavailable("the connection was lost"))
    assert (mine.ended, mine.it.refusal) == (["the connection was lost"], None)


def test_the_end_of_an_earlier_channel_ends_nothing(mine: Subscribed) -> None:
    earlier = mine.begins()
    mine.it.lost("gone")
    mine.begins()
    mine.io.on_close(earlier, NotFound("late"))
    assert (mine.state(), mine.ended, mine.it.refusal) == ((True, True, 0), ["gone"], None)


@pytest.mark.parametrize("is_open", [True, False])
def test_one_that_the_broker_cancelled_gives_its_channel_up(mine: Subscribed, is_open: bool) -> None:
    channel = mine.begins()
    channel.is_open = is_open
    mine.cancelled(channel)
    assert channel.close.called is is_open
    assert mine.state() == (False, False, 0)
    assert "the broker cancelled the consumer" in mine.ended[0]


def test_cancelled_it_takes_no_more_and_what_arrived_can_still_be_answered(mine: Subscribed) -> None:
    channel = mine.begins()
    deliver(channel, 1)
    deliver(channel, 2)
    for _ in range(2):
        mine.it.cancel()
    mine.io.catch_up()
    assert channel.basic_cancel.call_args_list == [call("consumer-0")]
    assert (mine.state(), mine.ended) == ((False, False, 0), [])
    mine.it.ack(mine.arrived[0])
    mine.it.requeue(mine.arrived[1])
    mine.io.catch_up()
    assert channel.basic_ack.call_args == call(1, multiple=False)
    assert channel.basic_nack.call_args == call(2, requeue=True)


@pytest.mark.parametrize("is_open", [True, False])
def test_nothing_is_answered_or_cancelled_on_a_channel_that_is_gone(mine: Subscribed, is_open: bool) -> None:
    channel = mine.begins()
    deliver(channel)
    if is_open:
        mine.it.lost("gone")
        channel = mine.begins()
    channel.is_open = is_open
    mine.it.ack(mine.arrived[0])
    mine.it.requeue(mine.arrived[0])
    if not is_open:
        mine.it.cancel()
    mine.io.catch_up()
    assert not channel.basic_ack.called
    assert not channel.basic_nack.called
    assert not channel.basic_cancel.called

"""What finishes in quick succession is acknowledged together, and never a delivery that is still at work."""

from typing import Any
from unittest.mock import Mock

import pika
import pytest
from pika import spec

from messaging.broker.arrival import Arrival
from messaging.broker.subscription import Subscription
from tests.support.fake_subscription import Busy


@pytest.fixture
def io() -> Busy:
    return Busy()


@pytest.fixture
def channel() -> Mock:
    return Mock(is_open=True)


@pytest.fixture
def arrived() -> list[Arrival]:
    return []


@pytest.fixture
def subscription(io: Busy, channel: Mock, arrived: list[Arrival]) -> Subscription:
    """One with five deliveries."""
    mine = Subscription(io, "tests.notes", prefetch=9, on_arrival=arrived.append, on_ended=Mock())  # type: ignore[arg-type]
    mine.active = True
    mine._channel_opened(channel)
    for tag in range(1, 6):
        arrive(mine, channel, tag)
    return mine


def arrive(subscription: Subscription, channel: Mock, tag: int) -> None:
    method = spec.Basic.Deliver("tag", tag)
    subscription._arrived(subscription._opened, channel, method, pika.BasicProperties(), b"")


def acked(channel: Mock) -> list[tuple[Any, ...]]:
    return [(call.args[0], call.kwargs["multiple"]) for call in channel.basic_ack.call_args_list]


@pytest.mark.parametrize(
    ("finished", "expected"),
    [
        ([1], [(1, False)]),
        ([1, 2, 3, 4, 5], [(5, True)]),
        ([3, 1, 2], [(3, True)]),
        ([2, 4], [(2, False), (4, False)]),
        ([1, 2, 4], [(2, True), (4, False)]),
    ],
)
def test_what_is_contiguous_is_acknowledged_by_one_frame(
    io: Busy,
    channel: Mock,
    subscription: Subscription,
    arrived: list[Arrival],
    finished: list[int],
    expected: list[tuple[int, bool]],
) -> None:
    for tag in finished:
        subscription.ack(arrived[tag - 1])
    io.catch_up()
    assert acked(channel) == expected


def test_those_before_that_were_acknowledged_or_given_back_already_leave_no_gap(
    io: Busy, channel: Mock, subscription: Subscription, arrived: list[Arrival]
) -> None:
    subscription.ack(arrived[1])
    subscription.requeue(arrived[0])
    io.catch_up()
    subscription.ack(arrived[3])
    subscription.ack(arrived[2])
    io.catch_up()
    assert acked(channel) == [(2, False), (4, True)]


def test_deliveries_of_an_earlier_channel_are_not_acknowledged(
    io: Busy, channel: Mock, subscription: Subscription, arrived: list[Arrival]
) -> None:
    subscription.ack(arrived[0])
    subscription._channel_opened(channel)
    for tag in range(1, 4):
        arrive(subscription, channel, tag)
    subscription.ack(arrived[1])
    io.catch_up()
    assert acked(channel) == []
    subscription.ack(*arrived[5:7])
    io.catch_up()
    assert acked(channel) == [(2, True)], "nothing older is left on this one"


def test_what_an_earlier_channel_delivers_late_makes_no_delivery_at_work_count_as_finished(
    io: Busy, channel: Mock, subscription: Subscription, arrived: list[Arrival]
) -> None:
    earlier = subscription._opened
    subscription._channel_opened(channel)
    arrived.clear()
    for tag in (2, 3):
        subscription._arrived(earlier, channel, spec.Basic.Deliver("tag", tag), pika.BasicProperties(), b"")
    for tag in range(1, 5):
        arrive(subscription, channel, tag)
    late, new = arrived[:2], arrived[2:]
    for arrival in (*late, new[1], new[3]):
        subscription.ack(arrival)
    io.catch_up()
    assert acked(channel) == [(2, False), (4, False)], "the new 3 is at work"


def test_an_acknowledgement_may_wait_until_a_quarter_of_the_prefetch_has_finished(
    io: Busy, channel: Mock, subscription: Subscription, arrived: list[Arrival]
) -> None:
    io.may_wait.clear()
    subscription.ack(arrived[0])
    assert io.may_wait == [True]
    for arrival in arrived[1:4]:
        subscription.ack(arrival)
    assert io.may_wait == [True, False], "at the second of nine, and once"
    io.catch_up()
    assert acked(channel) == [(4, True)]
    subscription.ack(arrived[4])
    assert io.may_wait == [True, False, True]


@pytest.mark.parametrize(("prefetch", "threads"), [(1, 1), (7, 1), (8, 7), (8, 8), (1, 4)])
def test_no_acknowledgement_waits_if_a_thread_would_then_have_nothing_to_do(
    io: Busy, channel: Mock, arrived: list[Arrival], prefetch: int, threads: int
) -> None:
    mine = Subscription(
        io,  # type: ignore[arg-type]  # a fake
        "tests.notes",
        prefetch=prefetch,
        threads=threads,
        on_arrival=arrived.append,
        on_ended=Mock(),
    )
    mine.active = True
    mine._channel_opened(channel)
    arrive(mine, channel, 1)
    io.may_wait.clear()
    mine.ack(arrived[-1])
    assert io.may_wait == [False]


def test_a_batch_is_acknowledged_by_one_call(
    io: Busy, channel: Mock, subscription: Subscription, arrived: list[Arrival]
) -> None:
    io.may_wait.clear()
    subscription.ack(*arrived)
    assert io.may_wait == [False]
    io.catch_up()
    assert acked(channel) == [(5, True)]

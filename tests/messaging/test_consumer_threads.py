"""What a consumer's threads acknowledge, give back, count and carry out, without a broker."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any
from unittest.mock import Mock, call

import pytest
from structlog.testing import capture_logs

from messaging import effects
from messaging.consumers import MAX_PREFETCH
from messaging.exceptions import NotFound, Reject
from messaging.message import Delivery
from messaging.models import Effect, InboxMessage
from messaging.worker import consumer_threads, database_wait, handling
from messaging.worker.consumer_threads import ConsumerThreads
from messaging.worker.worker import Worker
from tests.support.consuming import Noted, a_consumer, note, notes, take_note
from tests.support.fake_subscription import an_arrival, consumer_threads_of

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def batches_fill(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, what has arrived is taken."""
    monkeypatch.setattr(consumer_threads, "LINGER", 60.0)


@pytest.fixture
def text() -> Iterator[list[str]]:
    """An effect of that name; what was sent by it."""
    sent: list[str] = []

    def send(sending: effects.Sending) -> None:
        sent.append(sending.payload["to"])

    with effects.registry.temporary():
        effects.effect("text", timeout=timedelta(seconds=20))(send)
        yield sent


def intending(event: Noted, delivery: Delivery) -> None:
    take_note(event, delivery)
    delivery.effect("text", {"to": event.text})


def run_once(mine: ConsumerThreads, *arrivals: Any) -> None:
    """Let these arrive, and handle what is taken at a time."""
    for arrival in arrivals:
        mine._arrived(arrival)
    mine._handle_all(mine._next())


def refuses_alone(monkeypatch: pytest.MonkeyPatch, *texts: str) -> None:
    """Let these fail by a fault of our own when they are handled alone."""
    handle = handling.handle

    def handle_or_fail(consumer: Any, delivery: Delivery) -> Any:
        if any(text.encode() in delivery.message.body for text in texts):
            raise ZeroDivisionError
        return handle(consumer, delivery)

    monkeypatch.setattr(handling, "handle", handle_or_fail)


# --- batches -----------------------------------------------------------------------------------------------


def test_a_batch_is_handled_together_and_each_of_it_is_acknowledged_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handling, "handle", lambda *_: pytest.fail("alone"))
    mine, subscription = consumer_threads_of(a_consumer(batch=2))
    arrivals = [an_arrival(f"m{number}") for number in range(3)]
    run_once(mine, *arrivals)
    assert subscription.acked == arrivals[:2]
    assert (mine._tally.counts, mine._tally.busy, notes()) == ({"handled": 2}, 0, 2)
    assert mine._arrivals.qsize() == 1


def test_a_batch_that_does_not_fill_is_handled_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer_threads, "LINGER", 0.01)
    mine, subscription = consumer_threads_of(a_consumer(batch=5))
    arrivals = [an_arrival("one"), an_arrival("two")]
    for arrival in arrivals:
        mine._arrived(arrival)
    while len(subscription.acked) < 2:
        mine._handle_all(mine._next())
    assert subscription.acked == arrivals


def test_a_batch_with_one_that_fails_is_handled_one_by_one() -> None:
    def choosy(event: Noted, delivery: Delivery) -> None:
        note(event.text)
        if event.text == "m1":
            raise Reject("this one")

    mine, subscription = consumer_threads_of(a_consumer(choosy, batch=3))
    arrivals = [an_arrival(f"m{number}") for number in range(3)]
    run_once(mine, *arrivals)
    assert sorted(subscription.acked, key=arrivals.index) == arrivals
    assert (mine._tally.counts, mine._tally.busy, notes()) == ({"handled": 2, "dead": 1}, 0, 2)


def test_a_redelivered_message_ends_its_batch_and_is_handled_alone() -> None:
    mine, subscription = consumer_threads_of(a_consumer(batch=5))
    first, again, later = an_arrival("first"), an_arrival("again", redelivered=True), an_arrival("later")
    run_once(mine, first, again, later)
    assert subscription.acked == [first, again]
    assert dict(InboxMessage.objects.values_list("message_id", "starts")) == {first.message.id: 0, again.message.id: 1}
    assert mine._arrivals.get_nowait() is later


def test_after_a_fault_of_our_own_only_what_was_not_acknowledged_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handling, "handle_together", lambda *_: None)
    refuses_alone(monkeypatch, "m1")
    mine, subscription = consumer_threads_of(a_consumer(batch=3))
    arrivals = [an_arrival(f"m{number}") for number in range(3)]
    with pytest.raises(ZeroDivisionError):
        run_once(mine, *arrivals)
    assert (subscription.acked, subscription.requeued) == (arrivals[:1], arrivals[1:])
    assert mine._tally.busy == 0


def test_after_a_fault_of_our_own_nothing_of_a_batch_that_was_handled_goes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refuses_alone(monkeypatch, "again")
    mine, subscription = consumer_threads_of(a_consumer(batch=3))
    one, two, again = an_arrival("one"), an_arrival("two"), an_arrival("again", redelivered=True)
    with pytest.raises(ZeroDivisionError):
        run_once(mine, one, two, again)
    assert (subscription.acked, subscription.requeued) == ([one, two], [again])


# --- what is not handled -----------------------------------------------------------------------------------


def test_what_is_over_the_limit_goes_back_after_the_end_of_consuming() -> None:
    mine, subscription = consumer_threads_of(a_consumer(), max_messages=1)
    one, two = an_arrival("one"), an_arrival("two")
    run_once(mine, one, two)
    assert (subscription.acked, subscription.cancelled) == ([one], False)
    assert mine._next() == []
    assert (subscription.requeued, subscription.cancelled, mine._tally.busy) == ([two], True, 0)


def test_what_arrived_on_a_channel_that_is_gone_is_not_handled_and_not_given_back() -> None:
    mine, subscription = consumer_threads_of(a_consumer(), max_messages=1)
    mine._arrived(an_arrival())
    subscription.channel_is_gone = True
    assert mine._next() == []
    assert (subscription.acked, subscription.requeued, notes()) == ([], [], 0)
    assert (mine._tally.busy, mine._tally.remaining) == (0, 1)


def test_a_stopping_consumer_ends_what_has_begun_and_gives_back_the_rest() -> None:
    begun, may_end = threading.Event(), threading.Event()

    def slow(event: Noted, delivery: Delivery) -> None:
        begun.set()
        may_end.wait(20)

    mine, subscription = consumer_threads_of(a_consumer(slow), threads=2)
    arrivals = [an_arrival(f"m{number}") for number in range(4)]
    mine.threads[0].start()
    for arrival in arrivals[:3]:
        mine._arrived(arrival)
    assert begun.wait(10)
    mine.stop()
    mine._arrived(arrivals[3])
    assert (subscription.requeued, subscription.cancelled) == (arrivals[3:], True)
    may_end.set()
    mine.threads[0].join(10)
    assert subscription.acked == arrivals[:1]
    assert sorted(subscription.requeued, key=arrivals.index) == arrivals[1:]
    # The other thread, which waited all the while, is told too.
    mine.threads[1].start()
    mine.threads[1].join(10)
    assert not mine.threads[1].is_alive()


def test_what_waits_for_the_database_at_the_stop_is_not_acknowledged(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, subscription = consumer_threads_of(a_consumer())

    def away(*_: Any) -> None:
        mine._stopping.set()
        raise database_wait.DatabaseAway("the server is away")

    monkeypatch.setattr(handling, "handle", away)
    run_once(mine, an_arrival())
    assert (subscription.acked, mine._tally.counts, mine._tally.busy) == ([], {}, 0)


# --- effects -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
def test_effects_are_carried_out_before_the_acknowledgement(
    text: list[str], monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    mine, subscription = consumer_threads_of(a_consumer(intending, batch=count))
    states: list[set[str]] = []
    monkeypatch.setattr(
        subscription, "ack", lambda *_: states.append(set(Effect.objects.values_list("state", flat=True)))
    )
    run_once(mine, *[an_arrival(f"m{number}") for number in range(count)])
    assert states == [{"done"}]
    assert sorted(text) == [f"m{number}" for number in range(count)]


@pytest.mark.parametrize("count", [1, 2])
def test_the_effects_of_a_duplicate_are_carried_out_for_its_process_may_have_died_before(
    text: list[str], count: int
) -> None:
    consumer = a_consumer(intending, batch=count)
    arrivals = [an_arrival(f"m{number}") for number in range(count)]
    mine, subscription = consumer_threads_of(consumer)
    for arrival in arrivals:
        assert handling.handle(consumer, mine._delivery(arrival)) == "handled"
    assert text == []
    run_once(mine, *arrivals)
    assert (sorted(text), subscription.acked) == ([f"m{number}" for number in range(count)], arrivals)
    assert mine._tally.counts == {"duplicate": count}


def test_what_a_handler_without_effects_handled_carries_out_none_of_others(text: list[str]) -> None:
    other, _ = consumer_threads_of(a_consumer(intending, name="copies"))
    arrival = an_arrival()
    assert handling.handle(other.consumer, other._delivery(arrival)) == "handled"
    mine, _ = consumer_threads_of(a_consumer())
    for _ in range(2):
        run_once(mine, arrival)
    assert text == []


# --- idleness and how it is set up --------------------------------------------------------------------------


def test_a_consumer_is_idle_if_its_queue_is_empty_and_nothing_is_at_work() -> None:
    ask = Mock(return_value=Mock(messages=0))
    mine, subscription = consumer_threads_of(a_consumer(), connection=Mock(call=ask))
    assert mine.is_idle()
    assert ask.call_args == call("queue_declare", queue="tests.notes", passive=True)
    subscription.consuming = False
    assert not mine.is_idle()
    subscription.consuming = True
    mine._arrived(an_arrival())
    assert not mine.is_idle()
    arrivals = mine._next()
    assert not mine.is_idle()
    mine._handle_all(arrivals)
    assert mine.is_idle()
    ask.return_value.messages = 2
    assert not mine.is_idle()
    ask.side_effect = NotFound("NOT_FOUND")
    assert not mine.is_idle()


def test_a_handler_is_told_where_its_message_came_from() -> None:
    told: list[tuple[str, str, str, bool]] = []

    def handler(event: Noted, delivery: Delivery) -> None:
        told.append((delivery.queue, delivery.exchange, delivery.routing_key, delivery.redelivered))

    mine, _ = consumer_threads_of(a_consumer(handler))
    run_once(mine, replace(an_arrival(redelivered=True), exchange="orders.events"))
    assert told == [("tests.notes", "orders.events", "test.noted", True)]


@pytest.mark.parametrize(("prefetch", "batch", "expected"), [(10, 50, 50), (20, 5, 20)])
def test_a_batch_can_fill_although_fewer_are_to_be_fetched(prefetch: int, batch: int, expected: int) -> None:
    mine = ConsumerThreads(a_consumer(batch=batch), Mock(), Mock(), Mock(), threads=3, prefetch=prefetch, writer=None)
    assert (mine.subscription.prefetch, mine.subscription.queue) == (expected, "tests.notes")
    assert [thread.daemon for thread in mine.threads] == [True] * 3, "a stuck handler keeps no process alive"


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, 50), ({"batch": 40}, 120), ({"batch": 40, "prefetch": 60}, 60), ({"batch": MAX_PREFETCH}, MAX_PREFETCH)],
)
def test_while_the_threads_handle_batches_another_one_arrives_unless_the_consumer_says_how_many(
    options: dict[str, Any], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("messaging.database.is_sqlite", lambda: False)
    [mine] = Worker([a_consumer(**options)], concurrency=2).consumers
    assert mine.subscription.prefetch == expected


def test_the_one_writer_is_held_while_a_delivery_is_handled() -> None:
    writer = threading.Lock()
    held: list[bool] = []
    mine, _ = consumer_threads_of(a_consumer(lambda event, delivery: held.append(writer.locked())), writer=writer)
    run_once(mine, an_arrival())
    assert (held, writer.locked()) == ([True], False)


def test_the_end_of_consuming_is_a_warning_for_each_reason_and_after_each_new_beginning() -> None:
    mine, subscription = consumer_threads_of(a_consumer())
    with capture_logs() as lines:
        for reason in ("the queue was deleted", "the queue was deleted", "the channel was closed"):
            mine._ended(reason)
        subscription.had_begun = True
        mine._ended("the channel was closed")
        mine._stopping.set()
        mine._ended("the connection was lost")
    said = [(line["event"], line["log_level"], line["consumer"], line["queue"], line["reason"]) for line in lines]
    assert said == [
        ("consumer.ended", "warning", "notes", "tests.notes", reason)
        for reason in ("the queue was deleted", "the channel was closed", "the channel was closed")
    ]

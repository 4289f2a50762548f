"""The outcome of each publish, whatever the broker answers, in which order, and not at all."""

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import MagicMock, Mock, call

import pika
import pytest
from pika import spec
from structlog.testing import capture_logs

from messaging.broker import publisher as module
from messaging.broker.publisher import Outcome, Publisher, Publishing, Status
from messaging.exceptions import BrokerSilent, BrokerUnavailable, NotFound
from messaging.message import OUTBOX_ID_HEADER, Message
from tests.support.running import InThread
from tests.support.waiting import seconds_pass

CONFIRMED, RETURNED, NACKED, UNKNOWN = Status.CONFIRMED, Status.RETURNED, Status.NACKED, Status.UNKNOWN
Answer = Callable[["Broker"], None]


class Broker:
    """The publisher's connection and channel, and what they answer to a batch."""

    def __init__(self, role: str, *, on_open: Any, on_lost: Any, **_: Any) -> None:
        self.on_open, self.on_lost = on_open, on_lost
        self.last_error = ""
        self.usable = self.is_open = True
        self.blocked = False
        self.answers: Answer = confirm_all
        self.resets: list[str] = []
        self.successes = self.opened = 0
        self.reach = Mock(return_value=True)
        self.channel = MagicMock()

    def open_channel(self, on_open: Any, on_close: Any) -> bool:
        self.opened += 1
        self.channel = MagicMock(is_open=True)
        self.opens, self.closes = on_open, on_close
        return True

    def call_soon(self, function: Callable[[], None]) -> None:
        function()
        self.answers(self)

    def reset(self, reason: str) -> None:
        self.resets.append(reason)

    def succeeded(self) -> None:
        self.successes += 1

    def begin(self) -> None:
        """The channel opens, and is in confirm mode."""
        self.opens(self.channel)
        self.channel.confirm_delivery.call_args.kwargs["callback"](Mock())

    def ack(self, tag: int, *, multiple: bool = False) -> None:
        self.channel.confirm_delivery.call_args.args[0](Mock(method=spec.Basic.Ack(tag, multiple)))

    def nack(self, tag: int) -> None:
        self.channel.confirm_delivery.call_args.args[0](Mock(method=spec.Basic.Nack(tag)))

    def give_back(self, **properties: Any) -> None:
        """Return a message that no queue took."""
        method = spec.Basic.Return(312, "NO_ROUTE", "", "nowhere")
        self.channel.add_on_return_callback.call_args.args[0](
            self.channel, method, pika.BasicProperties(**properties), b""
        )

    def close(self, error: Exception, *, connected: bool = True) -> None:
        self.is_open = self.channel.connection.is_open = connected
        self.channel.is_open = False
        self.closes(self.channel, error)


def confirm_all(broker: Broker) -> None:
    broker.ack(10**6, multiple=True)


def nothing(broker: Broker) -> None:
    """No answer."""


@pytest.fixture
def publisher(monkeypatch: pytest.MonkeyPatch) -> Publisher:
    monkeypatch.setattr(module, "Connection", Broker)
    publisher = Publisher("test")
    broker_of(publisher).on_open()
    broker_of(publisher).begin()
    return publisher


@pytest.fixture
def broker(publisher: Publisher) -> Broker:
    return broker_of(publisher)


def broker_of(publisher: Publisher) -> Broker:
    connection: Any = publisher.connection
    assert isinstance(connection, Broker)
    return connection


def row(number: int, **changes: Any) -> Publishing:
    message = Message(body=b"{}", id=f"m-{number}", headers={OUTBOX_ID_HEADER: str(number)})
    return Publishing(**{"key": str(number), "exchange": "", "routing_key": "q", "message": message, **changes})


def plain() -> Publishing:
    return Publishing("", "", "nowhere", Message(body=b"the same"))


def published(publisher: Publisher, *batch: Publishing, answers: Answer, timeout: float = 0.01) -> list[Outcome]:
    broker_of(publisher).answers = answers
    return publisher.publish(batch or [row(1), row(2), row(3)], timeout)


def statuses(publisher: Publisher, *batch: Publishing, answers: Answer) -> list[Status]:
    return [outcome.status for outcome in published(publisher, *batch, answers=answers)]


# --- confirms ----------------------------------------------------------------------------------------------


def test_a_message_goes_out_as_it_is_and_asks_to_be_returned_only_if_it_is_mandatory(
    publisher: Publisher, broker: Broker
) -> None:
    published(publisher, row(1, exchange="e", routing_key="k"), row(2, mandatory=False), answers=confirm_all)
    first, second = broker.channel.basic_publish.call_args_list
    assert first.args[:3] == ("e", "k", b"{}")
    assert (first.args[3].message_id, first.kwargs, second.kwargs) == ("m-1", {"mandatory": True}, {"mandatory": False})


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (confirm_all, [CONFIRMED] * 3),
        (lambda broker: broker.ack(3, multiple=True), [CONFIRMED] * 3),
        (lambda broker: broker.ack(2, multiple=True), [CONFIRMED, CONFIRMED, UNKNOWN]),
        (lambda broker: broker.ack(2), [UNKNOWN, CONFIRMED, UNKNOWN]),
        (lambda broker: [broker.ack(3), broker.nack(1), broker.ack(2)], [NACKED, CONFIRMED, CONFIRMED]),
        (lambda broker: [broker.ack(1), broker.ack(1), broker.ack(9)], [CONFIRMED, UNKNOWN, UNKNOWN]),
        (nothing, [UNKNOWN] * 3),
    ],
)
def test_a_confirm_counts_for_the_messages_that_it_names(
    publisher: Publisher, broker: Broker, answers: Answer, expected: list[Status]
) -> None:
    outcomes = published(publisher, answers=answers)
    assert [outcome.status for outcome in outcomes] == expected
    assert [outcome.late for outcome in outcomes] == [status is UNKNOWN for status in expected]
    assert broker.successes == (CONFIRMED in expected)
    assert [bool(outcome.reason) for outcome in outcomes] == [status is not CONFIRMED for status in expected]


@pytest.mark.timeout(60)
def test_the_last_outcome_is_waited_for_and_nothing_after_it(publisher: Publisher) -> None:
    answering: list[InThread] = []

    def answer(broker: Broker) -> None:
        broker.ack(1)
        seconds_pass(0.2)
        broker.ack(3, multiple=True)

    outcomes = published(
        publisher, answers=lambda broker: answering.append(InThread(lambda: answer(broker), "broker")), timeout=3600
    )
    answering[0].join()
    assert outcomes == [Outcome(CONFIRMED)] * 3


def test_on_a_new_channel_tags_begin_anew(publisher: Publisher, broker: Broker) -> None:
    published(publisher, answers=confirm_all)
    broker.close(BrokerUnavailable("gone"))
    broker.begin()
    assert statuses(publisher, row(4), row(5), answers=lambda broker: broker.ack(1)) == [CONFIRMED, UNKNOWN]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (pika.exceptions.ChannelWrongStateError("closed"), UNKNOWN),
        (pika.exceptions.ConnectionWrongStateError("closed"), UNKNOWN),
        (ValueError("too long"), Status.UNSENDABLE),
    ],
)
def test_what_could_not_be_sent_has_no_tag_and_its_reason(
    publisher: Publisher, broker: Broker, error: Exception, status: Status
) -> None:
    broker.channel.basic_publish.side_effect = [None, error, None]
    first, second, third = published(publisher, answers=lambda broker: [broker.nack(1), broker.ack(2)])  # type: ignore[arg-type,return-value]
    assert (first.status, third.status) == (NACKED, CONFIRMED)
    assert (second.status, second.late) == (status, False)
    assert str(error) in second.reason or type(error).__name__ in second.reason


# --- returned messages -------------------------------------------------------------------------------------


def test_a_returned_message_is_matched_by_its_row_and_its_confirm_changes_nothing(
    publisher: Publisher, broker: Broker
) -> None:
    def answers(broker: Broker) -> None:
        broker.give_back(headers={OUTBOX_ID_HEADER: 2}, message_id="1")
        broker.give_back(message_id="3")
        confirm_all(broker)

    outcomes = published(publisher, answers=answers)
    assert [outcome.status for outcome in outcomes] == [CONFIRMED, RETURNED, RETURNED]
    assert outcomes[1].reason == "312 NO_ROUTE"


def test_returned_messages_without_a_key_are_counted_among_their_like(publisher: Publisher) -> None:
    def answers(broker: Broker) -> None:
        for _ in range(2):
            broker.give_back()
        confirm_all(broker)

    batch = [row(1), plain(), plain(), plain()]
    assert statuses(publisher, *batch, answers=answers) == [CONFIRMED, RETURNED, RETURNED, CONFIRMED]


def test_what_was_returned_and_is_not_known_is_an_error_in_the_log_and_changes_nothing(publisher: Publisher) -> None:
    def answers(broker: Broker) -> None:
        broker.give_back(message_id="another")
        broker.give_back(message_id="0")
        confirm_all(broker)

    # What is settled is known no longer: a relay that runs for months would remember each of its rows.
    assert statuses(publisher, row(0), answers=confirm_all) == [CONFIRMED]
    with capture_logs() as lines:
        assert statuses(publisher, answers=answers) == [CONFIRMED] * 3
    assert [(line["event"], line["message_id"], line["routing_key"]) for line in lines] == [
        ("amqp.returned_unknown", "another", "nowhere"),
        ("amqp.returned_unknown", "0", "nowhere"),
    ]


def test_a_row_that_is_published_again_owns_its_key_whatever_becomes_of_the_first(
    publisher: Publisher, broker: Broker
) -> None:
    broker.blocked = True  # so the first stays on its way

    def answers(broker: Broker) -> None:
        broker.ack(1)
        broker.give_back(headers={OUTBOX_ID_HEADER: "1"})
        broker.ack(2)

    assert statuses(publisher, row(1), answers=nothing) == [UNKNOWN]
    assert statuses(publisher, row(1), answers=answers) == [RETURNED]


# --- no answer, no channel, no connection ------------------------------------------------------------------


@pytest.mark.parametrize("blocked", [False, True])
def test_without_a_confirm_in_time_the_connection_is_given_up_unless_the_broker_is_blocked(
    publisher: Publisher, broker: Broker, blocked: bool
) -> None:
    broker.blocked = blocked
    [outcome] = published(publisher, row(1), answers=nothing)
    assert outcome.reason.startswith("no confirm within 0.01 s")
    assert ("alarm blocks the broker" in outcome.reason) is blocked
    assert broker.resets == ([] if blocked else [outcome.reason])
    assert publisher.ready is blocked


def test_over_a_refused_message_the_channel_is_opened_again_and_what_was_open_is_refused(
    publisher: Publisher, broker: Broker
) -> None:
    error = NotFound("NOT_FOUND - no exchange 'nowhere'")

    def answers(broker: Broker) -> None:
        broker.ack(1)
        broker.close(error)

    first, *others = published(publisher, answers=answers)
    assert (first.status, broker.opened, publisher.ready) == (CONFIRMED, 2, False)
    assert others == [Outcome(Status.REFUSED, str(error), error)] * 2
    broker.begin()
    assert publisher.ready
    assert broker.resets == []
    assert statuses(publisher, answers=confirm_all) == [CONFIRMED] * 3


def test_a_channel_that_ended_with_its_connection_is_not_opened_again(publisher: Publisher, broker: Broker) -> None:
    lost = BrokerUnavailable("the connection was lost")
    outcomes = published(publisher, answers=lambda broker: broker.close(lost, connected=False))
    assert outcomes == [Outcome(UNKNOWN, str(lost))] * 3
    assert (broker.opened, publisher.ready) == (1, False)


def test_with_the_connection_lost_what_was_open_is_unknown(publisher: Publisher, broker: Broker) -> None:
    def answers(broker: Broker) -> None:
        broker.ack(2)
        broker.on_lost("reset by peer")

    unknown = Outcome(UNKNOWN, "reset by peer")
    assert published(publisher, answers=answers) == [unknown, Outcome(CONFIRMED), unknown]
    assert not publisher.ready
    assert broker.resets == []


def test_the_end_of_an_earlier_channel_ends_nothing(publisher: Publisher, broker: Broker) -> None:
    ends_once_more = partial(broker.closes, broker.channel)
    broker.close(BrokerUnavailable("gone"))
    broker.begin()

    def answers(broker: Broker) -> None:
        ends_once_more(BrokerUnavailable("gone"))
        confirm_all(broker)

    assert statuses(publisher, answers=answers) == [CONFIRMED] * 3
    assert (broker.opened, publisher.ready) == (2, True)


@pytest.mark.parametrize(("error", "reason"), [("", "no channel to the broker"), ("refused", "refused")])
def test_without_a_channel_nothing_is_sent_and_the_outcome_is_known_at_once(
    publisher: Publisher, broker: Broker, error: str, reason: str
) -> None:
    channel, broker.last_error = broker.channel, error
    broker.on_lost("gone")
    assert published(publisher, answers=nothing) == [Outcome(UNKNOWN, reason)] * 3
    assert (channel.basic_publish.called, broker.resets) == (False, [])


def test_on_a_channel_that_is_closing_nothing_is_sent_and_the_outcome_is_known_at_once(
    publisher: Publisher, broker: Broker
) -> None:
    broker.channel.is_open = False
    broker.channel.basic_publish.side_effect = pika.exceptions.ChannelWrongStateError("closing")
    outcomes = published(publisher, answers=nothing)
    assert [(outcome.status, outcome.late) for outcome in outcomes] == [(UNKNOWN, False)] * 3
    assert broker.resets == []


# --- readiness ---------------------------------------------------------------------------------------------


def test_it_is_ready_once_its_channel_confirms_and_while_its_connection_is_usable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "Connection", Broker)
    publisher = Publisher("test")
    broker = broker_of(publisher)
    assert not publisher.ready
    broker.on_open()
    broker.opens(broker.channel)
    assert not publisher.ready
    broker.begin()
    assert publisher.ready
    broker.usable = False
    assert not publisher.ready


def test_it_is_reached_once_its_channel_confirms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Connection", Broker)
    monkeypatch.setattr(module, "CALL_TIMEOUT", 0.01)
    publisher, given_up = Publisher("test"), Mock()
    broker = broker_of(publisher)
    broker.reach.return_value = False
    assert not publisher.reach(given_up)
    assert broker.reach.call_args == call(given_up)
    broker.reach.return_value = True
    with pytest.raises(BrokerSilent, match="did not open a channel in time"):
        publisher.reach()
    broker.last_error = "no channel left"
    with pytest.raises(BrokerSilent, match="no channel left"):
        publisher.reach()
    broker.on_open()
    broker.begin()
    assert publisher.reach()

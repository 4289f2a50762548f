"""The publisher returns the right outcome for each message."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from messaging import conf
from messaging.broker.publisher import Publisher, Publishing, Status
from messaging.exceptions import NotFound
from messaging.message import OUTBOX_ID_HEADER, Message, new_id
from script.services.ports import free_port
from script.services.rabbitmq import RabbitMQNode
from tests.support.amqp import plain_channel
from tests.support.network import BrokerNetwork
from tests.support.running import take_all
from tests.support.waiting import eventually


@pytest.fixture
def publisher(vhost: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Publisher]:
    monkeypatch.setattr(conf, "RECONNECT_MAX", 0.3)
    with plain_channel(vhost) as channel:
        channel.queue_declare("q", durable=True)
        channel.queue_declare("full", durable=True, arguments={"x-max-length": 0, "x-overflow": "reject-publish"})
    publisher = Publisher("test").start()
    eventually(lambda: publisher.ready)
    yield publisher
    publisher.stop()


def to(queue: str, key: str = "", *, exchange: str = "", **changes: Any) -> Publishing:
    key = key or new_id()
    message = Message(**{"body": b"{}", "id": key, "headers": {OUTBOX_ID_HEADER: key}, **changes})
    return Publishing(key=key, exchange=exchange, routing_key=queue, message=message)


def statuses(publisher: Publisher, *publishings: Publishing, timeout: float = 20) -> list[str]:
    return [outcome.status.value for outcome in publisher.publish(publishings, timeout)]


def test_each_message_of_a_batch_gets_its_own_outcome(publisher: Publisher) -> None:
    batch = [to("q"), to("nowhere"), to("full"), to("x" * 300), to("q")]
    assert statuses(publisher, *batch) == ["confirmed", "returned", "nacked", "unsendable", "confirmed"]


def test_returned_messages_without_a_key_are_counted(publisher: Publisher) -> None:
    plain = Publishing("", "", "nowhere", Message(body=b"the same"))
    batch = [plain, to("q"), plain, to("nowhere"), plain]
    assert statuses(publisher, *batch) == ["returned", "confirmed", "returned", "returned", "returned"]


def test_a_large_batch_and_a_large_body_are_confirmed_in_full(publisher: Publisher, vhost: str) -> None:
    assert statuses(publisher) == []
    assert statuses(publisher, *[to("q") for _ in range(1000)]) == ["confirmed"] * 1000
    body = bytes(range(256)) * 4096
    assert statuses(publisher, to("q", body=body)) == ["confirmed"]
    taken = take_all(vhost, "q")
    assert len(taken) == 1001
    assert taken[-1][1] == body


def test_a_missing_exchange_refuses_all_unconfirmed_messages_and_the_channel_reopens(publisher: Publisher) -> None:
    outcomes = publisher.publish([to("q"), to("q", exchange="nowhere"), to("q")], 5)
    assert {outcome.status for outcome in outcomes} <= {Status.REFUSED, Status.CONFIRMED}
    assert outcomes[1].status is Status.REFUSED
    assert isinstance(outcomes[1].refusal, NotFound)
    eventually(lambda: publisher.ready)
    assert statuses(publisher, to("q")) == ["confirmed"]
    assert publisher.connection.generation == 1


def test_headers_that_cannot_be_sent_are_unsendable_and_do_no_harm(publisher: Publisher) -> None:
    room = 131_064  # bytes of a frame
    for headers, allowed in (
        ({"big": "x" * 100_000}, {"confirmed"}),
        ({"big": "x" * (room - 1_000)}, {"confirmed", "unsendable"}),
        ({"big": "x" * (room + 8)}, {"unsendable"}),
        ({"big": "x" * 500_000}, {"unsendable"}),
        ({"n": 2**63}, {"unsendable", "confirmed"}),
        ({"s": {1, 2}}, {"unsendable"}),
        ({"o": object()}, {"unsendable"}),
        ({"k" * 300: 1}, {"unsendable"}),
        ({"bad": "\ud800"}, {"unsendable"}),
        ({"e": 1e400}, {"unsendable"}),
        ({"e": float("nan")}, {"unsendable"}),
    ):
        outcomes = statuses(publisher, to("q"), to("q", headers={OUTBOX_ID_HEADER: "1", **headers}), to("q"))
        assert outcomes[0] == outcomes[2] == "confirmed"
        assert outcomes[1] in allowed, headers
    assert publisher.connection.generation == 1


def test_a_connection_lost_in_mid_batch_leaves_unconfirmed_messages_unknown(
    publisher: Publisher, broker: RabbitMQNode
) -> None:
    publisher.connection.reset("for a test")
    outcomes = publisher.publish([to("q") for _ in range(10)], 5)
    assert {outcome.status for outcome in outcomes} <= {Status.UNKNOWN, Status.CONFIRMED}
    eventually(lambda: publisher.ready)
    assert statuses(publisher, to("q")) == ["confirmed"]


def test_a_publish_without_any_connection_is_unknown_at_once(settings: Any) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": [f"amqp://127.0.0.1:{free_port()}/"]}
    publisher = Publisher("test").start()
    try:
        eventually(lambda: publisher.connection.last_error)
        began = time.monotonic()
        [outcome] = publisher.publish([to("q")], 60)
        assert (outcome.status, outcome.reason) == (
            Status.UNKNOWN,
            f"connection refused: nothing listens at {conf.get().brokers[0].place}",
        )
        assert time.monotonic() - began < 30
    finally:
        publisher.stop()


def test_only_real_success_makes_the_pauses_between_reconnects_small_again(publisher: Publisher) -> None:
    publisher.connection._attempts.failures = 5
    assert statuses(publisher, to("nowhere")) == ["returned"]
    assert publisher.connection._attempts.failures == 5
    assert statuses(publisher, to("q")) == ["confirmed"]
    assert publisher.connection._attempts.failures == 0


def test_a_frozen_broker_gives_no_confirm_in_time_and_each_outcome_is_late(
    network: BrokerNetwork, publisher: Publisher, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    network.pause()
    reset = publisher.connection.reset

    def reset_before_anything_else_happens(reason: str) -> None:
        reset(reason)
        eventually(lambda: publisher.connection.last_error == reason)

    monkeypatch.setattr(publisher.connection, "reset", reset_before_anything_else_happens)
    [outcome] = publisher.publish([to("q")], 0.5)
    assert (outcome.status, outcome.late) == (Status.UNKNOWN, True)
    assert not publisher.ready, "nothing more is sent by a connection that was given up"
    network.resume()
    eventually(lambda: publisher.ready, within=20)
    assert statuses(publisher, to("q")) == ["confirmed"]

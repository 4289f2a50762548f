"""A refused declaration names the property in which the existing queue or exchange differs."""

from typing import Any

import pytest

from messaging.broker.connection import opened
from messaging.broker.errors import Difference, difference
from messaging.exceptions import OperationRefused
from tests.support.amqp import plain_channel

#: How it exists, how it is asked for, the report.
QUEUES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"durable": True}, {"durable": False}, "exists with durable=true, you asked for it with durable=false"),
    ({}, {"auto_delete": True}, "exists with auto_delete=false, you asked for it with auto_delete=true"),
    (
        {},
        {"arguments": {"x-max-priority": 10}},
        "exists without x-max-priority, you asked for it with x-max-priority=10",
    ),
    (
        {"arguments": {"x-max-priority": 10}},
        {},
        "exists with x-max-priority=10, you asked for it without x-max-priority",
    ),
    (
        {"arguments": {"x-max-priority": 10}},
        {"arguments": {"x-max-priority": 5}},
        "exists with x-max-priority=10, you asked for it with x-max-priority=5",
    ),
    (
        {"arguments": {"x-overflow": "drop-head"}},
        {"arguments": {"x-overflow": "reject-publish"}},
        "exists with x-overflow=drop-head, you asked for it with x-overflow=reject-publish",
    ),
]


def refusal(method: str, **arguments: Any) -> OperationRefused:
    with opened("test") as connection, pytest.raises(OperationRefused) as refused:
        connection.call(method, **arguments)
    return refused.value


@pytest.mark.parametrize(("exists", "asked", "said"), QUEUES, ids=[said for _, _, said in QUEUES])
def test_a_differing_queue_is_reported_with_both_values(
    vhost: str, exists: dict[str, Any], asked: dict[str, Any], said: str
) -> None:
    with plain_channel(vhost) as channel:
        channel.queue_declare("it's 'mine'", **exists)
    assert str(difference(refusal("queue_declare", queue="it's 'mine'", **asked))) == f"queue it's 'mine' {said}"


def test_an_exchange_of_another_type_is_reported(vhost: str) -> None:
    with plain_channel(vhost) as channel:
        channel.exchange_declare("logs", "fanout")
    told = difference(refusal("exchange_declare", exchange="logs", exchange_type="topic"))
    assert told == Difference("exchange", "logs", "type", asked="topic", found="fanout")


def test_other_refusals_are_no_differences(vhost: str) -> None:
    assert difference(refusal("queue_declare", queue="nowhere", passive=True)) is None
    assert difference(refusal("queue_declare", queue="wrong", arguments={"x-max-priority": -1})) is None

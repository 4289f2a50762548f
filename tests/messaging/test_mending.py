"""The steps against drift: what they say of what is deleted, and where."""

from typing import Any

import pytest

from messaging.broker.management import Address
from messaging.topology import mending
from messaging.topology.drift import Drift, Finding, Kind

OURS = Address(scheme="http", host="mq.example", port=15672, prefix="", user="warren", password="x", vhost="shop")


def deleting(address: Address | None, consumer: str = "") -> mending.Step:
    """The step that deletes a queue which does not answer, found by this management API or by AMQP alone."""
    silent = Finding(
        kind=Kind.SILENT_QUEUE, name="orders.sms", said="it does not answer", hint="wake it", consumer=consumer
    )
    [step] = [step for step in mending.plan(Drift("so", address, [silent])) if "elete" in step.command.lower()]
    return step


def test_a_queue_is_deleted_at_the_management_api_only_if_that_is_our_brokers(settings: Any) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": ["amqp://mq.example/shop"]}
    assert "-X DELETE http://mq.example:15672/api/queues/shop/orders.sms" in deleting(OURS).command
    assert deleting(None).command == "rabbitmqctl delete_queue -p shop orders.sms"


@pytest.mark.parametrize(("consumer", "said"), [("sms", "`messages reconcile` sends it again"), ("", "it is lost")])
def test_a_step_says_whether_what_it_deletes_comes_again(consumer: str, said: str) -> None:
    assert said in deleting(None, consumer).why

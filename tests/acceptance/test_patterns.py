"""What the classic tutorials say of RabbitMQ, as `mq` shows it; `tutorial --check` runs their lines (test_tutorial)."""

import json
import re
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pika import BasicProperties

from messaging import conf
from messaging.validation.addresses import broker_address
from script.services.rabbitmq import RabbitMQNode
from tests.support.amqp import plain_channel, queue_length
from tests.support.command_line import mq, publish
from tests.support.listening import Listen
from tests.support.waiting import eventually

# --- Work queue --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prefetch", "slow_gets"), [("1", 1), ("50", 5)])
def test_prefetch_1_is_fair_and_a_large_one_alternates(
    vhost: str,
    listen: Listen,
    prefetch: str,
    slow_gets: int,
) -> None:
    everything = [f"task_queue\t{number}." for number in range(10)]
    slow = listen("task_queue", "--declare", "--prefetch", prefetch, "--dots", "3600")
    fast = listen("task_queue", "--prefetch", prefetch)
    for number in range(10):
        publish(f"{number}.", "--queue", "task_queue")
        if number == 0:
            eventually(lambda: slow.lines)  # it never finishes this one
        elif prefetch == "1":
            eventually(lambda sent=number: len(fast.lines) == sent)

    eventually(lambda: len(fast.lines) == 10 - slow_gets)
    assert slow.lines == everything[:1]
    slow.stop()  # what it held is requeued
    eventually(lambda: sorted(fast.lines) == everything)


# --- Publish/subscribe -------------------------------------------------------------------------------------


def test_every_subscriber_gets_everything_in_a_queue_of_its_own_that_is_deleted_with_it(
    vhost: str,
    broker: RabbitMQNode,
    listen: Listen,
) -> None:
    def queues() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = broker.api("GET", f"/queues/{broker_address(vhost).vhost}")
        return found

    listeners = [listen("logs", "--declare", "--type", "fanout"), listen("logs")]
    assert [(each["name"][:8], each["exclusive"]) for each in queues()] == [("amq.gen-", True)] * 2

    publish("to all", "--exchange", "logs")
    for each in listeners:
        eventually(lambda each=each: each.lines == ["\tto all"])
        each.stop()
    assert queues() == []


# --- Properties, virtual hosts, accounts -------------------------------------------------------------------


def test_a_higher_priority_goes_first(vhost: str) -> None:
    for priority in ("1", "9", "5"):
        publish(f"priority {priority}", "--queue", "jobs", "--declare", "--argument", "x-max-priority=10",
                "--priority", priority)  # fmt: skip
    said = mq("listen", "jobs", "--max-messages", "3")
    assert said.lines == ["jobs\tpriority 9", "jobs\tpriority 5", "jobs\tpriority 1"]


def test_an_expired_message_is_gone(vhost: str) -> None:
    publish("soon stale", "--queue", "q", "--declare", "--expiration", "1")
    publish("lasting", "--queue", "q", "--expiration", "600000")
    eventually(lambda: queue_length(vhost, "q") == 1)
    assert mq("peek", "q").lines == ["q\tlasting"]


def test_every_property_is_shown(vhost: str) -> None:
    properties: dict[str, Any] = {
        "message_id": "m-1", "content_type": "text/csv", "correlation_id": "c-1", "expiration": "60000", "priority": 3,
    }  # fmt: skip
    with plain_channel(vhost) as channel:
        channel.queue_declare("q")
        channel.basic_publish("", "q", b"x", BasicProperties(headers={"a": 1}, **properties))
    [line] = mq("peek", "q", "--json").lines
    assert json.loads(line) == {
        "queue": "q", "exchange": "", "routing_key": "q", "redelivered": False,
        "properties": {**properties, "delivery_mode": 1}, "headers": {"a": 1}, "body": "x", "base64": False,
    }  # fmt: skip


@pytest.fixture
def businesses(broker: RabbitMQNode, vhost: str, settings: Any) -> Iterator[Callable[..., None]]:
    """Two businesses with a virtual host and an account each; called, it sets which account is used, and where."""
    made = {name: f"{name}-{uuid.uuid4().hex[:8]}" for name in ("sales", "stock")}
    for name, unique in made.items():
        broker.add_vhost(unique)
        broker.api("PUT", f"/users/{unique}", {"password": f"secret of {name}", "tags": ""})
        own, write = f"{name}-.*", rf"({name}-.*|amq\.default)"
        broker.api("PUT", f"/permissions/{unique}/{unique}", {"configure": own, "write": write, "read": own})

    def use(user: str, vhost: str = "", password: str = "") -> None:
        url = f"amqp://{made[user]}:{password or f'secret%20of%20{user}'}@127.0.0.1:{broker.port}/{made[vhost or user]}"
        settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": [url]}

    yield use
    for unique in made.values():
        broker.api("DELETE", f"/users/{unique}")
        broker.delete_vhost(unique)


def test_each_business_has_its_virtual_host_and_its_account(businesses: Callable[..., None]) -> None:
    businesses("sales")
    publish("in sales", "--queue", "sales-q", "--declare")
    businesses("stock")
    # From 4.3 on RabbitMQ does not tell an account without rights whether the queue exists.
    said = mq("peek", "sales-q").err
    assert "no queue 'sales-q'" in said or "access to queue 'sales-q' in vhost 'stock-" in said
    businesses("stock", vhost="sales")
    said = mq("peek", "sales-q")
    assert said.code == 3
    assert said.err.startswith("RabbitMQ: the broker refused access to the virtual host: access to vhost 'sales-")
    assert said.err.endswith("). Check AMQP_URL.")
    businesses("sales", password="wrong")
    said = mq("peek", "sales-q")
    place = conf.get().brokers[0].place
    assert (said.code, said.err) == (
        3, f"RabbitMQ: the broker refused the user name or the password ({place}). Check AMQP_URL."
    )  # fmt: skip
    businesses("sales")
    assert mq("listen", "sales-q", "--max-messages", "1").lines == ["sales-q\tin sales"]

    for arguments in (
        ["publish", "x", "--exchange", "amq.topic"],
        ["publish", "x", "--queue", "stock-q", "--declare"],
        ["listen", "amq.fanout"],
    ):
        said = mq(*arguments)
        assert said.code == 1, arguments
        refusal = said.err.splitlines()[-1] if arguments[0] == "publish" else said.err
        assert re.search(r"RabbitMQ refuses: (\w+ )?access to ", refusal)
        assert "`manage.py mq grants`" in refusal

"""An account that may enter the virtual host and do nothing there is told so; one of a single role is not."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from messaging import conf
from messaging.broker.connection import opened
from messaging.topology import desired, permissions
from script.services.rabbitmq import RabbitMQNode
from tests.support.amqp import plain_channel, queue_length
from tests.support.command_line import manage, mq
from tests.support.consuming import a_consumer, registered

NOTES = a_consumer()


@pytest.fixture
def allow(broker: RabbitMQNode, vhost: str, settings: Any) -> Iterator[Callable[..., None]]:
    """Give this process an account with these rights, where all that the project uses exists."""
    name = conf.get().brokers[0].vhost
    with registered(NOTES):
        assert mq("topology", "declare").code == 0
        broker.api("PUT", f"/users/{name}", {"password": "pw", "tags": ""})
        settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": [f"amqp://{name}:pw@127.0.0.1:{broker.port}/{name}"]}

        def set_rights(**rights: str) -> None:
            nothing = {"configure": "^$", "write": "^$", "read": "^$"}
            broker.api("PUT", f"/permissions/{name}/{name}", {**nothing, **rights})

        yield set_rights
        broker.api("DELETE", f"/users/{name}")


def without_any_right() -> str:
    with opened("test") as connection:
        return permissions.without_any_permission(connection)


@pytest.mark.django_db
def test_an_account_without_any_right_is_wrong_in_status_and_one_with_those_of_a_role_is_not(
    vhost: str, allow: Callable[..., None]
) -> None:
    with plain_channel(vhost) as channel:
        channel.basic_publish("", NOTES.queue, b"stays")
    allow()
    said = mq("status")
    assert said.code == 6
    assert "may neither declare, publish nor consume what this project uses" in said.out
    assert "`manage.py mq grants`" in said.out

    exchange = desired.topology([NOTES]).exchanges[0].name
    for rights in ({"configure": exchange}, {"write": exchange}, {"read": NOTES.queue}):
        allow(**rights)
        assert without_any_right() == ""
    assert queue_length(vhost, NOTES.queue) == 1  # nothing was taken to find out


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("command", ["run_consumer notes", "run_rpc_worker fib"])
def test_a_process_that_may_read_none_of_its_queues_ends_and_says_what_to_do(
    vhost: str, allow: Callable[..., None], command: str
) -> None:
    allow()

    said = manage(*command.split())

    assert said.code == 1
    assert re.fullmatch(r"RabbitMQ refuses: access to queue '\S+' .* refused for user '.*'\. .*mq grants.*", said.err)


@pytest.mark.django_db(transaction=True)
def test_a_process_that_may_read_one_of_its_queues_serves_that_one(vhost: str, allow: Callable[..., None]) -> None:
    other = a_consumer(name="other")
    with plain_channel(vhost) as channel, registered(NOTES, other):
        channel.queue_declare(other.queue)
        channel.basic_publish("", NOTES.queue, b"no JSON")
        allow(read=NOTES.queue)

        said = manage("run_consumer", "notes", "other", "--max-messages", "1")

    assert (said.code, said.err) == (0, "")
    assert "1 dead" in said.out

"""An account that may enter the virtual host and do nothing there is told so; one of a single role is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from messaging import conf
from messaging.broker.connection import opened
from messaging.topology import desired, permissions
from script.services.rabbitmq import RabbitMQNode
from tests.support.amqp import plain_channel, queue_length
from tests.support.command_line import mq
from tests.support.consuming import a_consumer, registered

NOTES = a_consumer()


@pytest.fixture
def allow(broker: RabbitMQNode, vhost: str, settings: Any) -> Iterator[Callable[..., None]]:
    """Give this process an account with these rights, where all that the project uses exists."""
    name = conf.get().brokers[0].vhost
    with registered(NOTES):
        assert mq("topology", "declare").code == 0
        broker.ctl("add_user", name, "pw")
        url = f"amqp://{name}:pw@127.0.0.1:{broker.port}/{name}"

        def set_rights(configure: str = "^$", write: str = "^$", read: str = "^$") -> None:
            broker.ctl("set_permissions", "-p", name, name, configure, write, read)
            settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": [url]}

        yield set_rights
        broker.ctl("delete_user", name)


@pytest.mark.django_db(transaction=True)
def test_an_account_without_any_right_is_wrong_in_status(allow: Callable[..., None]) -> None:
    allow()
    said = mq("status")
    assert said.code == 6
    assert "may neither declare, publish nor consume what this project uses" in said.out
    assert "`manage.py mq grants`" in said.out


def without_any_right() -> str:
    with opened("test") as connection:
        return permissions.without_any_permission(connection)


def test_an_account_with_the_rights_of_one_role_is_not(vhost: str, allow: Callable[..., None]) -> None:
    with plain_channel(vhost) as channel:
        channel.basic_publish("", NOTES.queue, b"stays")
    exchange = desired.topology([NOTES]).exchanges[0].name
    allow(configure=exchange)
    assert without_any_right() == ""
    allow(write=exchange)
    assert without_any_right() == ""
    allow(read=NOTES.queue)
    assert without_any_right() == ""
    assert queue_length(vhost, NOTES.queue) == 1  # nothing was taken to find out

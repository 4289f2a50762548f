"""A management API must prove that it is our broker's: another broker may answer at the usual port of the host."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from messaging.monitoring import status
from script.services.rabbitmq import RabbitMQNode
from script.services.tcp_proxy import TcpProxy
from tests.support.amqp import plain_channel
from tests.support.command_line import mq

ANOTHER = "is the management API of another broker"


@pytest.fixture
def elsewhere(_breakable_node: RabbitMQNode, vhost: str, settings: Any) -> Iterator[RabbitMQNode]:
    """Another broker with a virtual host of the same name; MANAGEMENT_URL leads to its management API."""
    _breakable_node.start()
    name = unquote(urlsplit(vhost).path[1:])
    _breakable_node.add_vhost(name)
    address = _breakable_node.management_url.replace("://", f"://warren:{_breakable_node.password}@")
    settings.MESSAGING = {**settings.MESSAGING, "MANAGEMENT_URL": address}
    with plain_channel(_breakable_node.url(name)) as channel:
        channel.queue_declare("not ours")
        yield _breakable_node
    _breakable_node.delete_vhost(name)


@pytest.mark.django_db
def test_another_brokers_api_is_rejected_even_if_both_clusters_have_one_name(elsewhere: RabbitMQNode) -> None:
    said = mq("queues")

    assert (said.code, said.out) == (3, "")
    assert ANOTHER in said.err
    assert ANOTHER in mq("topology", "diff").err
    assert ANOTHER in status.look().broker.how


def test_another_brokers_cluster_is_named(elsewhere: RabbitMQNode) -> None:
    [before] = [elsewhere.api("GET", "/cluster-name")["name"]]
    elsewhere.ctl("set_cluster_name", "somebody@else")
    try:
        assert f"{ANOTHER}, somebody@else; AMQP_URL leads to {before}" in mq("queues").err
    finally:
        elsewhere.ctl("set_cluster_name", before)


def test_ports_changed_by_a_proxy_do_not_matter(broker: RabbitMQNode, vhost: str, settings: Any) -> None:
    web = urlsplit(broker.management_url).port
    assert web is not None
    with TcpProxy(lambda: broker.port) as amqp, TcpProxy(lambda: web) as management:
        url = vhost.replace(f":{broker.port}/", f":{amqp.port}/")
        settings.MESSAGING = {
            **settings.MESSAGING, "AMQP_URLS": [url], "MANAGEMENT_URL": f"http://127.0.0.1:{management.port}",
        }  # fmt: skip
        assert mq("queues").err.startswith("By the management API")


def test_without_amqp_no_management_api_is_used(broker: RabbitMQNode, vhost: str, settings: Any) -> None:
    url = vhost.replace(f":{broker.port}/", ":1/")
    settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": [url]}

    assert mq("queues").code == 3

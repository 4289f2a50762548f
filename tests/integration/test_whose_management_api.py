"""A management API must prove that it is our broker's: another broker may answer at the usual port of the host."""

import json
import re
from typing import Any
from urllib.error import HTTPError

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from messaging.broker import management_api
from messaging.monitoring import status
from messaging.validation.addresses import broker_address
from script.services.rabbitmq import RabbitMQNode
from script.services.tcp_proxy import TcpProxy
from tests.support.command_line import mq

ANOTHER = "is the management API of another broker"


@pytest.fixture
def elsewhere(
    broker: RabbitMQNode, vhost: str, settings: Any, httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """MANAGEMENT_URL leads to the management API of a broker with an empty virtual host of the same name. What it says
    of itself is that of our broker, until the test changes it."""
    ours, theirs = (f"/{broker_address(vhost).vhost}", "/%2F")
    overview: dict[str, Any] = broker.api("GET", "/overview")

    def answer(request: Request) -> Response:
        try:
            path = request.full_path.removeprefix("/api")
            found = overview if path.startswith("/overview") else broker.api("GET", path.replace(ours, theirs))
        except HTTPError as error:
            return Response(error.read(), error.code)
        return Response(json.dumps(found), content_type="application/json")

    monkeypatch.setattr(management_api, "QUEUE_DELAY", 0)
    httpserver.expect_request(re.compile("/api/")).respond_with_handler(answer)
    settings.MESSAGING = {**settings.MESSAGING, "MANAGEMENT_URL": httpserver.url_for("")}
    return overview


@pytest.mark.django_db
def test_another_brokers_api_is_rejected_even_if_both_clusters_have_one_name(elsewhere: dict[str, Any]) -> None:
    said = mq("queues")

    assert (said.code, said.out) == (3, "")
    assert f"{ANOTHER}: it does not know the connection by AMQP_URL" in said.err
    assert ANOTHER in mq("topology", "diff").err
    assert ANOTHER in status.look().broker.how

    before, elsewhere["cluster_name"] = elsewhere["cluster_name"], "somebody@else"
    assert f"{ANOTHER}, somebody@else; AMQP_URL leads to {before}" in mq("queues").err


def test_ports_changed_by_a_proxy_do_not_matter(broker: RabbitMQNode, vhost: str, settings: Any) -> None:
    web = int(broker.management_url.rpartition(":")[2])
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

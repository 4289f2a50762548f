"""What answers in place of RabbitMQ's management API is named in one sentence, whatever it says."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from pytest_httpserver import HTTPServer

from messaging.broker.management_api import Management
from messaging.broker.management_http import ManagementUnavailable, addresses


@pytest.fixture
def management(settings: Any, httpserver: HTTPServer) -> Management:
    settings.MESSAGING = {**settings.MESSAGING, "MANAGEMENT_URL": httpserver.url_for("/api/")}
    [address] = addresses()
    return Management(address)


@pytest.mark.parametrize("look", [Management.queues, Management.exchanges, Management.bindings, Management.policies])
@pytest.mark.parametrize(
    "content",
    ["[null]", "[1]", "[" * 100_000, '{"items": [{}], "page_count": 1}', '{"items": [null], "page_count": 1}',
     '{"items": [], "page_count": "many"}', '{"items": {"name": "a"}}'],
)  # fmt: skip
def test_an_answer_that_is_not_rabbitmqs_is_one_sentence(
    management: Management, httpserver: HTTPServer, look: Callable[[Management], Any], content: str
) -> None:
    httpserver.expect_request(re.compile("")).respond_with_data(content)
    with pytest.raises(ManagementUnavailable, match="is not RabbitMQ's management API"):
        look(management)


def test_an_address_may_end_with_the_path_of_the_api(management: Management, httpserver: HTTPServer) -> None:
    """People copy it from where they tried it out."""
    httpserver.expect_request("/api/overview").respond_with_json({"cluster_name": "rabbit@here"})
    assert management.overview() == {"cluster_name": "rabbit@here"}

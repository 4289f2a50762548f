"""`mq asyncapi`: the document is one by the official schema, says what is registered, and is always the same."""

import json
import subprocess
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from io import StringIO
from typing import Any, Literal

import pytest
from django.core.management import call_command
from pydantic import BaseModel, Field

from messaging import consumers, events, procedures
from messaging.consumers import consumer
from messaging.events import Event
from messaging.routing import Exchange
from messaging.rpc import procedure
from messaging.topology import asyncapi
from script.services import foreign_clients

Document = dict[str, Any]


def document(**changes: str) -> Document:
    return asyncapi.document(**{"title": "shop", "version": "1.0.0", **changes})


def problems_of(document: Document) -> list[str]:
    """What the official schema, and the references, object to."""
    if not (foreign_clients.have_node() and foreign_clients.have_modules()):
        pytest.skip("Node or what tests/foreign/package.json names is missing; `script/test tests/foreign` installs it")
    script = str(foreign_clients.DIRECTORY / "validate_asyncapi.js")
    done = subprocess.run(["node", script], input=json.dumps(document), stdout=subprocess.PIPE, text=True, timeout=60)
    found = done.stdout.splitlines()
    assert done.returncode == bool(found)
    return found


@pytest.fixture
def everything(isolated: Any) -> None:
    """A project that uses every kind of event, consumer and procedure, and odd names."""
    isolated(events, consumers, procedures)

    class Line(Event, type="log/line", exchange=Exchange("topic_logs"), key="{facility}.{severity}"):
        facility: str
        severity: str

    class Report(Event, type="report.made", exchange=Exchange("reports", "headers"), headers=("format",), version=3):
        format: str
        pages: tuple[int, str] = (1, "a")

    Report.upcast(from_version=2)(lambda payload: payload)

    class Card(BaseModel):
        by: Literal["card"]

    class Cash(BaseModel):
        by: Literal["cash"]

    class Paid(Event, type="paid"):
        payment: Card | Cash = Field(discriminator="by")

    class Shout(Event, type="Ruf ä", exchange=Exchange("logs", "fanout")):
        text: str
        louder: "Shout | None" = None

    @consumer("kernel", Line, keys=["kern.*"])
    def kernel(event: Line, delivery: Any) -> None: ...

    @consumer("pdf", Report, headers={"x-match": "any", "format": "pdf"}, queue_type="classic", max_priority=5)
    def pdf(event: Report, delivery: Any) -> None: ...

    @consumer("ears", Shout, broadcast=True)
    def ears(event: Shout, delivery: Any) -> None: ...

    @procedure("add", queue="add queue", timeout=timedelta(seconds=1))
    def add(one: int, two: Decimal = Decimal(2)) -> Decimal: ...

    @procedure("odd")
    def odd(*numbers: int, **more: str): ...

    @procedure("what")
    def what() -> Callable[[], None]: ...


def test_the_shops_document_is_one_by_the_official_schema() -> None:
    assert problems_of(document()) == []


def test_so_is_that_of_a_project_that_uses_everything(everything: None, settings: Any) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "QUEUE_TYPE": "classic"}
    assert problems_of(document()) == []


def test_a_broken_document_does_not_pass() -> None:
    broken = document()
    channels, operations, components = broken["channels"], broken["operations"], broken["components"]
    placed = channels["event.order.placed"]
    del (
        broken["info"]["version"],
        components["messages"]["event.order.cancelled"],
        components["schemas"]["OrderShipped"],
    )
    operations["receive.red_packet"]["action"] = "hear"
    operations["receive.sms"]["channel"] = {"$ref": "#/channels/event.order.placed"}
    placed["bindings"]["amqp"]["exchange"]["type"] = "round"
    components["messages"]["event.order.placed"]["payload"]["type"] = "thing"
    components["schemas"]["OrderPlaced"]["properties"]["total"]["type"] = "thing"

    found = "\n".join(problems_of(broken))
    for problem in (
        "/info must have required property 'version'",
        "#/components/messages/event.order.cancelled, which is not there",
        "#/components/schemas/OrderShipped, which is not there",
        "/operations/receive.red_packet/action must be",
        "/operations/receive.sms has #/channels/queue.orders.sms/messages/event.order.placed, no message of its",
        "/channels/event.order.placed/bindings/amqp",
        "/components/messages/event.order.placed/payload/type must be",
        "/components/schemas/OrderPlaced/properties/total/type must be",
    ):
        assert problem in found


def test_it_says_who_sends_what_where_and_who_receives_it() -> None:
    found = document()
    placed = found["components"]["messages"]["event.order.placed"]
    assert placed["name"] == "order.placed"
    assert placed["payload"] == {"$ref": "#/components/schemas/OrderPlaced"}
    assert found["components"]["schemas"]["OrderPlaced"]["properties"]["total"]["type"] == "string"
    assert placed["headers"]["properties"]["x-event-version"]["enum"] == [1]
    assert {"messageId", "appId"} <= set(placed["headers"]["properties"])
    channel = found["channels"]["event.order.placed"]
    assert (channel["address"], channel["bindings"]["amqp"]["exchange"]["name"]) == ("order.placed", "orders.events")
    assert found["operations"]["send.order.placed"]["bindings"]["amqp"]["deliveryMode"] == 2
    sms = found["operations"]["receive.sms"]
    assert sms["channel"] == {"$ref": "#/channels/queue.orders.sms"}
    assert len(sms["messages"]) == 3
    queue = found["channels"]["queue.orders.sms"]
    assert {"exchange": "orders.events", "key": "order.shipped"} in queue["x-bindings"]
    assert queue["x-arguments"]["x-delivery-limit"] == 1000


def test_a_procedure_is_a_request_with_its_replies() -> None:
    found = document()
    quote = found["operations"]["answer.shipping.quote"]
    assert found["channels"]["queue.rpc.shipping.quote"]["address"] == "rpc.shipping.quote"
    assert quote["reply"]["channel"] == {"$ref": "#/channels/replies.shipping.quote"}
    messages = found["components"]["messages"]
    request = messages["request.shipping.quote"]["payload"]
    assert request["required"] == ["weight_grams", "destination"]
    assert request["properties"]["weight_grams"]["type"] == "integer"
    assert messages["reply.shipping.quote"]["payload"] == {"type": "object", "additionalProperties": {"type": "string"}}
    assert messages["error.shipping.quote"]["payload"]["required"] == ["error"]


def test_exchanges_keys_headers_versions_and_broadcasts_are_in_it(everything: None) -> None:
    found = document()
    line = found["channels"][asyncapi._id("event.log/line")]
    assert line["address"] == "{facility}.{severity}"
    assert line["parameters"]["severity"] == {"location": "$message.payload#/severity"}
    report = found["components"]["messages"]["event.report.made"]
    assert report["headers"]["properties"]["x-event-version"]["enum"] == [2, 3]
    assert "format" in report["headers"]["properties"]
    pdf = found["channels"]["queue.tests.pdf"]
    assert pdf["x-bindings"] == [
        {"exchange": "reports", "key": "", "arguments": {"x-match": "any", "format": "pdf"}}
    ]  # fmt: skip
    assert pdf["x-arguments"]["x-max-priority"] == 5
    ears = found["channels"]["queue.ears"]
    assert ears["address"] is None
    assert ears["bindings"]["amqp"]["queue"]["exclusive"] is True
    add = found["components"]["messages"]["request.add"]["payload"]
    assert add["anyOf"][1]["type"] == "integer", "one plain value is the first argument"


def test_the_command_prints_it_and_always_the_same() -> None:
    printed = []
    for _ in range(2):
        output = StringIO()
        call_command("mq", "asyncapi", "--title", "Shop", "--api-version", "2.1.0", stdout=output)
        printed.append(output.getvalue())
    assert printed[0] == printed[1]
    assert json.loads(printed[0]) == document(title="Shop", version="2.1.0")

"""Debian's amqp-tools, the smallest of clients: it can set no type, no message id and no application."""

import json
from collections.abc import Callable
from io import StringIO
from urllib.parse import quote, urlsplit

from django.core.management import call_command

from messaging.models import InboxMessage
from orders.models import Order
from script.services.rabbitmq import RabbitMQNode
from tests.foreign.conftest import ANSWERED, handle_all, inbox, shipped, texts
from tests.support.processes import RunningProcess
from tests.support.rpc import RunningServer
from tests.support.running import running_relay
from tests.support.waiting import eventually

AmqpTool = Callable[..., RunningProcess]


def publish(amqp_tool: AmqpTool, exchange: str, key: str, body: str, *options: str) -> None:
    sender = amqp_tool("publish", "--exchange", exchange, "--routing-key", key, "--body", body, *options)
    assert sender.wait() == 0, sender.output


def declare_queue(amqp_tool: AmqpTool, name: str) -> None:
    assert amqp_tool("declare-queue", "--queue", name).wait() == 0


def test_its_events_are_named_by_their_key_and_shown_as_at_least_once(amqp_tool: AmqpTool, orders: list[Order]) -> None:
    headers = ["--header", "x-event-version: 1", "--header", f"x-subject: {orders[0].number}"]
    publish(amqp_tool, "orders.events", "order.shipped", shipped(orders[0]), *headers, "--content-encoding", "utf-8")
    publish(amqp_tool, "orders.events", "order.shipped", shipped(orders[1]), "--content-type", "text/plain")
    publish(amqp_tool, "orders.events", "order.shipped", "Hello World!", "--persistent")

    handle_all()

    assert sorted(inbox().values()) == ["dead", "handled", "handled"]
    assert texts() == sorted(("shipped", order.number) for order in orders)
    row = InboxMessage.objects.get(subject=orders[0].number)
    assert (row.state, row.type, row.identified) == ("handled", "order.shipped", False)
    out = StringIO()
    call_command("messages", "show", orders[0].number, stdout=out)
    assert "without a message_id: at-least-once" in " ".join(out.getvalue().split())


def test_the_shops_events_come_to_a_queue_of_its_own(
    amqp_tool: AmqpTool, broker: RabbitMQNode, vhost: str, orders: list[Order]
) -> None:
    subscriber = amqp_tool(
        "consume", "--exchange", "orders.events", "--routing-key", "order.#", "--count", "2",
        "--", "sh", "-c", 'cat; echo',
    )  # fmt: skip
    queue = subscriber.wait_for_line("Server provided queue name: (amq.gen-.+)")[1]
    bindings = f"/bindings{urlsplit(vhost).path}/e/orders.events/q/{quote(queue)}"
    eventually(lambda: broker.api("GET", bindings))

    with running_relay():
        assert subscriber.wait() == 0
    numbers = [json.loads(line)["order_number"] for line in subscriber.lines if line.startswith("{")]
    assert numbers == [order.number for order in orders]


def test_it_calls_procedures_without_a_correlation_id(amqp_tool: AmqpTool, server: RunningServer) -> None:
    declare_queue(amqp_tool, "answers")

    def quote(body: str) -> str:
        return call(amqp_tool, "rpc.shipping.quote", body)

    assert quote('{"weight_grams": 500, "destination": "CN"}') == ANSWERED
    assert json.loads(quote("garbage"))["error"]["type"] == "BadRequest"
    assert json.loads(quote('{"weight_grams": 1}'))["error"]["type"] == "BadArguments"
    assert call(amqp_tool, "rpc_queue", "30") == "832040"
    assert call(amqp_tool, "compute_queue", "41") == "42"


def call(amqp_tool: AmqpTool, queue: str, body: str) -> str:
    publish(amqp_tool, "", queue, body, "--reply-to", "answers")
    receiver = amqp_tool("consume", "--queue", "answers", "--count", "1", "cat")
    assert receiver.wait() == 0
    return receiver.output

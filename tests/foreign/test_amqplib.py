"""Node's amqplib: events to and from the shop, calls, and a queue that workers share."""

import json
from collections.abc import Callable
from typing import Any

from messaging.models import InboxMessage, OutboxMessage
from orders.models import Order
from tests.foreign.conftest import ANSWERED, handle_all, inbox, shipped, texts
from tests.support.consuming import attempts
from tests.support.processes import RunningProcess
from tests.support.rpc import RunningServer
from tests.support.running import running_relay

Node = Callable[..., RunningProcess]


def publish(node: Node, order: Order, copies: int = 1, **properties: Any) -> None:
    sender = node("publish.js", "orders.events", "order.shipped", shipped(order), json.dumps(properties), str(copies))
    assert sender.wait() == 0
    assert f" [x] Sent {copies} by order.shipped, 0 returned" in sender.lines


def test_its_events_are_handled_once_and_named_by_sender_and_id(node: Node, orders: list[Order]) -> None:
    whole = {"messageId": "1", "appId": "depot", "type": "order.shipped", "contentType": "application/json"}
    publish(node, orders[0], copies=2, **whole, headers={"x-event-version": 1, "x-subject": orders[0].number})
    publish(node, orders[1], messageId="1", appId="carrier")  # two programs that both count from one
    node("publish.js", "orders.events", "order.shipped", "Hello World!", '{"messageId": "2", "appId": "depot"}').wait()

    handle_all()

    assert inbox() == {"depot/1": "handled", "carrier/1": "handled", "depot/2": "dead"}
    assert len(attempts()) == 3
    assert InboxMessage.objects.get(message_id="depot/1").subject == orders[0].number
    assert texts() == sorted(("shipped", order.number) for order in orders)
    dead = InboxMessage.objects.get(state="dead")
    assert (dead.app_id, dead.type) == ("depot", "order.shipped")
    assert "not JSON" in dead.reason


def test_the_shops_events_come_to_a_queue_of_its_own(node: Node, orders: list[Order]) -> None:
    receiver = node("receive.js", "orders.events", "2", "order.*", "#.placed")
    receiver.wait_for_line("Waiting")

    with running_relay():
        assert receiver.wait() == 0

    received = [json.loads(line) for line in receiver.lines if line.startswith("{")]
    assert [each["body"]["order_number"] for each in received] == [order.number for order in orders]
    assert received[0]["body"]["lines"] == [{"sku": "TEA", "quantity": 1, "unit_price": "38.00"}]
    assert {each["key"] for each in received} == {"order.placed"}
    properties = received[0]["properties"]
    assert properties["type"] == "order.placed"
    assert properties["appId"] == "warren"
    assert properties["contentType"] == "application/json"
    assert properties["deliveryMode"] == 2
    assert len(properties["messageId"]) == 36
    written = OutboxMessage.objects.get(message_id=properties["messageId"]).created_at
    assert properties["timestamp"] == int(written.timestamp())
    headers = properties["headers"]
    assert (headers["x-event-version"], headers["x-attempt"], headers["x-subject"]) == (1, 1, orders[0].number)


def test_it_calls_procedures_with_many_requests_on_one_reply_queue(node: Node, server: RunningServer) -> None:
    good = '{"weight_grams": 500, "destination": "CN"}'
    client = node("rpc_client.js", "rpc.shipping.quote", good, '{"weight_grams": 1500, "destination": "CN"}', "30",
                  "garbage", '{"weight_grams": 1, "destination": "Nowhere"}')  # fmt: skip
    plain = node("rpc_client.js", "rpc.shipping.quote", good, option="--plain")  # without a correlation id
    fib = node("rpc_client.js", "rpc_queue", "30", "10", "20", "-1")
    increase = node("rpc_client.js", "compute_queue", "41", option="--plain")

    assert [each.wait() for each in (client, plain, fib, increase)] == [0, 0, 0, 0]
    answers = dict(line.split(" = ") for line in client.lines)
    assert answers.pop(good) == ANSWERED
    assert answers.pop('{"weight_grams": 1500, "destination": "CN"}') == '{"amount":"10.00","currency":"CNY"}'
    errors = {body: json.loads(answer)["error"]["type"] for body, answer in answers.items()}
    assert errors == {
        "30": "BadArguments",
        "garbage": "BadRequest",
        '{"weight_grams": 1, "destination": "Nowhere"}': "ValueError",
    }
    assert plain.lines == [f"{good} = {ANSWERED}"]
    assert sorted(fib.lines)[1:] == ["10 = 55", "20 = 6765", "30 = 832040"]
    assert "BadArguments" in sorted(fib.lines)[0]
    assert increase.lines == ["41 = 42"]


def test_its_request_without_a_server_is_returned_at_once(node: Node) -> None:
    client = node("rpc_client.js", "rpc.shipping.quote", "30")

    assert client.wait() == 0
    assert client.lines == ["30 = nobody serves rpc.shipping.quote"]

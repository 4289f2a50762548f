"""From the web page to the text message, through a real RabbitMQ and a real database; through real processes where a
command or several processes are the subject."""

import json
import re
from collections import Counter
from typing import Any

import pika
import pytest
from django.core.management import CommandError, call_command

from messaging import consumers
from messaging.models import DeliveryAttempt, InboxMessage, OutboxMessage
from messaging.worker import dead_letters
from orders.models import Order, Product, RedPacket, TextMessage
from script.services.ports import free_port
from script.shopper import Shopper
from tests.faults.shop import declare_queues, place
from tests.support.amqp import deliver, plain_channel
from tests.support.processes import ProcessStarter
from tests.support.running import RunningWorker, running_worker
from tests.support.waiting import eventually


def texts(number: str) -> int:
    return TextMessage.objects.filter(order__number=number).count()


def red_packets(number: str) -> int:
    return RedPacket.objects.filter(order__number=number).count()


@pytest.mark.both_databases
def test_an_order_of_the_web_page_has_its_effects_once_and_its_cancellation_takes_the_red_packet_back(
    vhost: str, run_process: ProcessStarter, product: Product
) -> None:
    web = run_process.web(LOG_TO_BROKER="1")
    # Each success has a line of its own at DEBUG alone.
    consumer = run_process("run_consumer", "sms", "red_packet", LOG_TO_BROKER="1", LOG_LEVEL="DEBUG")
    consumer.wait_for_line("amqp.connected.*role=logs")
    terminal = run_process("mq", "listen", "warren.logs", "#", "--json")
    terminal.wait_for_line("Listening")
    shopper = Shopper(web.url)

    number = shopper.buy(product.slug, quantity=2)

    eventually(lambda: texts(number) == 1 and red_packets(number) == 1)
    product.refresh_from_db()
    assert product.stock == 998
    assert Order.objects.get(number=number).documents.count() == 2
    eventually(lambda: {step["state"] for step in shopper.timeline(number)["events"]} == {"done"})

    shopper.post(f"/orders/{number}/cancel/", shopper.get(f"/orders/{number}/cancel/"))

    eventually(lambda: texts(number) == 2)
    product.refresh_from_db()
    assert product.stock == 1000
    assert RedPacket.objects.get().state == "void"
    eventually(lambda: not OutboxMessage.objects.exclude(state=OutboxMessage.State.PUBLISHED).exists())
    done = InboxMessage.objects.filter(state=InboxMessage.State.HANDLED)
    eventually(lambda: Counter(done.values_list("consumer", flat=True)) == {"sms": 2, "red_packet": 2})

    # One terminal follows every process, and one request id leads from the visitor's click to the handler.
    eventually(lambda: "message.handled" in terminal.output, report=lambda: terminal.output)
    lines = [json.loads(json.loads(line)["body"]) for line in terminal.lines if line.startswith("{")]
    placed = next(line for line in lines if line["text"] == "order_placed")
    handled = [line for line in lines if line["text"] == "message.handled"]
    assert {line["process"].rpartition(":")[2] for line in handled} == {str(consumer.pid)}
    assert placed["process"] != handled[0]["process"]
    assert placed["request_id"] in {line["request_id"] for line in handled}


def test_runserver_and_one_consumer_alone_are_a_complete_system(
    vhost: str, run_process: ProcessStarter, product: Product
) -> None:
    port = free_port()
    run_process("runserver", str(port), DEBUG="1")
    run_process("run_consumer", "sms")
    shopper = Shopper(f"http://127.0.0.1:{port}")
    eventually(lambda: _answers(shopper), within=30)

    number = shopper.buy(product.slug)

    eventually(lambda: texts(number) == 1)


def _answers(shopper: Shopper) -> bool:
    try:
        return shopper.get("/").status == 200
    except OSError:
        return False


def test_many_copies_of_one_message_at_two_consumers_at_once_have_one_effect(
    vhost: str, run_process: ProcessStarter, product: Product
) -> None:
    number = place(product).number
    declare_queues()
    deliver(vhost, "orders.red_packet", OutboxMessage.objects.get(), copies=100)

    racers = [
        run_process("run_consumer", "red_packet", "--concurrency", "4", "--burst", RELAY_THREAD="0") for _ in range(2)
    ]

    assert [racer.wait(60) for racer in racers] == [0, 0]
    assert red_packets(number) == 1
    counts = [re.search(r"Stopped. (\d+) handled, (\d+) duplicate", racer.output) for racer in racers]
    handled, duplicates = (sum(int(found[group]) for found in counts if found) for group in (1, 2))
    assert (handled, duplicates) == (1, 99)
    assert InboxMessage.objects.get().attempt == 1


GOOD = {"type": "order.placed", "content_type": "application/json"}
#: Bodies and properties that make no message, and the reason that is kept.
RUBBISH: list[tuple[bytes, dict[str, Any], str]] = [
    (b"", {}, "no type"),
    (b"{", GOOD, "not JSON"),
    (b"\x80\x04\x95rubbish\x00", GOOD, "not JSON"),
    (b"[1]", GOOD, "not an object"),
    (b"{}", GOOD, "does not fit its schema"),
    (b"[" * 100_000, GOOD, "not JSON"),
    (b"{}", {**GOOD, "type": "order.eaten"}, "no event of type"),
    (b"{}", {**GOOD, "headers": {"x-event-version": 99}}, "newer"),
    (b"{}", {**GOOD, "headers": {"x-event-version": "two"}}, "x-event-version"),
    (b"{}", {**GOOD, "headers": {"x-attempt": -1}}, "x-attempt"),
    (b"{}", {**GOOD, "content_type": "application/x-python-serialize"}, "content type"),
    (b"x" * 2_000_000, GOOD, "over the limit"),
]


def test_what_cannot_be_understood_is_dead_with_a_reason_and_the_next_message_is_handled(
    vhost: str, product: Product
) -> None:
    number = place(product).number
    declare_queues()
    with plain_channel(vhost) as channel:
        for body, properties, _ in RUBBISH:
            channel.basic_publish("", "orders.sms", body, pika.BasicProperties(**properties), mandatory=True)
    deliver(vhost, "orders.sms", OutboxMessage.objects.get())

    with running_worker(*consumers.named(["sms"])):
        eventually(lambda: texts(number) == 1)

    dead = list(InboxMessage.objects.filter(state=InboxMessage.State.DEAD).order_by("pk"))
    for letter, (_, _, reason) in zip(dead, RUBBISH, strict=True):
        assert reason in letter.reason
        assert not letter.identified
    assert not DeliveryAttempt.objects.filter(outcome=DeliveryAttempt.Outcome.FAILED).exists()


def test_a_burst_without_a_broker_says_so_and_leaves(transactional_db: None) -> None:
    with pytest.raises(CommandError, match="connection refused") as ended:
        call_command("run_consumer", "sms", burst=True)
    assert ended.value.returncode == 3


def test_a_message_that_the_broker_gives_up_is_shown_as_dead_at_its_consumer(
    vhost: str, product: Product, settings: Any
) -> None:
    place(product)
    row = OutboxMessage.objects.get()
    settings.MESSAGING = {**settings.MESSAGING, "DELIVERY_LIMIT": 3}
    everything = [*consumers.registered(), dead_letters.consumer()]
    RunningWorker(everything, burst=True).join()
    deliver(vhost, "orders.sms", row)
    with plain_channel(vhost) as channel:
        # As a consumer that dies again and again would, up to the queue's delivery limit.
        while (found := channel.basic_get("orders.sms")[0]) is not None:
            channel.basic_reject(found.delivery_tag, requeue=True)

    with running_worker(*everything):
        letter = eventually(lambda: InboxMessage.objects.first(), within=20)

    assert (letter.consumer, letter.message_id, letter.state) == ("sms", row.message_id, InboxMessage.State.DEAD)
    assert "orders.sms: delivery_limit" in letter.reason
    assert bytes(letter.body) == bytes(row.body)

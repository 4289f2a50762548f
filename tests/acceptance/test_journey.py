"""From the web page to the text message, through real processes, a real RabbitMQ and a real database."""

import re
import signal
from collections import Counter
from contextlib import suppress
from threading import Thread
from typing import Any

import pika
import pytest
from django.db import transaction

from messaging.models import DeliveryAttempt, InboxMessage, OutboxMessage
from orders.models import Order, Product, RedPacket, TextMessage
from script.services.ports import free_port
from script.services.rabbitmq import RabbitMQNode
from script.shopper import Page, Shopper
from tests.support import failpoints
from tests.support.amqp import deliver, plain_channel, unacknowledged
from tests.support.processes import ProcessStarter, RunningProcess
from tests.support.waiting import eventually

CONSUMING = r"amqp.connected.*role=consumer"
SHORT_LEASE = {"DJANGO_SETTINGS_MODULE": "tests.acceptance.settings"}


def texts(number: str) -> int:
    return TextMessage.objects.filter(order__number=number).count()


def red_packets(number: str) -> int:
    return RedPacket.objects.filter(order__number=number).count()


def assert_each_once(numbers: list[str]) -> None:
    """Every order has one text and one red packet, and nothing waits or died on the way."""
    assert Counter(TextMessage.objects.values_list("order__number", flat=True)) == Counter(numbers)
    assert Counter(RedPacket.objects.values_list("order__number", flat=True)) == Counter(numbers)
    assert not InboxMessage.objects.exclude(state=InboxMessage.State.HANDLED).exists()
    assert not OutboxMessage.objects.exclude(state=OutboxMessage.State.PUBLISHED).exists()


def everything_arrived(numbers: list[str]) -> bool:
    # Marks follow their publish by up to 50 ms: the last thing to become true.
    arrived = TextMessage.objects.count() >= len(numbers) and RedPacket.objects.count() >= len(numbers)
    return arrived and not OutboxMessage.objects.exclude(state=OutboxMessage.State.PUBLISHED).exists()


def consumers(run_process: ProcessStarter, **environment: str) -> RunningProcess:
    return run_process("run_consumer", "sms", "red_packet", **environment)


@pytest.mark.both_databases
def test_an_order_placed_in_the_web_page_brings_its_text_and_its_red_packet(
    vhost: str, run_process: ProcessStarter, product: Product
) -> None:
    web = run_process.web()
    consumers(run_process).wait_for_line(CONSUMING)
    shopper = Shopper(web.url)

    number = shopper.buy(product.slug, quantity=2)

    eventually(lambda: texts(number) == 1 and red_packets(number) == 1)
    product.refresh_from_db()
    assert product.stock == 998
    assert Order.objects.get(number=number).documents.count() == 2
    eventually(lambda: {step["state"] for step in shopper.timeline(number)["events"]} == {"done"})
    eventually(lambda: everything_arrived([number]))
    assert_each_once([number])


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


def test_a_cancelled_order_brings_its_own_text_and_loses_its_red_packet(
    vhost: str, run_process: ProcessStarter, product: Product
) -> None:
    web = run_process.web()
    consumers(run_process).wait_for_line(CONSUMING)
    shopper = Shopper(web.url)
    number = shopper.buy(product.slug)
    eventually(lambda: texts(number) == 1 and red_packets(number) == 1)

    page = shopper.get(f"/orders/{number}/cancel/")
    shopper.post(f"/orders/{number}/cancel/", page)

    eventually(lambda: texts(number) == 2)
    product.refresh_from_db()
    assert product.stock == 1000
    assert RedPacket.objects.get().state == "void"


def test_with_the_broker_killed_orders_are_placed_as_before_and_everything_arrives_once_it_is_back(
    breakable_broker: RabbitMQNode, run_process: ProcessStarter, product: Product
) -> None:
    web = run_process.web()
    consumer = consumers(run_process)
    consumer.wait_for_line(CONSUMING)
    shopper = Shopper(web.url, timeout=5)
    numbers = [shopper.buy(product.slug)]
    eventually(lambda: everything_arrived(numbers))

    # RabbitMQ writes a new quorum queue's name to disk a moment after it says that the queue is declared. Killed in
    # between it comes back with a queue that never elects a leader (rabbitmq-server issue 15725).
    breakable_broker.ctl("eval", "[dets:sync(Table) || Table <- dets:all()].")
    breakable_broker.kill()
    numbers += [shopper.buy(product.slug) for _ in range(5)]
    assert Order.objects.count() == 6
    assert TextMessage.objects.count() == 1
    breakable_broker.start()

    eventually(lambda: everything_arrived(numbers), within=60)
    assert_each_once(numbers)


def test_with_the_broker_frozen_orders_are_placed_as_before_and_everything_arrives_once_it_thaws(
    breakable_broker: RabbitMQNode, run_process: ProcessStarter, product: Product
) -> None:
    web = run_process.web(**SHORT_LEASE)
    consumers(run_process, **SHORT_LEASE).wait_for_line(CONSUMING)
    shopper = Shopper(web.url, timeout=5)
    numbers = [shopper.buy(product.slug)]
    eventually(lambda: everything_arrived(numbers))

    breakable_broker.pause()
    numbers += [shopper.buy(product.slug) for _ in range(3)]
    assert Order.objects.count() == 4
    breakable_broker.resume()

    eventually(lambda: everything_arrived(numbers), within=60)
    assert_each_once(numbers)


def test_a_web_process_killed_right_after_its_commits_loses_none_of_its_events(
    vhost: str, run_process: ProcessStarter, product: Product
) -> None:
    # It cannot reach the broker: all it committed is leased to it, unpublished, when it dies.
    web = run_process.web(AMQP_URL="amqp://127.0.0.1:1/", **SHORT_LEASE)
    shopper = Shopper(web.url)
    numbers = [shopper.buy(product.slug) for _ in range(3)]
    web.kill()
    assert OutboxMessage.objects.filter(state=OutboxMessage.State.PENDING).exclude(lease_token=None).count() == 3

    consumers(run_process, **SHORT_LEASE)

    eventually(lambda: everything_arrived(numbers), within=30)
    assert_each_once(numbers)


@pytest.mark.both_databases
def test_web_processes_killed_at_the_very_moment_of_a_commit_lose_and_double_nothing(
    vhost: str, run_process: ProcessStarter, product: Product
) -> None:
    consumers(run_process, **SHORT_LEASE).wait_for_line(CONSUMING)
    for round_number in range(1, 4):
        web = run_process.web(**SHORT_LEASE)
        shopper = Shopper(web.url)
        checkout = shopper.fill_cart(product.slug)
        _kill_as_soon_as_committed(web, shopper, checkout, orders=round_number)

    numbers = list(Order.objects.values_list("number", flat=True))
    assert len(numbers) == 3
    eventually(lambda: everything_arrived(numbers), within=30)
    assert_each_once(numbers)


def _kill_as_soon_as_committed(web: RunningProcess, shopper: Shopper, checkout: Page, *, orders: int) -> None:
    def buy() -> None:
        with suppress(OSError, AssertionError):  # its server dies under it, as meant
            shopper.place_order(checkout)

    buying = Thread(target=buy)
    buying.start()
    eventually(lambda: Order.objects.count() == orders, every=0.0005)
    web.kill()
    buying.join()


def test_a_consumer_told_to_stop_in_mid_message_finishes_it_and_leaves(
    broker: RabbitMQNode, vhost: str, run_process: ProcessStarter, product: Product
) -> None:
    number = Shopper(run_process.web(RELAY_THREAD="0").url).buy(product.slug)
    consumer = run_process("run_consumer", "red_packet", RELAY_THREAD="0")
    consumer.wait_for_line(CONSUMING)
    row = OutboxMessage.objects.get(subject=number)
    with transaction.atomic():
        # On PostgreSQL the handler waits for this row, on SQLite for the end of this transaction.
        Order.objects.select_for_update().get(number=number)
        eventually(lambda: _delivered(vhost, row))
        eventually(lambda: unacknowledged(broker, vhost, "orders.red_packet") == 1)
        consumer.send(signal.SIGTERM)
        consumer.wait_for_line("Finishing what was begun")
        assert consumer.is_alive

    assert consumer.wait() == 0
    assert "1 handled" in consumer.output
    assert red_packets(number) == 1
    assert DeliveryAttempt.objects.filter(inbox_message__consumer="red_packet").count() == 1


def _delivered(url: str, row: OutboxMessage) -> bool:
    try:
        deliver(url, "orders.red_packet", row)
    except pika.exceptions.UnroutableError:
        return False  # its consumer has not declared the queue yet
    except pika.exceptions.NackError:
        return False  # or has this moment, and the queue has no leader
    return True


def test_many_copies_of_one_message_at_two_consumers_at_once_have_one_effect(
    vhost: str, run_process: ProcessStarter, product: Product
) -> None:
    number = Shopper(run_process.web(RELAY_THREAD="0").url).buy(product.slug)
    row = OutboxMessage.objects.get(subject=number)
    # Declares the queue, finds it empty, and leaves.
    assert run_process("run_consumer", "red_packet", "--burst", RELAY_THREAD="0").wait() == 0
    deliver(vhost, "orders.red_packet", row, copies=100)

    racers = [
        run_process("run_consumer", "red_packet", "--concurrency", "4", "--burst", RELAY_THREAD="0") for _ in range(2)
    ]

    assert [racer.wait(60) for racer in racers] == [0, 0]
    assert red_packets(number) == 1
    counts = [re.search(r"Stopped. (\d+) handled, (\d+) duplicate", racer.output) for racer in racers]
    handled, duplicates = (sum(int(found[group]) for found in counts if found) for group in (1, 2))
    assert (handled, duplicates) == (1, 99)
    assert InboxMessage.objects.get().attempt == 1


def test_what_cannot_be_understood_is_dead_with_a_reason_and_the_next_message_is_handled(
    vhost: str, run_process: ProcessStarter, product: Product
) -> None:
    number = Shopper(run_process.web(RELAY_THREAD="0").url).buy(product.slug)
    row = OutboxMessage.objects.get(subject=number)
    consumer = run_process("run_consumer", "sms", RELAY_THREAD="0")
    good = {"type": "order.placed", "content_type": "application/json"}
    rubbish: list[tuple[bytes, dict[str, Any], str]] = [
        (b"{", good, "not JSON"),
        (b"\x80\x04\x95rubbish\x00", good, "not JSON"),
        (b"[1]", good, "not an object"),
        (b"{}", good, "does not fit its schema"),
        (b"[" * 100_000, good, "not JSON"),
        (b"{}", {}, "no type"),
        (b"{}", {**good, "type": "order.eaten"}, "no event of type"),
        (b"{}", {**good, "headers": {"x-event-version": 99}}, "newer"),
        (b"{}", {**good, "headers": {"x-event-version": "two"}}, "x-event-version"),
        (b"{}", {**good, "headers": {"x-attempt": -1}}, "x-attempt"),
        (b"{}", {**good, "content_type": "application/x-python-serialize"}, "content type"),
        (b"x" * 2_000_000, good, "over the limit"),
    ]
    eventually(lambda: _published(vhost, b"", {}), within=20)
    for body, properties, _ in rubbish:
        assert _published(vhost, body, properties)
    deliver(vhost, "orders.sms", row)

    eventually(lambda: texts(number) == 1, within=20)
    dead = list(InboxMessage.objects.filter(state=InboxMessage.State.DEAD).order_by("pk"))
    assert len(dead) == len(rubbish) + 1
    for letter, (_, _, reason) in zip(dead[1:], rubbish, strict=True):
        assert reason in letter.reason
        assert not letter.identified
    assert consumer.is_alive
    assert DeliveryAttempt.objects.filter(outcome=DeliveryAttempt.Outcome.FAILED).count() == 0


def test_a_stopped_consumer_with_several_threads_leaves_without_waiting(
    vhost: str, run_process: ProcessStarter
) -> None:
    consumer = run_process("run_consumer", "sms", "--concurrency", "4")
    consumer.wait_for_line(CONSUMING)

    # Below STOP_TIMEOUT by far: nothing is being handled.
    assert consumer.stop(timeout=8) == 0
    assert "Stopped. 0 handled" in consumer.output


def test_a_burst_without_a_broker_says_so_and_leaves(run_process: ProcessStarter) -> None:
    burst = run_process("run_consumer", "sms", "--burst", AMQP_URL="amqp://127.0.0.1:1/")

    assert burst.wait() == 3
    assert "connection refused" in burst.output
    assert "Traceback" not in burst.output


def test_what_the_broker_gives_up_is_shown_as_dead_at_the_consumer_whose_queue_it_was_in(
    vhost: str, run_process: ProcessStarter, product: Product
) -> None:
    Shopper(run_process.web(RELAY_THREAD="0").url).buy(product.slug)
    row = OutboxMessage.objects.get()
    settings = failpoints.at(DELIVERY_LIMIT=20)
    assert run_process("run_consumer", "--all", "--burst", RELAY_THREAD="0", **settings).wait() == 0
    deliver(vhost, "orders.sms", row)
    with plain_channel(vhost) as channel:
        # As a consumer that dies again and again would, up to the queue's delivery limit.
        while (found := channel.basic_get("orders.sms")[0]) is not None:
            channel.basic_reject(found.delivery_tag, requeue=True)

    everybody = run_process("run_consumer", "--all", RELAY_THREAD="0", **settings)

    letter = eventually(lambda: InboxMessage.objects.first(), within=20)
    assert (letter.consumer, letter.message_id, letter.state) == ("sms", row.message_id, InboxMessage.State.DEAD)
    assert "orders.sms: delivery_limit" in letter.reason
    assert bytes(letter.body) == bytes(row.body)
    assert "topology.differs" not in everybody.output


def _published(url: str, body: bytes, properties: dict[str, Any]) -> bool:
    try:
        with plain_channel(url) as channel:
            channel.basic_publish("", "orders.sms", body, pika.BasicProperties(**properties), mandatory=True)
    except pika.exceptions.UnroutableError:
        return False  # its consumer has not declared the queue yet
    except pika.exceptions.NackError:
        return False  # or has this moment, and the queue has no leader
    return True

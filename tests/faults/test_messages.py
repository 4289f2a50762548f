"""Messages that are odd, huge, hostile, late, out of order or foreign."""

import gzip
import json
import pickle
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pika
import pytest

from messaging.consumers import Consumer
from messaging.message import Delivery
from messaging.models import InboxMessage, OutboxMessage
from messaging.retry import RetryPolicy
from orders.models import Campaign, Order, Product, RedPacket, TextMessage
from orders.services import cancel_order
from tests.faults import notebook
from tests.faults.shop import environment, everything_arrived, place, shop_at_work, situation
from tests.support.amqp import deliver, plain_channel, queue_length, send
from tests.support.consuming import Noted, a_consumer, a_message, attempts, note, notes, registered
from tests.support.processes import ProcessStarter
from tests.support.running import IMPATIENT, RunningWorker, add, declare_queues, running_relay, running_worker
from tests.support.waiting import eventually

pytestmark = pytest.mark.django_db(transaction=True)

QUEUE = "tests.notes"


@pytest.fixture(autouse=True)
def impatience(vhost: str, settings: Any) -> None:
    settings.MESSAGING = {**settings.MESSAGING, **IMPATIENT}


@pytest.fixture
def reader() -> Iterator[Consumer]:
    """The only consumer of the project; its queue exists."""
    consumer = a_consumer()
    with registered(consumer):
        declare_queues(consumer)
        yield consumer


def publish(address: str, body: bytes, **properties: Any) -> None:
    """Send to the queue of notes as any client would."""
    with plain_channel(address) as channel:
        channel.basic_publish("", QUEUE, body, pika.BasicProperties(**properties), mandatory=True)


def outcomes() -> Counter[str]:
    return Counter(InboxMessage.objects.values_list("state", flat=True))


# --- Out of order ------------------------------------------------------------------------------------------


def test_a_cancellation_that_arrives_before_its_order_ends_as_one_in_order(vhost: str, product: Product) -> None:
    """F62."""
    with shop_at_work():
        in_order = place(product)
        eventually(everything_arrived, report=situation)
        cancel_order(in_order.number)
        eventually(lambda: outcomes() == {"handled": 4})
    reversed_ = place(product)
    cancel_order(reversed_.number)
    for row in OutboxMessage.objects.filter(subject=reversed_.number).order_by("-pk"):
        for queue in ("orders.sms", "orders.red_packet"):
            deliver(vhost, queue, row)
    OutboxMessage.objects.update(state="published")

    with shop_at_work():
        eventually(lambda: outcomes() == {"handled": 8})

    assert what_came_of(reversed_) == what_came_of(in_order) == ("cancelled", {"placed", "cancelled"}, 0)
    product.refresh_from_db()
    assert product.stock == 1_000_000
    assert Campaign.objects.get().spent == 0


def what_came_of(order: Order) -> tuple[str, set[str], int]:
    order.refresh_from_db()
    texts = set(TextMessage.objects.filter(order=order).values_list("kind", flat=True))
    return order.status, texts, RedPacket.objects.filter(order=order, voided_at=None).count()


# --- Huge, hostile, incomplete -----------------------------------------------------------------------------


def test_a_body_of_16_mib_is_dead_in_part_and_costs_no_more_memory_than_a_few_copies(
    vhost: str, reader: Consumer, run_process: ProcessStarter
) -> None:
    """F64. A body over the broker's own limit is F10."""
    publish(vhost, b'"' + b"x" * ((16 << 20) - 2) + b'"', type="test.noted", message_id="huge")
    send(vhost, QUEUE, a_message("good"))

    consumer = run_process("run_consumer", "notes", RELAY_THREAD="0", **environment(notebook.opened))

    eventually(lambda: outcomes() == {"dead": 1, "handled": 1}, 40)
    letter = InboxMessage.objects.get(state="dead")
    assert "over the limit" in letter.reason
    assert letter.body_truncated
    assert len(bytes(letter.body)) == 1 << 20
    peak = int(re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{consumer.pid}/status").read_text())[0])
    assert peak < 300 << 10
    assert consumer.stop() == 0


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.mark,)


def test_nothing_is_unpickled_or_unpacked(vhost: str, reader: Consumer, tmp_path: Path) -> None:
    """F65."""
    mark = tmp_path / "unpickled"
    bomb = pickle.dumps(Bomb(mark))
    json_body = Noted(text="x").encode()
    sent: list[tuple[bytes, dict[str, str], str]] = [
        (bomb, {"content_type": "application/x-python-serialize"}, "content type 'application/x-python-serialize'"),
        (bomb, {"content_type": "application/x-python-serialize", "content_encoding": "binary"}, "encoding 'binary'"),
        (bomb, {"content_type": "application/json"}, "not JSON"),
        (bomb, {}, "not JSON"),
        (gzip.compress(json_body), {"content_type": "application/json", "content_encoding": "gzip"}, "encoding 'gzip'"),
        (json_body, {"content_type": "application/xml"}, "content type 'application/xml'"),
        (b"text: x", {"content_type": "application/yaml"}, "content type 'application/yaml'"),
    ]
    for number, (body, properties, _) in enumerate(sent):
        publish(vhost, body, type="test.noted", message_id=f"m-{number}", **properties)

    with running_worker(reader):
        eventually(lambda: outcomes() == {"dead": len(sent)})

    for number, (_, _, reason) in enumerate(sent):
        letter = InboxMessage.objects.get(message_id=f"m-{number}")
        assert reason in letter.reason
        assert letter.attempt == 1, "it is not tried again"
    assert not mark.exists()
    pickle.loads(bomb)
    assert mark.exists(), "the bomb does not work"


COMPLETE: dict[str, Any] = {
    "type": "test.noted",
    "timestamp": 1_700_000_000,
    "content_type": "application/json",
    "headers": {"x-event-version": 1, "x-attempt": 1},
}
#: Which of these a message lacks, by its id.
MISSING = {"nothing": (), **{name: (name,) for name in COMPLETE}}


def test_what_a_foreign_publisher_leaves_out_or_adds_is_made_up_for_or_named(vhost: str, reader: Consumer) -> None:
    """F66. F67: fields that a newer publisher added are ignored, without a new version number too."""
    for text, missing in MISSING.items():
        properties = {name: value for name, value in COMPLETE.items() if name not in missing}
        publish(vhost, Noted(text=text).encode(), message_id=text, **properties)
    publish(vhost, Noted(text="no id").encode(), **COMPLETE)
    publish(vhost, Noted(text="none at all").encode())
    more = {"text": "more", "mood": "sunny", "deep": [1, {"er": None}]}
    publish(vhost, json.dumps(more).encode(), message_id="more", **COMPLETE)

    with running_worker(reader):
        eventually(lambda: outcomes() == {"handled": 6, "dead": 2})

    texts = [*(text for text in MISSING if text != "type"), "no id", "more"]
    assert {text: notes(text) for text in texts} == dict.fromkeys(texts, 1)
    assert InboxMessage.objects.filter(identified=True, message_id__in=[*MISSING, "more"]).count() == 6
    assert set(InboxMessage.objects.filter(identified=False).values_list("state", flat=True)) == {"handled", "dead"}
    assert set(InboxMessage.objects.values_list("attempt", "version")) == {(1, 1)}
    assert all("no type" in row.reason for row in InboxMessage.objects.filter(state="dead"))


# --- Retries -----------------------------------------------------------------------------------------------


def test_a_failing_message_is_tried_as_often_and_rests_as_long_as_its_policy_says(vhost: str) -> None:
    """F69."""
    failures = {"below the limit": 2, "beyond it": 3}

    def fail(event: Noted, delivery: Delivery) -> None:
        note(event.text)
        if delivery.attempt <= failures[event.text]:
            raise ValueError("not yet")

    first = timedelta(seconds=0.3)
    consumer = a_consumer(fail, retry=RetryPolicy(max_attempts=3, first_delay=first, jitter=0.2))
    with registered(consumer), running_relay(), running_worker(consumer):
        ids = {text: add(Noted(text=text))[0].message_id for text in failures}
        eventually(lambda: outcomes() == {"handled": 1, "dead": 1})

    assert (notes("below the limit"), notes("beyond it")) == (1, 0)
    for text, message_id in ids.items():
        tries = attempts(message_id=message_id)
        assert [each.outcome for each in tries] == ["failed"] * failures[text] + ["handled"] * (3 - failures[text])
        for number, expected in [(2, first), (3, 2 * first)]:
            row = OutboxMessage.objects.get(message_id=message_id, attempt=number)
            rest = row.publish_at - tries[number - 2].finished_at
            # The two times are those of two statements of one transaction.
            assert 0.8 * expected < rest < 1.2 * expected + timedelta(seconds=1)
            assert row.published_at is not None
            assert row.published_at >= row.publish_at


def test_a_retry_whose_queue_was_deleted_meanwhile_finds_it_made_again(vhost: str, reader: Consumer) -> None:
    """F70."""

    def fail_once(event: Noted, delivery: Delivery) -> None:
        note(event.text)
        if delivery.attempt == 1:
            raise ValueError("once")

    consumer = replace(reader, handler=fail_once)
    send(vhost, QUEUE, a_message("x"))
    assert RunningWorker([consumer], burst=True).join().counts == {"retrying": 1}
    with plain_channel(vhost) as channel:
        channel.queue_delete(QUEUE)

    with running_relay():
        eventually(lambda: OutboxMessage.objects.get().state == "published")
    assert queue_length(vhost, QUEUE) == 1
    with running_worker(consumer):
        eventually(lambda: outcomes() == {"handled": 1})

    assert notes("x") == 1

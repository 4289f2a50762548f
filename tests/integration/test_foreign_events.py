"""Events from clients that know nothing of Warren: told apart, named, and handled once like our own."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.test import Client

from messaging import consumers, effects
from messaging.broker.wire import Properties
from messaging.consumers import Consumer
from messaging.history import timeline
from messaging.message import Delivery
from messaging.models import Effect, InboxMessage, OutboxMessage
from messaging.retry import RetryPolicy
from messaging.worker import dead_letters
from tests.support.amqp import plain_channel
from tests.support.consuming import Noted, a_consumer, note, notes, outcomes_of_attempts, registered, take_note
from tests.support.running import IMPATIENT, declare_queues, running_relay, running_worker
from tests.support.waiting import eventually

pytestmark = pytest.mark.django_db(transaction=True)
EXCHANGE = "orders.events"


@pytest.fixture(autouse=True)
def impatience(vhost: str, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    settings.MESSAGING = {**settings.MESSAGING, **IMPATIENT}
    with registered():
        yield


def known(handler: Callable[..., None] = take_note, **changes: Any) -> Consumer:
    """A registered consumer; its queue exists and is bound."""
    consumer = a_consumer(handler, **changes)
    consumers.registry.put(consumer)
    declare_queues(consumer)
    return consumer


def publish(url: str, text: str, *, key: str = "test.noted", **properties: Any) -> None:
    """As a foreign client does: into the exchange, by a key."""
    with plain_channel(url) as channel:
        properties = Properties(**properties)  # pika itself sends neither floats nor times before 1970
        channel.basic_publish(EXCHANGE, key, Noted(text=text).encode(), properties, mandatory=True)


def inbox() -> dict[str, str]:
    return dict(InboxMessage.objects.values_list("message_id", "state"))


def test_messages_with_the_same_id_are_told_apart_by_their_application_and_so_are_their_effects(
    vhost: str, isolated: Any
) -> None:
    sent: list[str] = []
    isolated(effects, keep=True)
    effects.effect("ping", honours_keys=True)(lambda sending: sent.append(sending.key) or "ok")

    def handle(event: Noted, delivery: Delivery) -> None:
        note(event.text)
        delivery.effect("ping")

    # An ordering key orders messages of this project's outbox. A foreign message with one waits for none.
    headers = {"x-ordering-key": "k", "x-position": 5}
    with running_worker(known(handle)):
        for app_id, text in (("billing", "bill"), ("depot", "parcel"), ("", "unknown"), ("billing", "bill")):
            publish(vhost, text, message_id="1", headers=headers, **({"app_id": app_id} if app_id else {}))
        publish(vhost, "last", message_id="2")
        eventually(lambda: Effect.objects.filter(state="done").count() == 4)
    assert inbox() == dict.fromkeys(["billing/1", "depot/1", "1", "2"], "handled")
    assert {text: notes(text) for text in ("bill", "parcel", "unknown")} == {"bill": 1, "parcel": 1, "unknown": 1}
    assert sorted(sent) == ["1:notes:ping", "2:notes:ping", "billing/1:notes:ping", "depot/1:notes:ping"]


def test_a_retry_of_a_foreign_message_is_that_message_and_so_is_its_replay(vhost: str) -> None:
    moody = {"failing": True}

    def handle(event: Noted, delivery: Delivery) -> None:
        note(event.text)
        assert delivery.message_id == "billing/1"
        assert delivery.message.type == "test.noted"
        assert delivery.message.headers["weight"] == 1.5
        if moody["failing"]:
            raise ValueError("not yet")

    policy = RetryPolicy(max_attempts=2, first_delay=timedelta(milliseconds=1), max_delay=timedelta(milliseconds=2))
    with running_relay(), running_worker(known(handle, retry=policy)):
        publish(vhost, "x", message_id="1", app_id="billing", headers={"weight": 1.5})  # no type: the key names it
        eventually(lambda: inbox() == {"billing/1": "dead"})
        moody["failing"] = False
        call_command("messages", "replay", "billing/1")
        eventually(lambda: inbox() == {"billing/1": "handled"})
    assert outcomes_of_attempts() == [
        (1, "failed"), (2, "failed"), (3, "handled"),
    ]  # fmt: skip
    row = InboxMessage.objects.get()
    assert (row.app_id, row.type, row.identified) == ("billing", "test.noted", True)
    assert set(OutboxMessage.objects.values_list("message_id", "type")) == {("billing/1", "test.noted")}
    assert notes("x") == 1


def test_what_the_broker_gives_up_is_dead_under_the_same_identity_and_type(vhost: str) -> None:
    consumer = known()
    publish(vhost, "x", message_id="1", app_id="billing")
    with plain_channel(vhost) as channel:
        method, _, _ = eventually(lambda: (got := channel.basic_get(consumer.queue)) and got[0] and got)
        channel.basic_reject(method.delivery_tag, requeue=False)

    with running_worker(dead_letters.consumer()):
        eventually(lambda: inbox() == {"billing/1": "dead"})

    row = InboxMessage.objects.get()
    assert (row.consumer, row.type, row.app_id) == ("notes", "test.noted", "billing")


def test_a_message_without_an_id_gets_one_and_a_person_is_told_what_that_means(
    vhost: str, admin_client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    with running_worker(known()):
        for _ in range(2):
            publish(vhost, "x", app_id="billing")
        eventually(lambda: len(inbox()) == 2)
    assert notes("x") == 2
    row = InboxMessage.objects.order_by("pk")[0]
    assert not row.identified

    call_command("messages", "show", row.message_id)
    assert "published by billing, without a message_id: at-least-once" in capsys.readouterr().out
    page = admin_client.get(f"/admin/messaging/inboxmessage/{row.pk}/change/").content.decode()
    assert "received from elsewhere" in page
    assert "without a message_id: at-least-once" in page


#: Properties of simple clients' messages with a JSON body, and what becomes of these.
SAID: list[tuple[dict[str, str], str]] = [
    ({"content_type": "text/plain"}, "handled"),
    ({"content_type": "text/plain; charset=utf-8", "content_encoding": "utf-8"}, "handled"),
    ({"content_type": "application/octet-stream"}, "handled"),
    ({"content_type": "application/vnd.billing+json"}, "handled"),
    ({"content_type": "Application/JSON", "content_encoding": "UTF-8"}, "handled"),
    ({"content_type": "application/xml"}, "dead"),
    ({"content_encoding": "gzip"}, "dead"),
    ({"content_encoding": "base64"}, "dead"),
    ({"key": "test.erased"}, "dead"),
    ({"key": "test.unheard"}, "dead"),
    ({"type": "test.unheard"}, "dead"),
]


def test_what_simple_clients_say_of_a_json_body_is_understood(vhost: str) -> None:
    expected = {str(number): state for number, (_, state) in enumerate(SAID)}
    with running_worker(known()):
        with plain_channel(vhost) as channel:
            channel.queue_bind("tests.notes", EXCHANGE, "test.*")
        for number, (properties, _) in enumerate(SAID):
            publish(vhost, f"m{number}", message_id=str(number), **properties)
        eventually(lambda: inbox() == expected, report=inbox)
    for number, state in expected.items():
        assert notes(f"m{number}") == (state == "handled")
        assert timeline.for_message(number).entries[0].kind == "received"


def test_odd_headers_that_nearly_fill_a_frame_come_with_the_next_attempt(vhost: str, settings: Any) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": [f"{vhost}?frame_max=8192"]}
    seen: list[dict[Any, Any]] = []

    def second_time(event: Noted, delivery: Delivery) -> None:
        seen.append(dict(delivery.message.headers))
        if delivery.attempt == 1:
            raise ZeroDivisionError
        note(event.text)

    odd = {"born": datetime(1, 1, 1, tzinfo=UTC), b"\xff" * 200: [b"\x00\xff"], "trace": "s" * 128_000}
    with running_relay(), running_worker(known(second_time, retry=RetryPolicy(first_delay=timedelta(seconds=0.1)))):
        publish(vhost, "x", message_id="1", headers=odd)
        eventually(lambda: inbox() == {"1": "handled"})
    assert notes("x") == 1
    assert seen[0]["trace"] == odd["trace"]
    assert seen[1]["born"] == "0001-01-01 00:00:00+00:00"
    assert "trace" not in seen[1]
    assert seen[1]["headers-left-out"] == "1 of 3: they did not fit into AMQP's frame"

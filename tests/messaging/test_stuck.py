"""Stuck messages are found: they wait for something that does not come by itself. So are messages handled twice."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from messaging import consumers, database, effects
from messaging.consumers import Consumer
from messaging.message import Delivery
from messaging.models import DeliveryAttempt, Effect, InboxMessage, OutboxMessage
from messaging.reconcile import lost
from messaging.reconcile.findings import Trouble
from messaging.reconcile.stuck import doubled, stuck
from messaging.worker import handling, inbox
from tests.support.consuming import Noted, a_consumer, a_delivery, a_message, registered, take_note
from tests.support.running import add

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def no_consumers() -> Iterator[None]:
    with registered():
        yield


def known(handler: Callable[..., None] = take_note) -> Consumer:
    """A consumer that reconcile knows."""
    consumer = a_consumer(handler)
    consumers.registry.put(consumer)
    return consumer


def long_ago() -> Any:
    return database.in_future(-3600)


def whys() -> list[str]:
    concerned = consumers.registered()
    carried = [finding for each in concerned for finding in lost.without_a_carrier(each, 10)]
    return [each.why for each in [*carried, *stuck(concerned)]]


UNROUTABLE = {"state": "unroutable", "last_error": "no queue", "publish_attempts": 9}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, []),
        ({"publish_at": long_ago()}, ["pending: does a relay run?"]),
        ({"publish_at": long_ago(), "lease_until": database.in_future(60)}, []),
        ({"publish_at": database.in_future(3600), "created_at": long_ago()}, []),
        ({"publish_at": database.in_future(30), **UNROUTABLE}, []),
        ({"publish_at": database.in_future(30), "created_at": long_ago(), **UNROUTABLE}, ["unroutable: no queue"]),
        ({"state": "failed", "last_error": "too large"}, ["failed: too large"]),
    ],
)
def test_a_row_is_stuck_that_is_overdue_tried_for_long_or_refused(changes: dict[str, Any], why: list[str]) -> None:
    add(Noted(text="a"))
    OutboxMessage.objects.update(**{"state": "pending", **changes})
    assert whys() == why


def test_a_foreign_message_that_was_begun_and_lost_is_stuck() -> None:
    known()
    assert inbox.start(a_delivery(a_message()))
    InboxMessage.objects.update(changed_at=long_ago())
    (found,) = lost.without_a_carrier(consumers.get("notes"), 10)
    assert (found.trouble, found.why) == (Trouble.STUCK, "attempt 1 is expected, and nothing brings it")


def test_a_message_that_waits_for_its_next_attempt_is_not_stuck() -> None:
    def failing(event: Noted, delivery: Delivery) -> None:
        raise ValueError

    consumer = known(handler=failing)
    handling.handle(consumer, a_delivery())
    InboxMessage.objects.update(changed_at=long_ago())
    OutboxMessage.objects.update(publish_at=database.in_future(60))
    assert whys() == []


@pytest.fixture
def intended(isolated: Any) -> Effect:
    """An effect that no process has begun."""
    isolated(effects)
    effects.effect("text")(lambda sending: None)

    def intending(event: Noted, delivery: Delivery) -> None:
        delivery.effect("text")

    consumer = known(handler=intending)
    handling.handle(consumer, a_delivery())
    return Effect.objects.get()


@pytest.mark.parametrize(
    ("state", "changes", "words"),
    [
        ("intended", {"send_at": long_ago()}, "is due, and no process carries it out"),
        ("intended", {}, None),
        ("sending", {"sending_until": long_ago()}, "is due, and no process carries it out"),
        ("sending", {"sending_until": database.in_future(10)}, None),
        ("unknown", {}, "it may have been done or not"),
        ("done", {}, None),
        ("failed", {}, "it failed, and is not tried again"),
        ("failed", {"given_up": True}, None),
    ],
)
def test_effects_that_are_not_carried_out_are_stuck(
    intended: Effect, state: str, changes: dict[str, Any], words: str | None
) -> None:
    Effect.objects.update(state=state, **changes)
    found = whys()
    if words is None:
        assert found == []
    else:
        assert found[0].startswith(f"effect text ({intended.pk}): ")
        assert words in found[0]


def test_a_message_that_was_handled_twice_is_named() -> None:
    consumer = known()
    delivery = a_delivery()
    for _ in range(20):
        handling.handle(consumer, a_delivery())
    handling.handle(consumer, delivery)
    row = InboxMessage.objects.get(message_id=delivery.message_id)
    assert list(doubled(timedelta(days=1))) == []
    InboxMessage.objects.filter(pk=row.pk).update(state="retrying")  # by somebody's SQL
    assert handling.handle(consumer, delivery) == "handled"
    (finding,) = doubled(timedelta(days=1))
    assert (finding.trouble, finding.message_id) == ("doubled", delivery.message_id)
    DeliveryAttempt.objects.update(finished_at=database.in_future(-7200))
    handling.handle(consumer, a_delivery())
    assert list(doubled(timedelta(hours=1))) == []
    assert len(list(doubled(timedelta(hours=3)))) == 1

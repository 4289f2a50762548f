"""A discarded message is done with: nothing runs it again, and its row still tells copies apart."""

from collections.abc import Iterator

import pytest

from messaging.actions.discard import discard
from messaging.actions.replay import replay
from messaging.actions.selection import Selection
from messaging.consumers import Consumer
from messaging.models import InboxMessage
from messaging.worker import handling
from tests.support.consuming import a_consumer, a_dead_message, a_delivery, a_message, notes, registered

pytestmark = pytest.mark.django_db

WHO = "ann@host"


@pytest.fixture
def consumer() -> Iterator[Consumer]:
    consumer = a_consumer()
    with registered(consumer):
        yield consumer


def test_it_is_not_replayed_any_more_and_a_copy_is_a_duplicate(consumer: Consumer) -> None:
    row = a_dead_message(consumer, reason="no such order")

    assert discard.run(Selection(message_ids=[row.message_id]), by=WHO, note="test data").facts == {"discarded": 1}

    row.refresh_from_db()
    assert row.state == "discarded"
    assert row.reason == "discarded by ann@host: test data; it was dead: no such order"
    assert replay.run(Selection(), by=WHO).changed == 0
    assert handling.handle(consumer, a_delivery(a_message(id=row.message_id))) == "duplicate"
    assert notes() == 0


@pytest.mark.parametrize("state", sorted(set(InboxMessage.State) - {InboxMessage.State.DEAD}))
def test_only_dead_messages_are_discarded(state: str) -> None:
    InboxMessage.objects.create(consumer="notes", message_id="m-1", state=state, reason="as it was")
    assert discard.run(Selection(), by=WHO).changed == 0
    row = InboxMessage.objects.get()
    assert (row.state, row.reason) == (state, "as it was")

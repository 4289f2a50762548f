"""`messaging.testing`: an application tests its consumers without a broker."""

from collections.abc import Iterator

import pytest
from django.contrib.auth.models import Group
from django.db import transaction

from messaging import (
    Delivery,
    Event,
    Reject,
    Sending,
    consumer,
    consumers,
    effect,
    effects,
    outbox,
    testing,
)
from messaging.message import Message, new_id
from messaging.models import Effect, InboxMessage, OutboxMessage

pytestmark = pytest.mark.django_db(transaction=True)


class Paid(Event, type="testing.paid"):
    number: str


class Booked(Event, type="testing.booked"):
    number: str


@pytest.fixture(autouse=True)
def sent() -> Iterator[list[str]]:
    """Two consumers, one of which adds another event and intends an effect; what the effect sent."""
    sent: list[str] = []
    with consumers.registry.temporary(), effects.registry.temporary():

        @effect("mail")
        def mail(sending: Sending) -> None:
            sent.append(sending.payload["to"])

        @consumer("receipts", Paid)
        def receipts(event: Paid, delivery: Delivery) -> None:
            if event.number == "wrong":
                raise Reject("no such invoice")
            Group.objects.create(name=event.number)
            outbox.add(Booked(number=event.number))
            delivery.effect("mail", {"to": event.number})

        @consumer("books", Booked)
        def books(event: Booked, delivery: Delivery) -> None:
            Group.objects.create(name=f"booked {event.number}")

        yield sent


def test_what_was_added_reaches_its_consumers_and_what_they_add_theirs(sent: list[str]) -> None:
    with transaction.atomic():
        outbox.add(Paid(number="R-1"), subject="R-1")

    assert testing.added(Paid) == [Paid(number="R-1")]
    assert testing.deliver_due() == [("receipts", "handled"), ("books", "handled")]
    assert testing.deliver_due() == []
    assert testing.added(Booked) == [Booked(number="R-1")]
    assert set(Group.objects.values_list("name", flat=True)) == {"R-1", "booked R-1"}
    assert set(OutboxMessage.objects.values_list("state", flat=True)) == {"published"}

    assert testing.run_effects() == 1
    assert sent == ["R-1"]
    assert Effect.objects.get().state == "done"


def test_an_event_is_delivered_to_one_consumer_and_a_copy_recognised() -> None:
    assert testing.deliver(Paid(number="R-1"), "receipts") == "handled"
    message = Message(body=Paid(number="R-2").encode(), id=new_id(), type="testing.paid")
    assert testing.deliver(message, "receipts") == "handled"
    assert testing.deliver(message, "receipts", redelivered=True) == "duplicate"
    assert Group.objects.count() == 2


def test_a_failure_is_decided_as_by_a_worker() -> None:
    assert testing.deliver(Paid(number="wrong"), "receipts") == "dead"
    assert InboxMessage.objects.get().reason == "no such invoice"
    assert not Group.objects.exists()

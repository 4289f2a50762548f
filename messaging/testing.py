"""Test consumers and effects without a broker: events from the outbox are handled as a worker would handle them.

    def test_a_paid_invoice_gets_a_receipt(db):
        pay(invoice)
        assert testing.added(InvoicePaid) == [InvoicePaid(invoice_number="R-1")]
        assert testing.deliver_due() == [("receipts", "handled")]
        testing.run_effects()

The outbox, the choice of consumers, decoding, the inbox, the handler's transaction, retries and effects are real.
Exchanges, queues and confirms are left out. Retries and delayed events are due later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from django.db.models.functions import Now

from messaging import conf, consumers, encoding
from messaging.consumers import Consumer, exchange_of
from messaging.events import Event
from messaging.message import VERSION_HEADER, Delivery, Message, new_id
from messaging.models import OutboxMessage
from messaging.relay.destinations import broadcast_consumers, expected_queues, publishing_of
from messaging.worker import effect_runner, handling
from messaging.worker.verdict import Verdict

__all__ = ["Verdict", "added", "deliver", "deliver_due", "deliver_together", "run_effects"]

AnyEvent = TypeVar("AnyEvent", bound=Event)


def added(event: type[AnyEvent]) -> list[AnyEvent]:
    """Return the events of this class that were added to the outbox, oldest first, as their consumers read them."""
    rows = OutboxMessage.objects.filter(type=event.event_type, origin=OutboxMessage.Origin.EVENT).order_by("id")
    return [event.decode(bytes(row.body), row.version) for row in rows]


def deliver(event: Event | Message, to: str | Consumer, *, redelivered: bool = False) -> Verdict:
    """Deliver an event, or a message of any content, to the consumer of that name, and return the verdict.

    An event is a new message each time. To deliver a message twice, pass a `Message` with an id.
    """
    consumer = _consumer(to)
    return handling.handle(consumer, _new_delivery(consumer, event, redelivered=redelivered))


def deliver_together(events: Sequence[Event | Message], to: str | Consumer) -> list[Verdict]:
    """Deliver these to the consumer of that name as one batch, and return the verdict on each. If the batch fails, each
    is handled alone, as a worker does."""
    consumer = _consumer(to)
    deliveries = [_new_delivery(consumer, event) for event in events]
    return handling.handle_together(consumer, deliveries) or [handling.handle(consumer, each) for each in deliveries]


def deliver_due() -> list[tuple[str, Verdict]]:
    """Deliver every message of the outbox that is due to its consumers, and what they add; the rows are then published.

    Return the consumer's name and the verdict of each delivery, in order.
    """
    found: list[tuple[str, Verdict]] = []
    while rows := list(OutboxMessage.objects.filter(state="pending", publish_at__lte=Now()).order_by("id")):
        for row in rows:
            names = list(expected_queues(row))
            OutboxMessage.objects.filter(pk=row.pk).update(
                state=OutboxMessage.State.PUBLISHED, published_at=Now(), expected_consumers=names
            )
            message = publishing_of(row).message
            for each in [*consumers.named(names), *broadcast_consumers(row)]:
                delivery = _delivery(each, message, row.exchange, row.routing_key)
                found.append((each.name, handling.handle(each, delivery)))
    return found


def run_effects() -> int:
    """Carry out every intended effect that is due, and return how many there were. Their functions run in threads."""
    return effect_runner.run_all_due(consumers.registered())


def _consumer(named: str | Consumer) -> Consumer:
    return consumers.get(named) if isinstance(named, str) else named


def _new_delivery(consumer: Consumer, event: Event | Message, *, redelivered: bool = False) -> Delivery:
    if isinstance(event, Message):
        return _delivery(consumer, event, redelivered=redelivered)
    message = Message(
        body=encoding.checked_body(event),
        id=new_id(),
        type=event.event_type,
        app_id=conf.get().app_id,
        headers={VERSION_HEADER: event.event_version, **encoding.routing_headers_of(event)},
    )
    exchange, key = exchange_of(type(event)).name, encoding.routing_key_of(event)
    return _delivery(consumer, message, exchange, key, redelivered=redelivered)


def _delivery(
    consumer: Consumer, message: Message, exchange: str = "", routing_key: str = "", *, redelivered: bool = False
) -> Delivery:
    return handling.delivery_of(
        consumer, message, queue=consumer.queue, exchange=exchange, routing_key=routing_key, redelivered=redelivered
    )

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

from typing import TypeVar

from django.db.models.functions import Now

from messaging import conf, consumers, encoding
from messaging.consumers import Consumer, exchange_of
from messaging.events import Event
from messaging.message import VERSION_HEADER, Message, new_id
from messaging.models import OutboxMessage
from messaging.relay.destinations import broadcast_consumers, expected_queues, publishing_of
from messaging.worker import effect_runner, handling
from messaging.worker.handling import Verdict

__all__ = ["Verdict", "added", "deliver", "deliver_due", "run_effects"]

AnyEvent = TypeVar("AnyEvent", bound=Event)


def added(event: type[AnyEvent]) -> list[AnyEvent]:
    """Return the events of this class that were added to the outbox, oldest first, as their consumers read them."""
    rows = OutboxMessage.objects.filter(type=event.event_type, origin=OutboxMessage.Origin.EVENT).order_by("id")
    return [event.decode(bytes(row.body), row.version) for row in rows]


def deliver(event: Event | Message, to: str | Consumer, *, redelivered: bool = False) -> Verdict:
    """Deliver an event, or a message of any content, to the consumer of that name, and return the verdict.

    An event is a new message each time. To deliver a message twice, pass a `Message` with an id.
    """
    consumer = consumers.get(to) if isinstance(to, str) else to
    if isinstance(event, Message):
        return _handle(consumer, event, redelivered=redelivered)
    message = Message(
        body=encoding.checked_body(event),
        id=new_id(),
        type=event.event_type,
        app_id=conf.get().app_id,
        headers={VERSION_HEADER: event.event_version, **encoding.routing_headers_of(event)},
    )
    exchange, key = exchange_of(type(event)).name, encoding.routing_key_of(event)
    return _handle(consumer, message, exchange, key, redelivered=redelivered)


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
                found.append((each.name, _handle(each, message, row.exchange, row.routing_key)))
    return found


def run_effects() -> int:
    """Carry out every intended effect that is due, and return how many there were. Their functions run in threads."""
    return effect_runner.run_all_due(consumers.registered())


def _handle(
    consumer: Consumer, message: Message, exchange: str = "", routing_key: str = "", *, redelivered: bool = False
) -> Verdict:
    delivery = handling.delivery_of(
        consumer, message, queue=consumer.queue, exchange=exchange, routing_key=routing_key, redelivered=redelivered
    )
    return handling.handle(consumer, delivery)

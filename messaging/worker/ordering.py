"""Ordering: each consumer handles the messages of one key in the order of their transactions.

A message whose predecessors are not settled there (handled, dead or discarded) waits: its inbox row is *waiting*, with
its body, and the delivery is acknowledged. The process that settles the predecessor sends the next message again. So
messages of other keys flow, and waiting messages can be seen.
"""

from __future__ import annotations

from collections.abc import Collection

from django.db.models import Exists, OuterRef, Q
from django.db.models.functions import Now

from messaging import database, outbox
from messaging.consumers import Consumer
from messaging.message import Delivery
from messaging.models import InboxMessage, OutboxMessage

State = InboxMessage.State

ConsumerAndKey = tuple[str, str]
#: Before every consumer and key.
BEGINNING: ConsumerAndKey = ("", "")


def must_wait(consumer: Consumer, delivery: Delivery) -> bool:
    """Whether earlier messages of the delivery's key come first here. Raises Undecodable for an odd position.

    Locks the key at this consumer until the transaction ends; see `lock`.
    """
    message = delivery.message
    if not message.ordering_key:
        return False
    lock(consumer, message.ordering_key)
    return _has_predecessors(consumer, message.ordering_key, message.position)


def release_next(consumer: Consumer, key: str) -> bool:
    """Send the first waiting message of `key` again, if its predecessors are settled; return whether that happened.

    To be called in the transaction that settles a message of `key`.
    """
    if not key:
        return False
    lock(consumer, key)
    waiting = InboxMessage.objects.filter(consumer=consumer.name, ordering_key=key, state=State.WAITING)
    row = waiting.order_by("position").first()
    if row is None or has_predecessors(consumer, row):
        return False
    InboxMessage.objects.filter(pk=row.pk).update(state=State.RETRYING, reason="", changed_at=Now())
    outbox.resend(row, consumer=consumer.name, queue=consumer.queue, origin=OutboxMessage.Origin.TURN)
    return True


def release_due(
    consumers: Collection[Consumer], *, after: ConsumerAndKey = BEGINNING, limit: int | None = None
) -> tuple[int, ConsumerAndKey]:
    """Send every waiting message again whose predecessors were settled without a handler: by an operator, by the
    broker, or before they were published. Return how many there were, and where to go on.

    With `limit`, look at that many keys only, behind `after`; go on at BEGINNING once all were looked at. So the
    effects of other messages do not wait until thousands of keys behind one failing message are looked at.
    """
    by_name = {consumer.name: consumer for consumer in consumers}
    behind = Q(consumer__gt=after[0]) | Q(consumer=after[0], ordering_key__gt=after[1])
    with database.atomic():
        waiting = InboxMessage.objects.filter(behind, consumer__in=by_name, state=State.WAITING)
        found = waiting.order_by("consumer", "ordering_key").values_list("consumer", "ordering_key").distinct()
        keys = list(found[:limit])
    released = 0
    for name, key in keys:
        with database.one_of_many():
            released += release_next(by_name[name], key)
    return released, (keys[-1] if limit is not None and len(keys) == limit else BEGINNING)


def has_predecessors(consumer: Consumer, row: InboxMessage) -> bool:
    """Whether a message that waits at this consumer must wait on. Not at one that has become a consumer without a
    fence: what it has handled is not known."""
    return consumer.fenced and _has_predecessors(consumer, row.ordering_key, row.position or 0)


def _has_predecessors(consumer: Consumer, key: str, position: int) -> bool:
    """Whether an earlier message of `key` is still to be handled by this consumer, or on its way to it."""
    states = OutboxMessage.State
    here = InboxMessage.objects.filter(consumer=consumer.name, message_id=OuterRef("message_id"))
    earlier = (
        OutboxMessage.objects.filter(
            ~Exists(here.filter(state__in=InboxMessage.SETTLED)),
            # A message that failed or was cancelled does not come, unless it came before: unroutable only for others.
            ~Q(state__in=[states.FAILED, states.CANCELLED]) | Exists(here),
            # Redundant, but SQLite needs it to use the index, which contains no empty keys.
            ~Q(ordering_key=""),
            ordering_key=key,
            origin=OutboxMessage.Origin.EVENT,
            pk__lt=position,
            type__in=[event.event_type for event in consumer.events],
        )
        .order_by("pk")
        .values_list("state", "expected_consumers", "type", "exchange", "routing_key", "headers")
    )
    # A message that was published before this consumer was declared does not come to it, nor one with a key that it
    # is not bound by.
    return any(
        consumer.name in expected if state == states.PUBLISHED else consumer.receives(*how)
        for state, expected, *how in earlier.iterator(100)
    )


def lock(consumer: Consumer, key: str) -> None:
    """Keep other transactions from handling or releasing a message of `key` here, until this one ends.

    Take it before any inbox row of the key: in another order two transactions could wait for each other.
    """
    if key:
        database.lock_key("handle", f"{consumer.name}:{key}")

"""Ordering: messages of one key are handled in the order of their transactions, at each consumer that wants them.

A message whose predecessors are not settled there (handled, dead or given up) is put aside: its inbox row is
*waiting*, with its body, and the delivery is acknowledged. Whoever settles the predecessor sends the next one again.
So messages of other keys flow, and what waits can be seen.
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
    """Whether messages of the delivery's key come first at this consumer. Raises Undecodable for an odd position.

    Until the end of the transaction nobody else handles, or releases, one of this key here.
    """
    message = delivery.message
    if not message.ordering_key:
        return False
    lock(consumer, message.ordering_key)
    return _has_predecessors(consumer, message.ordering_key, message.position)


def release_next(consumer: Consumer, key: str) -> bool:
    """Send the first message that waits for its turn, if it has come; return whether there was one.

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
    """Send every message whose turn has come unnoticed: its predecessor was given up by a person, by the broker, or
    before it was published. Return how many there were.

    With `limit`, look at so many keys only, those behind `after`; return also where to go on, which is BEGINNING once
    all have been looked at. However many wait behind one that fails, nobody else waits for a look at them all.
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
    """Whether a message that waits at this consumer still has to."""
    return _has_predecessors(consumer, row.ordering_key, row.position or 0)


def _has_predecessors(consumer: Consumer, key: str, position: int) -> bool:
    """Whether an earlier message of `key` is still to be handled by this consumer, or on its way to it."""
    states = OutboxMessage.State
    here = InboxMessage.objects.filter(consumer=consumer.name, message_id=OuterRef("message_id"))
    earlier = (
        OutboxMessage.objects.filter(
            ~Exists(here.filter(state__in=InboxMessage.SETTLED)),
            # One that is given up does not come, unless it came before that: it was unroutable for others alone.
            ~Q(state__in=[states.FAILED, states.CANCELLED]) | Exists(here),
            # Goes without saying, but not to SQLite: its index of keys has none that are empty.
            ~Q(ordering_key=""),
            ordering_key=key,
            origin=OutboxMessage.Origin.EVENT,
            pk__lt=position,
            type__in=[event.event_type for event in consumer.events],
        )
        .order_by("pk")
        .values_list("state", "expected_consumers", "type", "exchange", "routing_key", "headers")
    )
    # One that was published before this consumer was there does not come to it, nor one with a key that it is not
    # bound by.
    return any(
        consumer.name in expected if state == states.PUBLISHED else consumer.receives(*how)
        for state, expected, *how in earlier.iterator(100)
    )


def lock(consumer: Consumer, key: str) -> None:
    """Let nobody else handle, or release, a message of `key` here until the transaction ends.

    To be taken before any inbox row of the key: by another order two transactions could wait for each other.
    """
    if key:
        database.take_turns("handle", f"{consumer.name}:{key}")

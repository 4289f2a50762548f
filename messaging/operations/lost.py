"""What is lost: published for a consumer, and never come to it, though its queue was seen empty since.

The row knows who was registered for a message when it was published: a consumer deployed today does not receive
yesterday, unless asked.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import timedelta

from django.db.models import Exists, OuterRef, Q, Subquery

from messaging import conf, database
from messaging.consumers import Consumer
from messaging.models import InboxMessage, OutboxMessage
from messaging.operations.findings import Finding, Trouble
from messaging.operations.sightings import Range

#: Rows that are checked at a time.
PAGE = 1000


def lost(concerned: Sequence[Consumer], ranges: Mapping[str, Range], *, earlier: bool) -> Iterator[Finding]:
    """Yield what was published for a consumer within its range and has not come, in the order of publishing; also
    what is on its way again, since it may be lost once more. With `earlier` also what was published before the
    consumer was there."""
    seen: set[tuple[str, str]] = set()
    for page in _published(ranges):
        expected = [
            (row, consumer)
            for row in page
            for consumer in concerned
            if _should_have(consumer, row, earlier=earlier)
            and consumer.name in ranges
            and row.published_at
            and ranges[consumer.name].covers(row.published_at)
        ]
        for row, consumer, coming in _missing(expected):
            key = (consumer.name, row.message_id)
            if key not in seen:
                seen.add(key)
                yield Finding(
                    trouble=Trouble.COMING if coming else Trouble.LOST,
                    message_id=row.message_id,
                    type=row.type,
                    subject=row.subject,
                    consumer=consumer.name,
                    since=row.published_at or row.created_at,
                    why=f"published, attempt {row.attempt} has not come, and queue {consumer.queue} was empty since",
                    outbox_id=row.pk,
                )


def _published(ranges: Mapping[str, Range]) -> Iterator[list[OutboxMessage]]:
    """Yield the published rows of all ranges together, oldest first."""
    if not ranges:
        return
    rows = OutboxMessage.objects.filter(
        state=OutboxMessage.State.PUBLISHED, published_at__lt=max(each.end for each in ranges.values())
    )
    begins = [each.begin for each in ranges.values()]
    if None not in begins:
        # A little early: SQLite compares times as text, and its own have fewer digits than ours. Who asked looks again.
        rows = rows.filter(published_at__gte=min(begin for begin in begins if begin) - timedelta(milliseconds=1))
    rows = rows.defer("body", "headers").order_by("published_at", "pk")
    beyond = Q()
    while True:
        with database.atomic():
            page = list(rows.filter(beyond)[:PAGE])
        yield page
        if len(page) < PAGE:
            return
        # As the database knows it, for the same reason.
        last = Subquery(OutboxMessage.objects.filter(pk=page[-1].pk).values("published_at"))
        beyond = Q(published_at__gt=last) | Q(published_at=last, pk__gt=page[-1].pk)


def _should_have(consumer: Consumer, row: OutboxMessage, *, earlier: bool) -> bool:
    if row.consumer:
        return row.consumer == consumer.name
    return consumer.name in row.expected_consumers or (earlier and consumer.wants(row.type))


def _missing(
    expected: Sequence[tuple[OutboxMessage, Consumer]],
) -> Iterator[tuple[OutboxMessage, Consumer, bool]]:
    """Yield those that have not come, and whether they are on their way again."""
    ids = {row.message_id for row, _ in expected}
    with database.atomic():
        received = {
            (name, message_id): (state, attempt)
            for name, message_id, state, attempt in InboxMessage.objects.filter(message_id__in=ids).values_list(
                "consumer", "message_id", "state", "attempt"
            )
        }
        coming = set(on_their_way(ids))
    for row, consumer in expected:
        key = (consumer.name, row.message_id)
        if received.get(key) in {None, (InboxMessage.State.RETRYING, row.attempt)}:
            yield row, consumer, key in coming


def on_their_way(message_ids: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield (consumer, message id) of what waits in the outbox for one consumer, or was sent again a short time ago."""
    states = [OutboxMessage.State.PENDING, OutboxMessage.State.UNROUTABLE]
    recently = Q(
        origin=OutboxMessage.Origin.RECONCILE, created_at__gt=database.in_future(-conf.get().reconcile_interval)
    )
    rows = OutboxMessage.objects.filter(Q(state__in=states) | recently, message_id__in=message_ids)
    yield from rows.exclude(consumer="").values_list("consumer", "message_id")


def without_a_carrier(concerned: Sequence[Consumer]) -> Iterator[Finding]:
    """Yield what waits for an attempt that no outbox row has brought or will bring."""
    carriers = OutboxMessage.objects.filter(
        Q(consumer=OuterRef("consumer")) | Q(consumer=""),
        message_id=OuterRef("message_id"),
        attempt=OuterRef("attempt"),
    )
    rows = InboxMessage.objects.filter(
        ~Exists(carriers),
        consumer__in=[consumer.name for consumer in concerned],
        state=InboxMessage.State.RETRYING,
        changed_at__lt=database.in_future(-conf.get().reconcile_after),
    ).order_by("pk")
    with database.atomic():
        found = list(rows[:PAGE])
    for row in found:
        whole = row.body is not None and not row.body_truncated
        yield Finding(
            trouble=Trouble.LOST if whole else Trouble.STUCK,
            message_id=row.message_id,
            type=row.type,
            subject=row.subject,
            consumer=row.consumer,
            since=row.changed_at,
            why=f"attempt {row.attempt} is expected, and nothing brings it",
            inbox_id=row.pk if whole else None,
        )

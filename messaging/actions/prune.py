"""Pruning: what is finished, and old enough, is deleted. Nothing that waits, failed or died ever is, nor what some
consumer has still to receive."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from django.db.models import Exists, OuterRef, Q, QuerySet, TextField
from django.db.models.expressions import Combinable
from django.db.models.functions import Cast

from messaging import conf, consumers, database
from messaging.logs import get_logger
from messaging.models import DeliveryAttempt, Effect, EffectAttempt, InboxMessage, OutboxMessage

log = get_logger(__name__)

#: Rows deleted in one transaction, unless asked otherwise.
BATCH = 1000


@dataclass(frozen=True, slots=True)
class Pruned:
    """How many rows were deleted, or would be. `attempts` are those of handlers and of effects."""

    outbox: int
    inbox: int
    attempts: int
    effects: int = 0


def prune(*, batch: int = BATCH, dry_run: bool = False) -> Pruned:
    """Delete published and cancelled outbox rows older than `OUTBOX_RETENTION_DAYS`, and handled and discarded inbox
    rows, with their attempts and effects, older than `INBOX_RETENTION_DAYS`; return the counts. With `dry_run` only
    count. What has an effect that was not done is kept, and an event that a registered consumer should have had and
    has not settled.

    An inbox row is what stops a message from being handled twice, so it outlives every outbox row of its message.
    Each batch is a transaction of its own. Several prunes may run at once, and one that was stopped half way has
    done its half.
    """
    finished = _finished_outbox()
    if dry_run:
        unfinished = OutboxMessage.objects.exclude(pk__in=finished.values("pk"))
        return _counted(finished, _forgettable_inbox(unfinished))
    outbox = _delete(finished, "created_at", batch)
    inbox = _delete(_forgettable_inbox(OutboxMessage.objects.all()), "changed_at", batch)
    pruned = Pruned(
        outbox=outbox.get(OutboxMessage._meta.label, 0),
        inbox=inbox.get(InboxMessage._meta.label, 0),
        attempts=inbox.get(DeliveryAttempt._meta.label, 0) + inbox.get(EffectAttempt._meta.label, 0),
        effects=inbox.get(Effect._meta.label, 0),
    )
    log.info("messages.pruned", **asdict(pruned))
    return pruned


def _finished_outbox() -> QuerySet[OutboxMessage]:
    # Its creation is no later than its end, and is what the index knows.
    before = _days_ago(conf.get().outbox_retention_days)
    published = Q(state=OutboxMessage.State.PUBLISHED, published_at__lt=before)
    cancelled = Q(state=OutboxMessage.State.CANCELLED, publish_at__lt=before)
    rows = OutboxMessage.objects.annotate(expected=Cast("expected_consumers", TextField()))
    return rows.filter(published | cancelled, ~_awaited(), created_at__lt=before)


def _awaited() -> Q:
    """Return which rows a consumer should have had by now and has not: by them alone it is known that they are lost,
    and that later ones of their ordering key come too early."""
    awaited = Q(pk__in=[])
    for consumer in consumers.registered():
        settled = InboxMessage.objects.filter(
            consumer=consumer.name, message_id=OuterRef("message_id"), state__in=InboxMessage.SETTLED
        )
        awaited |= ~Exists(settled) & Q(
            state=OutboxMessage.State.PUBLISHED,
            origin=OutboxMessage.Origin.EVENT,
            type__in=[event.event_type for event in consumer.events],
            expected__contains=f'"{consumer.name}"',
        )
    return awaited


def _forgettable_inbox(outbox: QuerySet[OutboxMessage]) -> QuerySet[InboxMessage]:
    """Return the old finished rows whose message none of the `outbox` rows can bring again."""
    # Failed ones are kept like dead messages: a person can still settle them.
    not_done = Effect.objects.filter(inbox_message=OuterRef("pk")).exclude(state=Effect.State.DONE)
    return InboxMessage.objects.filter(
        ~Exists(outbox.filter(message_id=OuterRef("message_id"))),
        ~Exists(not_done),
        state__in=[InboxMessage.State.HANDLED, InboxMessage.State.DISCARDED],
        changed_at__lt=_days_ago(conf.get().inbox_retention_days),
    )


def _days_ago(days: float) -> Combinable:
    return database.in_future(-timedelta(days=days).total_seconds())


def _counted(outbox: QuerySet[OutboxMessage], inbox: QuerySet[InboxMessage]) -> Pruned:
    # Outside a transaction: on SQLite it would hold the write lock, and a count may take long.
    return Pruned(
        outbox=outbox.count(),
        inbox=inbox.count(),
        attempts=DeliveryAttempt.objects.filter(inbox_message__in=inbox).count()
        + EffectAttempt.objects.filter(effect__inbox_message__in=inbox).count(),
        effects=Effect.objects.filter(inbox_message__in=inbox).count(),
    )


def _delete(rows: QuerySet[Any], time_field: str, batch: int) -> dict[str, int]:
    """Delete `rows` in batches, oldest first; return {model label: count}, of what went with them too."""
    deleted: dict[str, int] = {}
    reached = Q()
    while True:
        with database.one_of_many():
            # What another prune holds is its own to delete.
            page = rows.filter(reached).select_for_update(skip_locked=True, of=("self",))
            found = list(page.order_by(time_field, "pk").values_list(time_field, "pk")[:batch])
            _, counts = rows.model._default_manager.filter(pk__in=[pk for _, pk in found]).delete()
        for label, count in counts.items():
            deleted[label] = deleted.get(label, 0) + count
        if len(found) < batch:
            return deleted
        # What was found is gone; this passes over what is kept. A little earlier: SQLite compares times as texts, and
        # its own have fewer digits than ours, so that others of the same moment would be before it.
        reached = Q(**{f"{time_field}__gte": found[-1][0] - timedelta(milliseconds=1)})

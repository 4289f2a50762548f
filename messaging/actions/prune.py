"""Prune: delete finished rows past their retention. A message that waits, failed or is dead is never deleted, nor is
one that a consumer has still to receive."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any

from django.db.models import Exists, OuterRef, Q, QuerySet, TextField
from django.db.models.expressions import Combinable
from django.db.models.functions import Cast

from messaging import conf, consumers, database
from messaging.actions.action import EVERYTHING, TOLD_TO_STOP, Action, Option, Request, Result
from messaging.actions.selection import Selection, counted
from messaging.logs import get_logger
from messaging.models import DeliveryAttempt, Effect, EffectAttempt, InboxMessage, MinuteCount, OutboxMessage

log = get_logger(__name__)

#: Days for which the counts of each minute are kept.
COUNTS_DAYS = 8
#: Rows deleted in one transaction by default.
BATCH = 1000


class Prune(Action):
    """Deletes published and cancelled outbox rows older than `OUTBOX_RETENTION_DAYS`, and handled and discarded inbox
    rows, with their attempts and effects, older than `INBOX_RETENTION_DAYS`.

    A message with an effect that was not done is kept, and an event that a registered consumer should have settled and
    has not. An inbox row stops a message from being handled twice, so it outlives every outbox row of its message. The
    counts of each minute are deleted after COUNTS_DAYS. Each batch is a transaction of its own. Several prunes may run
    at once; what a stopped one has deleted stays so.
    """

    name = "prune"
    help = "delete finished rows past their retention"
    examples = """
examples:
  manage.py messages prune --dry-run                   what is finished and old, without deleting it
  manage.py messages prune                             delete it
"""
    options = (Option(name="batch", help=f"rows at a time (default {BATCH})", type=int, metavar="N", default=BATCH),)

    def plan(self, selection: Selection = EVERYTHING, **options: Any) -> Result:
        finished, kept = _outbox().filter(_finished()), _outbox().exclude(_finished())
        inbox = _forgettable_inbox(kept)
        # Outside a transaction: on SQLite it would hold the write lock, and a count may take long.
        counts = {"outbox": finished.count(), "inbox": inbox.count(), "attempts": 0, "effects": 0}
        if counts["inbox"]:
            counts["attempts"] = (
                DeliveryAttempt.objects.filter(inbox_message__in=inbox).count()
                + EffectAttempt.objects.filter(effect__inbox_message__in=inbox).count()
            )
            counts["effects"] = Effect.objects.filter(inbox_message__in=inbox).count()
        return _result("Would delete", counts)

    def do(self, request: Request) -> Result:
        deleted = _delete(_outbox().filter(_finished()), "created_at", request)
        deleted += _delete(_forgettable_inbox(OutboxMessage.objects.all()), "changed_at", request)
        MinuteCount.objects.filter(minute__lt=_days_ago(COUNTS_DAYS)).delete()
        counts = {
            "outbox": deleted[OutboxMessage._meta.label],
            "inbox": deleted[InboxMessage._meta.label],
            "attempts": deleted[DeliveryAttempt._meta.label] + deleted[EffectAttempt._meta.label],
            "effects": deleted[Effect._meta.label],
        }
        log.info("messages.pruned", **counts)
        result = _result("Deleted", counts)
        result.stopped = TOLD_TO_STOP if request.should_stop() else ""
        return result


prune = Prune()


def _result(did: str, counts: dict[str, int]) -> Result:
    nouns = {"outbox": "outbox row", "inbox": "inbox row", "attempts": "attempt", "effects": "effect"}
    *others, effects = (counted(counts[name], noun) for name, noun in nouns.items())
    return Result(changed=sum(counts.values()), text=f"{did} {', '.join(others)} and {effects}.", facts=counts)


def _outbox() -> QuerySet[OutboxMessage]:
    return OutboxMessage.objects.annotate(expected=Cast("expected_consumers", TextField()))


def _finished() -> Q:
    """Return the rows of `_outbox` that are finished and old."""
    before = _days_ago(conf.get().outbox_retention_days)
    published = Q(state=OutboxMessage.State.PUBLISHED, published_at__lt=before)
    cancelled = Q(state=OutboxMessage.State.CANCELLED, publish_at__lt=before)
    # created_at is no later than the other times, and indexed: it narrows the scan.
    return (published | cancelled) & ~_awaited() & Q(created_at__lt=before)


def _awaited() -> Q:
    """Return the rows that a consumer should have settled by now and has not: only by them it is known that they are
    lost, and that later ones of their ordering key come too early."""
    awaited = Q(pk__in=[])
    for consumer in [each for each in consumers.registered() if each.fenced]:
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
    # Failed effects are kept like dead messages: a person can still settle them.
    not_done = Effect.objects.filter(inbox_message=OuterRef("pk")).exclude(state=Effect.State.DONE)
    return InboxMessage.objects.filter(
        ~Exists(outbox.filter(message_id=OuterRef("message_id"))),
        ~Exists(not_done),
        state__in=[InboxMessage.State.HANDLED, InboxMessage.State.DISCARDED],
        changed_at__lt=_days_ago(conf.get().inbox_retention_days),
    )


def _days_ago(days: float) -> Combinable:
    return database.in_future(-timedelta(days=days).total_seconds())


def _delete(rows: QuerySet[Any], time_field: str, request: Request) -> Counter[str]:
    """Delete `rows` in batches, oldest first; return the counts by model, with what was deleted with them."""
    deleted: Counter[str] = Counter()
    reached, batch = Q(), request.options["batch"]
    while not request.should_stop():
        with database.one_of_many():
            # What another prune has locked is its own to delete.
            page = rows.filter(reached).select_for_update(skip_locked=True, of=("self",))
            found = list(page.order_by(time_field, "pk").values_list(time_field, "pk")[:batch])
            _, counts = rows.model._default_manager.filter(pk__in=[pk for _, pk in found]).delete()
        deleted.update(counts)
        request.progress(f"{counted(deleted[rows.model._meta.label], rows.model._meta.verbose_name)} deleted")
        if len(found) < batch:
            break
        # This passes over what is kept. A little earlier: SQLite compares times as texts, and its own have fewer digits
        # than ours, so that others of the same moment would be before it.
        reached = Q(**{f"{time_field}__gte": found[-1][0] - timedelta(milliseconds=1)})
    return deleted

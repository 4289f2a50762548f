"""What is stuck, waiting for what does not come by itself; and what was handled twice, which should never be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta

from django.db.models import Count, Q
from django.db.models.functions import Now

from messaging import conf, database, ordering
from messaging.consumers import Consumer
from messaging.models import DeliveryAttempt, Effect, InboxMessage, OutboxMessage
from messaging.operations.findings import Finding, Trouble, about_inbox

#: How far back is looked for messages that were handled twice.
DOUBLED_WITHIN = timedelta(days=1)
#: Findings of one kind that are told at most: one says as much as a thousand.
TOLD = 100


def doubled() -> Iterator[Finding]:
    """Yield what was handled more than once."""
    handled = DeliveryAttempt.objects.filter(
        outcome=DeliveryAttempt.Outcome.HANDLED,
        inbox_message__state__in=[InboxMessage.State.HANDLED, InboxMessage.State.EFFECTS_DUE],
        inbox_message__changed_at__gte=database.in_future(-DOUBLED_WITHIN.total_seconds()),
    )
    with database.atomic():
        counts = dict(
            handled.order_by().values_list("inbox_message").annotate(times=Count("pk")).filter(times__gt=1)[:TOLD]
        )
        rows = list(InboxMessage.objects.filter(pk__in=counts).defer("body", "headers"))
    for row in rows:
        yield about_inbox(row, Trouble.DOUBLED, f"it was handled {counts[row.pk]} times")


def stuck(concerned: Sequence[Consumer]) -> Iterator[Finding]:
    """Yield what has waited for longer than RECONCILE_AFTER, and what waits for a person."""
    overdue = database.in_future(-conf.get().reconcile_after)
    yield from _stuck_in_outbox(Q(publish_at__lt=overdue))
    by_name = {consumer.name: consumer for consumer in concerned}
    with database.atomic():
        waiting = list(
            InboxMessage.objects.filter(
                consumer__in=by_name, state=InboxMessage.State.WAITING, changed_at__lt=overdue
            ).defer("body", "headers")[:TOLD]
        )
        forgotten = [row for row in waiting if not ordering.has_predecessors(by_name[row.consumer], row)]
        effects = list(
            Effect.objects.filter(
                Q(state=Effect.State.UNKNOWN)
                | Q(state=Effect.State.INTENDED, send_at__lt=overdue)
                | Q(state=Effect.State.SENDING, sending_until__lt=overdue)
            ).select_related("inbox_message")[:TOLD]
        )
    for row in forgotten:
        yield about_inbox(row, Trouble.STUCK, "its turn has come, and nobody has sent it: does its consumer run?")
    for effect in effects:
        unknown = effect.state == Effect.State.UNKNOWN
        why = "nobody knows whether it was done" if unknown else "is due, and nobody does it: does its consumer run?"
        finding = about_inbox(effect.inbox_message, Trouble.STUCK, f"effect {effect.name}: {why}")
        yield replace(finding, since=effect.changed_at)


def _stuck_in_outbox(overdue: Q) -> Iterator[Finding]:
    states = OutboxMessage.State
    free = Q(lease_until=None) | Q(lease_until__lt=Now())
    rows = OutboxMessage.objects.filter(
        (Q(state__in=[states.PENDING, states.UNROUTABLE]) & overdue & free)
        # One that is unroutable comes due again and again: what counts is for how long it has been.
        | Q(state=states.UNROUTABLE, created_at__lt=database.in_future(-conf.get().reconcile_after))
        | Q(state=states.FAILED)
    )
    with database.atomic():
        found = list(rows.defer("body", "headers")[:TOLD])
    for row in found:
        yield Finding(
            trouble=Trouble.STUCK,
            message_id=row.message_id,
            type=row.type,
            subject=row.subject,
            consumer=row.consumer,
            since=row.created_at,
            why=f"{row.state}: {row.last_error}" if row.last_error else f"{row.state}: does a relay run?",
            outbox_id=row.pk,
        )

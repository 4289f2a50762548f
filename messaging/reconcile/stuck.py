"""Stuck messages, which wait for something that does not come by itself; and messages that were handled twice, which
should never happen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from itertools import islice

from django.db.models import Exists, OuterRef, Q
from django.db.models.expressions import Combinable
from django.db.models.functions import Now

from messaging import conf, database
from messaging.consumers import Consumer
from messaging.history.effect_trouble import EffectTrouble, failed_attempts, first_trouble
from messaging.history.effect_trouble import overdue as effects_overdue
from messaging.models import DeliveryAttempt, Effect, InboxMessage, OutboxMessage
from messaging.reconcile.findings import Finding, Trouble
from messaging.worker import ordering

#: Findings of one kind that are reported at most: one says as much as a thousand.
REPORTED = 100


def doubled(within: timedelta) -> Iterator[Finding]:
    """Yield what was handled not longer ago than `within`, and had been handled before."""
    handled = DeliveryAttempt.objects.filter(outcome=DeliveryAttempt.Outcome.HANDLED)
    before = handled.filter(inbox_message=OuterRef("inbox_message"), pk__lt=OuterRef("pk"))
    with database.atomic():
        first = _first_attempt_since(database.now() - within)
        # A first success is on the inbox row. Earlier versions wrote an attempt for it.
        twice = Q(inbox_message__handled_at__isnull=False) | Exists(before)
        again = handled.filter(twice, pk__gte=first).select_related("inbox_message").order_by("pk")
        attempts = list(again.defer("traceback", "inbox_message__body", "inbox_message__headers")[:REPORTED])
    for attempt in attempts:
        row = attempt.inbox_message
        yield Finding(Trouble.DOUBLED, row, "it was handled again", since=attempt.finished_at, consumer=row.consumer)


def _first_attempt_since(time: datetime) -> int:
    """Return the first id of the attempts that finished after `time`.

    By halves: there is no index on that time, and the table, which grows at its end, holds months.
    """
    attempts = DeliveryAttempt.objects.order_by("pk")
    low, high = 0, (attempts.reverse().values_list("pk", flat=True).first() or 0) + 1
    while low < high:
        middle = (low + high) // 2
        finished = attempts.filter(pk__gte=middle).values_list("finished_at", flat=True).first()
        if finished is not None and finished < time:
            low = middle + 1
        else:
            high = middle
    return low


def stuck(concerned: Sequence[Consumer]) -> Iterator[Finding]:
    """Yield messages that have waited for longer than RECONCILE_AFTER, and effects that fail or need a person."""
    overdue = database.in_future(-conf.get().reconcile_after)
    yield from _stuck_in_outbox(overdue)
    forgotten = list(islice(_forgotten(concerned, overdue), REPORTED))
    troubled = Effect.FOR_A_PERSON | Effect.FAILING | effects_overdue(conf.get().reconcile_after)
    with database.atomic():
        rows = Effect.objects.filter(troubled).select_related("inbox_message").defer("inbox_message__body")
        effects = list(rows[:REPORTED])
    for row in forgotten:
        why = "the messages before it are settled, and it was not sent: does its consumer run?"
        yield Finding(Trouble.STUCK, row, why, since=row.changed_at, consumer=row.consumer)
    for effect in effects:
        why = f"effect {effect.name} ({effect.pk}): {_why(effect)}"
        yield Finding(Trouble.STUCK, effect.inbox_message, why, since=effect.changed_at, consumer=effect.consumer)


def _why(effect: Effect) -> str:
    error = f": {effect.error}" if effect.error else ""
    match first_trouble(effect):
        case EffectTrouble.UNKNOWN:
            return f"it may have been done or not{error}"
        case EffectTrouble.FAILED:
            return f"it failed, and is not tried again{error}"
        case EffectTrouble.FAILING:
            return f"{failed_attempts(effect)}, and it is to be tried again{error}"
    return "is due, and no process carries it out: does its consumer run?"


def _forgotten(concerned: Sequence[Consumer], overdue: Combinable) -> Iterator[InboxMessage]:
    """Yield the first waiting message of each ordering key whose earlier messages are settled."""
    for consumer in concerned:
        waiting = InboxMessage.objects.filter(consumer=consumer.name, state=InboxMessage.State.WAITING)
        old = waiting.filter(changed_at__lt=overdue).order_by("ordering_key")
        with database.atomic():
            keys = list(old.values_list("ordering_key", flat=True).distinct())
        for key in keys:
            # One by one: there may be thousands, and SQLite has one writer.
            with database.one_of_many():
                first = waiting.filter(ordering_key=key).order_by("position").defer("body", "headers").first()
                forgotten = first is not None and not ordering.has_predecessors(consumer, first)
            if first is not None and forgotten:
                yield first


def _stuck_in_outbox(overdue: Combinable) -> Iterator[Finding]:
    states = OutboxMessage.State
    unpublished = Q(state__in=[states.PENDING, states.UNROUTABLE])
    free = Q(lease_until=None) | Q(lease_until__lt=Now())
    rows = OutboxMessage.objects.filter(
        (unpublished & Q(publish_at__lt=overdue) & free)
        # One that the broker does not take comes due again and again: its age counts.
        | (unpublished & Q(publish_attempts__gt=0, created_at__lt=overdue))
        | Q(state=states.FAILED)
    )
    with database.atomic():
        some = list(rows.defer("body", "headers")[:REPORTED])
    for row in some:
        why = f"{row.state}: {row.last_error or 'does a relay run?'}"
        yield Finding(Trouble.STUCK, row, why, since=row.created_at, consumer=row.consumer)

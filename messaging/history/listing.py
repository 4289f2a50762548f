"""Listing: rows of outbox, inbox and effects side by side, the newest first; and failures by their kind."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import Count, Max, Q, QuerySet

from messaging.actions.selection import Wanted
from messaging.history.effect_trouble import EffectTrouble
from messaging.models import Effect, InboxMessage, OutboxMessage

#: Every state a row can have. An outbox row and an effect can both be *failed*.
STATES = tuple(dict.fromkeys([*OutboxMessage.State.values, *InboxMessage.State.values, *Effect.State.values]))
#: What can be asked for beside the states: troubles of effects that are still to be carried out.
TROUBLES = (EffectTrouble.FAILING.value, EffectTrouble.OVERDUE.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of a box: outbox, inbox or effects. `at`: when it was written to the outbox, or changed last elsewhere.

    Of an effect, `type` is its name and `attempt` how often it was tried.
    """

    at: datetime
    box: str
    state: str
    type: str
    subject: str
    consumer: str
    attempt: int
    message_id: str
    reason: str
    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureGroup:
    """Failures of one kind: dead messages, or effects that failed, are failing, unknown or overdue (`state`).

    `reason` is that of the newest. Of effects, `type` is their name. Those that are overdue without having failed have
    no `group`.
    """

    group: str
    count: int
    consumer: str
    type: str
    newest: datetime
    reason: str
    box: str
    state: str


def newest(wanted: Wanted, limit: int, *, states: Collection[str] = ()) -> list[Row]:
    """Return the newest rows that are `wanted`, at most `limit`; with `states`, in one of these (of STATES and
    TROUBLES)."""
    found = {(row.box, row.id): row for row in _rows(wanted, states or STATES, limit)}
    return sorted(found.values(), key=lambda row: row.at, reverse=True)[:limit]


def failure_groups(wanted: Wanted, limit: int) -> list[FailureGroup]:
    """Return the failures that are `wanted`, by group: dead messages, and effects that failed for good, are failing,
    unknown or overdue. The largest group comes first; at most `limit`."""
    groups = [*_groups_of_dead(wanted, limit), *_groups_of_effects(wanted, limit)]
    return sorted(groups, key=lambda each: (each.count, each.newest), reverse=True)[:limit]


def _groups_of_dead(wanted: Wanted, limit: int) -> Iterator[FailureGroup]:
    dead = InboxMessage.objects.filter(wanted.of_inbox, state=InboxMessage.State.DEAD)
    for each in _largest(dead, "type", "reason", limit):
        yield FailureGroup(**each, box="inbox", state=InboxMessage.State.DEAD.value)


def _groups_of_effects(wanted: Wanted, limit: int) -> Iterator[FailureGroup]:
    for trouble in EffectTrouble:
        effects = Effect.objects.filter(wanted.of_effects, trouble.which)
        if trouble is EffectTrouble.OVERDUE:
            effects = effects.exclude(EffectTrouble.FAILING.which)
        for each in _largest(effects, "name", "error", limit):
            reason = each.pop("reason") or "is due, and no process carries it out: does its consumer run?"
            yield FailureGroup(**each, reason=reason, box="effects", state=trouble.value)


def _largest(rows: QuerySet[Any], type_field: str, reason_field: str, limit: int) -> list[dict[str, Any]]:
    """Return what the largest groups of these rows have in common, as fields of FailureGroup."""
    found = rows.order_by().values("failure_group", "consumer", type_field)
    found = found.annotate(count=Count("pk"), newest=Max("changed_at"), example=Max("pk"))
    groups = list(found.order_by("-count", "-newest")[:limit])
    examples = rows.model._default_manager.filter(pk__in=[each["example"] for each in groups])
    reasons = dict(examples.values_list("pk", reason_field))
    return [
        {
            "group": each["failure_group"],
            "count": each["count"],
            "consumer": each["consumer"],
            "type": each[type_field],
            "newest": each["newest"],
            "reason": reasons.get(each["example"], ""),
        }
        for each in groups
    ]


def _rows(wanted: Wanted, states: Collection[str], limit: int) -> Iterator[Row]:
    # State by state, because the indexes are (state, time): no query reads more than it returns.
    for state in states:
        if state in OutboxMessage.State:
            sent = _newest(OutboxMessage.objects.defer("body", "headers"), wanted.of_outbox, state, "created_at", limit)
            yield from (_row(each, "outbox", each.created_at, each.last_error) for each in sent)
        if state in InboxMessage.State:
            received = _newest(
                InboxMessage.objects.defer("body", "headers"), wanted.of_inbox, state, "changed_at", limit
            )
            yield from (_row(each, "inbox", each.changed_at, each.reason) for each in received)
        if state in Effect.State or state in TROUBLES:
            effects = Effect.objects.select_related("inbox_message").only(
                *(
                    "state",
                    "name",
                    "consumer",
                    "attempts",
                    "message_id",
                    "error",
                    "changed_at",
                    "inbox_message__subject",
                )
            )
            which = EffectTrouble(state).which if state in TROUBLES else Q(state=state)
            found = effects.filter(wanted.of_effects, which).order_by("-changed_at", "-id")
            yield from map(_effect_row, found[:limit])


def _newest(rows: QuerySet[Any], wanted: Q, state: str, time_field: str, limit: int) -> QuerySet[Any]:
    return rows.filter(wanted, state=state).order_by(f"-{time_field}", "-id")[:limit]


def _row(found: OutboxMessage | InboxMessage, box: str, at: datetime, reason: str) -> Row:
    return Row(
        at=at,
        box=box,
        state=found.state,
        type=found.type,
        subject=found.subject,
        consumer=found.consumer,
        attempt=found.attempt,
        message_id=found.message_id,
        reason=reason,
        id=found.pk,
    )


def _effect_row(effect: Effect) -> Row:
    return Row(
        at=effect.changed_at,
        box="effects",
        state=effect.state,
        type=effect.name,
        subject=effect.inbox_message.subject,
        consumer=effect.consumer,
        attempt=effect.attempts,
        message_id=effect.message_id,
        reason=effect.error,
        id=effect.pk,
    )

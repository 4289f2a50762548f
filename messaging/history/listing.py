"""Listing: rows of outbox, inbox and effects side by side, the newest first; and failures by their kind."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import Count, Max, Min, Q, QuerySet, Value
from django.db.models.functions import Coalesce
from django.db.models.lookups import Exact

from messaging.actions.selection import COLUMNS, Box, Selection
from messaging.history.effect_trouble import EffectTrouble
from messaging.models import Effect, InboxMessage, OutboxMessage

#: Every state a row can have. An outbox row and an effect can both be *failed*.
STATES = tuple(dict.fromkeys([*OutboxMessage.State.values, *InboxMessage.State.values, *Effect.State.values]))
#: What can be asked for beside the states: troubles of effects that are still to be carried out.
TROUBLES = (EffectTrouble.FAILING.value, EffectTrouble.OVERDUE.value)
#: The boxes by the name that a list gives them.
BOXES: dict[str, Box] = {"outbox": OutboxMessage, "inbox": InboxMessage, "effects": Effect}


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

    `oldest` and `newest` are the times of last change of its rows; `reason` is that of the newest. Of effects, `type`
    is their name. Those that are overdue without having failed have no `group`.
    """

    group: str
    count: int
    consumer: str
    type: str
    oldest: datetime
    newest: datetime
    reason: str
    box: str
    state: str


def newest(selection: Selection, limit: int, *, states: Collection[str] = ()) -> list[Row]:
    """Return the newest of the selected rows, at most `limit`; with `states`, in one of these (of STATES and
    TROUBLES)."""
    found = {(row.box, row.id): row for row in _rows(selection, states or STATES, limit)}
    return sorted(found.values(), key=lambda row: row.at, reverse=True)[:limit]


def failure_groups(selection: Selection, limit: int) -> list[FailureGroup]:
    """Return the selected failures by group: dead messages, and effects that failed for good, are failing, unknown or
    overdue. The largest group comes first; at most `limit`."""
    groups = sorted(_groups(selection, limit), key=lambda each: (each.count, each.newest), reverse=True)
    return groups[:limit]


def _groups(selection: Selection, limit: int) -> Iterator[FailureGroup]:
    dead = InboxMessage.objects.filter(selection.of(InboxMessage), state=InboxMessage.State.DEAD)
    yield from _with_reasons("inbox", {InboxMessage.State.DEAD.value: _largest(dead, limit)})
    troubled = {}
    for trouble in EffectTrouble:
        effects = Effect.objects.filter(selection.of(Effect), trouble.which)
        if trouble is EffectTrouble.OVERDUE:
            effects = effects.exclude(EffectTrouble.FAILING.which)
        troubled[trouble.value] = _largest(effects, limit)
    yield from _with_reasons("effects", troubled)


def _largest(rows: QuerySet[Any], limit: int) -> list[dict[str, Any]]:
    """Return the largest groups of these rows, each with the id of an example."""
    found = rows.order_by().values("failure_group", "consumer", COLUMNS[rows.model].type)
    found = found.annotate(count=Count("pk"), oldest=Min("changed_at"), newest=Max("changed_at"), example=Max("pk"))
    return list(found.order_by("-count", "-newest")[:limit])


def _with_reasons(name: str, by_state: Mapping[str, Sequence[dict[str, Any]]]) -> Iterator[FailureGroup]:
    """Yield the groups of a box, each with the reason of its example: one query for all of them."""
    box = BOXES[name]
    columns = COLUMNS[box]
    examples = [each["example"] for groups in by_state.values() for each in groups]
    reasons = dict(box._default_manager.filter(pk__in=examples).values_list("pk", columns.reason))
    no_error = "is due, and no process carries it out: does its consumer run?" if box is Effect else ""
    for state, groups in by_state.items():
        for each in groups:
            yield FailureGroup(
                group=each["failure_group"],
                count=each["count"],
                consumer=each["consumer"],
                type=each[columns.type],
                oldest=each["oldest"],
                newest=each["newest"],
                reason=reasons.get(each["example"]) or no_error,
                box=name,
                state=state,
            )


def _rows(selection: Selection, states: Collection[str], limit: int) -> Iterator[Row]:
    # State by state, because the indexes are (state, time): no query reads more than it returns.
    for state in states:
        for name, box in BOXES.items():
            if state in box.State:
                yield from _newest(name, selection, _is(state, selection), limit)
        if state in TROUBLES:
            yield from _newest("effects", selection, EffectTrouble(state).which, limit)


def _is(state: str, selection: Selection) -> Q:
    if selection.subject or selection.message_ids:
        # Few, by an index of their own: SQLite would rather read all of that state, in the order asked for. COALESCE
        # changes nothing, but no index has it.
        return Q(Exact(Coalesce("state", Value("")), state))
    return Q(state=state)


def _newest(name: str, selection: Selection, which: Q, limit: int) -> Iterator[Row]:
    box = BOXES[name]
    columns = COLUMNS[box]
    rows = box._default_manager.filter(selection.of(box), which).order_by(f"-{columns.time}", "-pk")
    fields = ("state", columns.type, columns.subject, "consumer", columns.attempt, "message_id", columns.reason, "pk")
    names = ("state", "type", "subject", "consumer", "attempt", "message_id", "reason", "id")
    for at, *facts in rows.values_list(columns.time, *fields)[:limit]:
        yield Row(at=at, box=name, **dict(zip(names, facts, strict=True)))

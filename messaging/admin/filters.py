"""Filters of the message lists. Their values come from the code: no query has to collect what a large table holds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest

from messaging import actions, consumers, events
from messaging.history.effect_trouble import EffectTrouble
from messaging.validation.texts import storable_text

_SPANS = {
    "10min": ("Past 10 minutes", timedelta(minutes=10)),
    "1h": ("Past hour", timedelta(hours=1)),
    "1d": ("Past 24 hours", timedelta(days=1)),
    "7d": ("Past 7 days", timedelta(days=7)),
    "30d": ("Past 30 days", timedelta(days=30)),
}


def known_values(column: str, values: Callable[[], Iterable[str]]) -> type[admin.SimpleListFilter]:
    """Return a filter by the values that a column can have."""

    def which(value: str) -> Q:
        return Q(**{column: storable_text(value)})

    return _filter(column, lambda: [(value, value) for value in values()], which)


def since(column: str, *, states: Collection[str] = ()) -> type[admin.SimpleListFilter]:
    """Return a filter by how long ago the time in `column` is. `states` are all that there are, where the index that
    leads the filter has the state before the time."""
    any_state = Q(state__in=list(states)) if states else Q()

    def which(value: str) -> Q:
        return any_state & Q(**{f"{column}__gte": datetime.now(UTC) - _SPANS[value][1]}) if value in _SPANS else Q()

    return _filter("since", lambda: [(key, label) for key, (label, _) in _SPANS.items()], which, label="time")


def _filter(
    parameter: str, choices: Callable[[], list[tuple[str, str]]], which: Callable[[str], Q], label: str = ""
) -> type[admin.SimpleListFilter]:
    class Filter(admin.SimpleListFilter):
        title = label or parameter
        parameter_name = parameter

        def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
            return choices()

        def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
            chosen = self.value()
            return queryset.filter(which(chosen)) if chosen else queryset

    return Filter


def _trouble(value: str) -> Q:
    return EffectTrouble(value).which if value in set(EffectTrouble) else Q()


BY_TYPE = known_values("type", lambda: [event.event_type for event in events.registered()])
BY_CONSUMER = known_values("consumer", lambda: [each.name for each in consumers.registered()])
BY_ACTION = known_values("action", actions.audited)
#: Effects by what is wrong with them, as `mq status` counts it.
BY_TROUBLE = _filter("trouble", lambda: [(each.value, each.words) for each in EffectTrouble], _trouble)

"""Filters of the message lists."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from messaging import actions, consumers, events
from messaging.history.effect_trouble import EffectTrouble
from messaging.validation.texts import storable_text


class KnownValuesFilter(admin.SimpleListFilter):
    """Filters by a value that the code knows, so that no query has to collect what a large table holds."""

    def values(self) -> list[str]:
        """Return the values to choose from."""
        raise NotImplementedError

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(value, value) for value in self.values()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        chosen = self.value()
        return queryset.filter(**{self.parameter_name or "": storable_text(chosen)}) if chosen else queryset


class TypeFilter(KnownValuesFilter):
    """By type of event."""

    title = "type"
    parameter_name = "type"

    def values(self) -> list[str]:
        return [event.event_type for event in events.registered()]


class ConsumerFilter(KnownValuesFilter):
    """By consumer."""

    title = "consumer"
    parameter_name = "consumer"

    def values(self) -> list[str]:
        return [each.name for each in consumers.registered()]


class ActionFilter(KnownValuesFilter):
    """By what was done."""

    title = "action"
    parameter_name = "action"

    def values(self) -> list[str]:
        return list(actions.audited())


class TroubleFilter(admin.SimpleListFilter):
    """Effects by what is wrong with them, as `mq status` counts it."""

    title = "trouble"
    parameter_name = "trouble"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(trouble.value, trouble.words) for trouble in EffectTrouble]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        chosen = self.value()
        known = {trouble.value: trouble for trouble in EffectTrouble}
        return queryset.filter(known[chosen].which) if chosen in known else queryset


class TimeFilter(admin.SimpleListFilter):
    """By the time since then."""

    title = "time"
    parameter_name = "since"
    column = ""
    spans = {
        "10min": ("Past 10 minutes", timedelta(minutes=10)),
        "1h": ("Past hour", timedelta(hours=1)),
        "1d": ("Past 24 hours", timedelta(days=1)),
        "7d": ("Past 7 days", timedelta(days=7)),
        "30d": ("Past 30 days", timedelta(days=30)),
    }

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(key, label) for key, (label, _) in self.spans.items()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        chosen = self.spans.get(self.value() or "")
        return queryset.filter(**{f"{self.column}__gte": datetime.now(UTC) - chosen[1]}) if chosen else queryset


class CreatedFilter(TimeFilter):
    """By when the row was written."""

    column = "created_at"


class ReceivedFilter(TimeFilter):
    """By when the message was received."""

    column = "received_at"


class ChangedFilter(TimeFilter):
    """By when the row changed last."""

    column = "changed_at"


class AtFilter(TimeFilter):
    """By when something was done."""

    column = "at"

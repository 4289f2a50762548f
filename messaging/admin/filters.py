"""Filters of the message lists."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from messaging import consumers, events


class KnownValuesFilter(admin.SimpleListFilter):
    """Filters by a value that the code knows, so that no query has to collect what a large table holds."""

    def values(self) -> list[str]:
        """Return the values to choose from."""
        raise NotImplementedError

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(value, value) for value in self.values()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        chosen = self.value()
        return queryset.filter(**{self.parameter_name or "": chosen}) if chosen else queryset


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

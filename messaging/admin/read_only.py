"""Admins of rows that only the code writes."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.contrib.admin.options import BaseModelAdmin
from django.contrib.admin.views.main import ERROR_FLAG
from django.db.models import Model
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.text import capfirst


class ReadOnly(BaseModelAdmin):  # type: ignore[type-arg]
    """Shows rows, which cannot be added, changed or deleted here. For inlines."""

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


class ReadOnlyAdmin(ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    """Shows rows, and lists without counting the whole table."""

    show_full_result_count = False

    class Media:
        css = {"all": ["messaging/admin.css"]}

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Show the list. An address with a NUL is answered like other bad filters: PostgreSQL accepts none, and
        Django's filters pass it on."""
        if any("\x00" in value for _, values in request.GET.lists() for value in values):
            return HttpResponseRedirect(f"{request.path}?{ERROR_FLAG}=1")
        title = {"title": capfirst(self.opts.verbose_name_plural)}  # Django's says "Select … to view"
        return super().changelist_view(request, {**title, **(extra_context or {})})

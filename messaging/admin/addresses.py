"""Addresses of lists: what somebody typed behind the question mark."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.contrib.admin.views.main import ERROR_FLAG
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect


class WithoutNul(admin.ModelAdmin):  # type: ignore[type-arg]
    """Answers an address that holds a NUL as Django answers other bad filters: PostgreSQL takes none, and Django's
    filters pass it on."""

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Show the list."""
        if any("\x00" in value for _, values in request.GET.lists() for value in values):
            return HttpResponseRedirect(f"{request.path}?{ERROR_FLAG}=1")
        return super().changelist_view(request, extra_context)

"""For rows that only the machinery writes."""

from django.contrib.admin.options import BaseModelAdmin
from django.db.models import Model
from django.http import HttpRequest


class ReadOnly(BaseModelAdmin):  # type: ignore[type-arg]
    """Shows rows; nobody adds, changes or deletes them here."""

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

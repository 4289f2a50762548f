"""Text messages in the admin."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString
from phonenumber_field.phonenumber import to_python

from messaging.admin import words
from messaging.admin.read_only import ReadOnlyAdmin
from messaging.history.effect_trouble import failed_attempts, is_overdue
from messaging.models import Effect
from orders import sms
from orders.models import TextMessage


def sending_pill(effect: Effect | None) -> SafeString | str:
    """Return whether a text was sent, by its effect. A text without an effect is only a row."""
    if effect is None:
        return "in the database"
    if effect.is_failing:
        return words.pill("failing", f"not sent yet, {failed_attempts(effect)}")
    if is_overdue(effect):
        return words.pill("overdue", "not sent yet, overdue")
    match effect.state:
        case Effect.State.DONE:
            return words.pill("done", "sent")
        case Effect.State.FAILED:
            return words.pill("failed", "not sent, given up" if effect.given_up else "not sent, failed")
        case Effect.State.UNKNOWN:
            return words.pill("unknown", "sent or not: unknown")
        case Effect.State.SENDING:
            return words.pill("sending", "begun, no answer yet")
    return words.pill("pending", "not sent yet")


@admin.register(TextMessage)
class TextMessageAdmin(ReadOnlyAdmin):
    """Text messages, read-only. Phone numbers are masked."""

    list_display = ["order", "kind", "masked_phone", "sending", "body", "created_at"]
    list_filter = ["kind", "created_at"]
    list_select_related = ["order"]
    search_fields = ["order__number", "message_id"]
    search_help_text = "Searches order number, message id and whole phone numbers."
    fields = ("order", "kind", "masked_phone", "sending", "body", "message_id", "created_at")
    readonly_fields = fields

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[TextMessage], search_term: str
    ) -> tuple[QuerySet[TextMessage], bool]:
        """Find only whole phone numbers: a search for parts would reveal a number part by part."""
        number = to_python(search_term)
        if number and number.is_valid():
            return queryset.filter(phone=number), False
        return super().get_search_results(request, queryset, search_term)

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        """Refuse an address that filters by phone number."""
        return lookup.partition("__")[0] != "phone" and super().lookup_allowed(lookup, value, request)

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """Read the effects of all texts on the page at once."""
        found = super().get_changelist_instance(request)
        effects = sms.effects_of(found.result_list)
        for text in found.result_list:
            text.effect = effects.get(text.message_id)
        return found

    @admin.display(description="sent?")
    def sending(self, text: TextMessage) -> SafeString | str:
        """Whether it was sent."""
        effect = text.effect if hasattr(text, "effect") else sms.effects_of([text]).get(text.message_id)
        return sending_pill(effect)

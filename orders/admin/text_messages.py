"""Text messages in the admin."""

from django.contrib import admin

from orders.admin.read_only import ReadOnly
from orders.models import TextMessage


@admin.register(TextMessage)
class TextMessageAdmin(ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    """Text messages, to read. Phone numbers are masked in the list."""

    list_display = ["order", "kind", "masked_phone", "body", "created_at"]
    list_filter = ["kind", "created_at"]
    list_select_related = ["order"]
    search_fields = ["order__number", "phone", "message_id"]
    show_full_result_count = False

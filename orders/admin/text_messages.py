"""Text messages in the admin."""

from django.contrib import admin
from django.db.models import OuterRef, QuerySet, Subquery
from django.http import HttpRequest

from messaging.models import Effect
from orders import sms
from orders.admin.read_only import ReadOnly
from orders.models import TextMessage


@admin.register(TextMessage)
class TextMessageAdmin(ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    """Text messages, to read. Phone numbers are masked in the list."""

    list_display = ["order", "kind", "masked_phone", "sending", "body", "created_at"]
    list_filter = ["kind", "created_at"]
    list_select_related = ["order"]
    search_fields = ["order__number", "phone", "message_id"]
    show_full_result_count = False

    def get_queryset(self, request: HttpRequest) -> QuerySet[TextMessage]:
        """Return the texts, each with the state of its effect."""
        states = Effect.objects.filter(name=sms.EFFECT, message_id=OuterRef("message_id")).values("state")[:1]
        texts: QuerySet[TextMessage] = super().get_queryset(request)
        return texts.annotate(effect_state=Subquery(states))

    @admin.display(description="sent?")
    def sending(self, text: TextMessage) -> str:
        """Say whether it went out; one without an effect is all in its row."""
        state = getattr(text, "effect_state", None)
        return Effect.State(state).label if state else "in the database"

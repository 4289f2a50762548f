"""Effects in the admin: to read, and to settle."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from django.contrib import admin
from django.db.models import Q

from messaging.admin import payload
from messaging.admin.filters import BY_CONSUMER, BY_TROUBLE, since
from messaging.admin.messages import AttemptsInline, MessageAdmin, time_of
from messaging.models import Effect, EffectAttempt, InboxMessage


class EffectAttemptInline(AttemptsInline):
    """The attempts that did not succeed."""

    model = EffectAttempt
    title = "Attempts that did not succeed"
    none = "None."


@admin.register(Effect)
class EffectAdmin(MessageAdmin):
    """The effects of messages outside the database, and how far they are."""

    list_display = ["name", "state_pill", "consumer", "subject_link", "attempts", "changed_briefly"]
    list_filter = [BY_TROUBLE, "state", BY_CONSUMER, since("changed_at", states=Effect.State.values)]
    inlines = [EffectAttemptInline]
    list_select_related = ["inbox_message"]
    search_fields = ["inbox_message__subject", "message_id", "name", "consumer"]
    heavy_columns: ClassVar[list[str]] = ["payload", "inbox_message__body", "inbox_message__headers"]
    body_title: ClassVar[str] = "Payload"
    fieldsets = [
        ("Effect", {"fields": ["name", "key", "attempts", "reference", "error", "group"]}),
        ("When", {"fields": ["intended", "changed", "due", "until"]}),
        ("Message", {"fields": ["consumer", "message_id", "subject_link"]}),
    ]
    readonly_fields = ["key", "group", "intended", "changed", "due", "until", "subject_link"]

    intended = time_of("intended_at", "intended")
    changed = time_of("changed_at", "changed")
    changed_briefly = time_of("changed_at", "changed", short=True)
    due = time_of("send_at", "not before")
    until = time_of("sending_until", "sending until")

    def found_by(self, matches: Callable[[str], Q]) -> Q:
        """Return the effects of the messages whose subject or message id matches."""
        found = InboxMessage.objects.filter(matches("subject") | matches("message_id"))
        return Q(inbox_message__in=found.order_by().values("pk"))

    def body_text(self, row: Effect, unmasked: bool) -> str:
        """Return the payload, which the effect's function is given."""
        return payload.written_json(row.payload, unmasked=unmasked)

"""Inbox messages in the admin, each with its attempts."""

from __future__ import annotations

from typing import ClassVar

from django.contrib import admin
from django.db.models import (
    BooleanField,
    Case,
    CharField,
    Exists,
    ExpressionWrapper,
    OuterRef,
    Q,
    QuerySet,
    Value,
    When,
)
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, path
from django.views.decorators.http import require_safe

from messaging.admin import failures
from messaging.admin.filters import BY_CONSUMER, BY_TYPE, since
from messaging.admin.messages import AttemptsInline, MessageAdmin, time_of
from messaging.history.effect_trouble import EffectTrouble
from messaging.models import DeliveryAttempt, Effect, InboxMessage


class DeliveryAttemptInline(AttemptsInline):
    """The attempts, tracebacks folded."""

    model = DeliveryAttempt
    none = "None: the message never reached the handler."


@admin.register(InboxMessage)
class InboxMessageAdmin(MessageAdmin):
    """What each consumer has done about each message."""

    list_display = ["type_or_none", "state_pill", "consumer", "subject_link", "attempt", "received_briefly"]
    list_filter = ["state", BY_CONSUMER, BY_TYPE, since("received_at")]
    heavy_columns: ClassVar[list[str]] = ["body", "headers"]
    group_filter: ClassVar[dict[str, str]] = {"state__exact": InboxMessage.State.DEAD.value}
    inlines = [DeliveryAttemptInline]
    fieldsets = [
        ("At the consumer", {"fields": ["consumer", "attempt", "received", "changed", "reason", "group"]}),
        ("Message", {"fields": ["message_id", "identified", "type", "version", "subject", "correlation_id", "app_id"]}),
    ]
    readonly_fields = ["received", "changed", "group"]

    received = time_of("received_at", "received")
    received_briefly = time_of("received_at", "received", short=True)
    changed = time_of("changed_at", "changed")

    def get_urls(self) -> list[URLPattern]:
        """Add the page of failures."""
        view = self.admin_site.admin_view(require_safe(self.failures_view))
        return [path("failures/", view, name="messaging_inboxmessage_failures"), *super().get_urls()]

    def failures_view(self, request: HttpRequest) -> HttpResponse:
        """Show dead messages and troubled effects by the kind of their failure."""
        return failures.view(request, self.admin_site, self.opts, self.media)

    def get_queryset(self, request: HttpRequest) -> QuerySet[InboxMessage]:
        """Return the messages, each with the worst trouble of its effects, and whether a callback after its commit
        failed."""
        effects = Effect.objects.filter(inbox_message=OuterRef("pk"))
        worst_first = (When(Exists(effects.filter(each.which)), then=Value(each.value)) for each in EffectTrouble)
        # Of a success that an earlier version wrote as an attempt.
        failed_later = DeliveryAttempt.objects.filter(
            ~Q(error=""), inbox_message=OuterRef("pk"), outcome=DeliveryAttempt.Outcome.HANDLED
        )
        rows: QuerySet[InboxMessage] = super().get_queryset(request)
        return rows.annotate(
            effect_trouble=Case(*worst_first, output_field=CharField()),
            callback_failed=ExpressionWrapper(
                Q(handled_at__isnull=False) & ~Q(reason="") | Exists(failed_later), output_field=BooleanField()
            ),
        )

    def body_text(self, row: InboxMessage, unmasked: bool) -> str:
        """Return the body, which is kept while a message is retrying, waiting or dead."""
        if row.body is None:
            return "Not kept here once a message is handled. The outbox keeps what this project published."
        text = super().body_text(row, unmasked)
        return f"Only its beginning was kept: it was too large.\n{text}" if row.body_truncated else text

    @admin.display(description="type")
    def type_or_none(self, row: InboxMessage) -> str:
        """The type, if it has one."""
        return row.type or "(no type)"

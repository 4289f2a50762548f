"""Inbox messages in the admin, each with its attempts."""

from __future__ import annotations

from typing import ClassVar

from django.contrib import admin
from django.db.models import Case, CharField, Exists, IntegerField, OuterRef, Q, QuerySet, Subquery, Value, When
from django.http import HttpRequest
from django.utils.safestring import SafeString

from messaging import events
from messaging.admin import explanations, payload, words
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

    list_display = [
        "type_or_none",
        "state_pill",
        "consumer",
        "subject_link",
        "attempt",
        "received_briefly",
    ]
    list_filter = ["state", BY_CONSUMER, BY_TYPE, since("received_at")]
    heavy_columns: ClassVar[list[str]] = ["body", "headers"]
    group_filter: ClassVar[dict[str, str]] = {"state__exact": InboxMessage.State.DEAD.value}
    inlines = [DeliveryAttemptInline]
    fieldsets = [
        ("At the consumer", {"fields": ["consumer", "attempt", "received", "changed", "reason", "group"]}),
        (
            "Message",
            {"fields": ["message_id", "identified", "type", "version", "subject", "correlation_id", "app_id"]},
        ),
    ]

    readonly_fields = ["received", "changed", "group"]

    received = time_of("received_at", "received")
    received_briefly = time_of("received_at", "received", short=True)
    changed = time_of("changed_at", "changed")

    def get_queryset(self, request: HttpRequest) -> QuerySet[InboxMessage]:
        """Return the messages, each with the worst trouble of its effects, and whether a callback after its commit
        failed."""
        ranks = [When(trouble.which, then=Value(trouble.value)) for trouble in EffectTrouble]
        order = [When(trouble.which, then=Value(rank)) for rank, trouble in enumerate(EffectTrouble)]
        troubled = (
            Effect.objects.filter(inbox_message=OuterRef("pk"))
            .annotate(trouble=Case(*ranks, output_field=CharField()))
            .exclude(trouble=None)
            .order_by(Case(*order, output_field=IntegerField()))
        )
        failed_later = DeliveryAttempt.objects.filter(
            ~Q(error=""), inbox_message=OuterRef("pk"), outcome=DeliveryAttempt.Outcome.HANDLED
        )
        rows: QuerySet[InboxMessage] = super().get_queryset(request)
        return rows.annotate(
            effect_trouble=Subquery(troubled.values("trouble")[:1]), callback_failed=Exists(failed_later)
        )

    def pill_of(self, row: InboxMessage) -> SafeString:
        """Return the state; of a handled message also the trouble of its effect, or a failed callback."""
        if row.state in {InboxMessage.State.HANDLED, InboxMessage.State.EFFECTS_DUE}:
            if trouble := getattr(row, "effect_trouble", None):
                return words.pill(trouble, f"handled, effect {trouble}")
            if getattr(row, "callback_failed", False):
                return words.pill("failed", "handled, callback failed")
        return words.pill(row.state)

    def explain(self, row: InboxMessage) -> explanations.Explanation:
        """Return what the row's state means."""
        return explanations.explain_inbox(
            row,
            effect_trouble=getattr(row, "effect_trouble", None) or "",
            callback_failed=getattr(row, "callback_failed", False),
        )

    def body_text(self, row: InboxMessage, unmasked: bool) -> str:
        """Return the body, which is kept while a message is retrying, waiting or dead."""
        if row.body is None:
            return "Not kept here once a message is handled. The outbox keeps what this project published."
        text = payload.written(bytes(row.body), unmasked=unmasked, secrets=events.secrets_of(row.type))
        return f"Only its beginning was kept: it was too large.\n{text}" if row.body_truncated else text

    @admin.display(description="type")
    def type_or_none(self, row: InboxMessage) -> str:
        """The type, if it has one."""
        return row.type or "(no type)"

"""Outbox messages in the admin, and the story of a subject."""

from __future__ import annotations

from typing import ClassVar

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.views.decorators.http import require_safe

from messaging.admin import payload
from messaging.admin.filters import BY_TYPE, since
from messaging.admin.messages import MessageAdmin, time_of
from messaging.admin.story import lines, may_read_stories
from messaging.history import timeline
from messaging.models import OutboxMessage


@admin.register(OutboxMessage)
class OutboxMessageAdmin(MessageAdmin):
    """What was written, and how far it has come on its way to the broker."""

    list_display = ["type", "state_pill", "subject_link", "addressee", "created_briefly", "published_briefly"]
    list_filter = ["state", BY_TYPE, since("created_at", states=OutboxMessage.State.values)]
    heavy_columns: ClassVar[list[str]] = ["body", "headers", "expected_consumers"]
    fieldsets = [
        ("Message", {"fields": ["message_id", "type", "version", "subject", "correlation_id", "origin"]}),
        ("Address", {"fields": ["exchange", "routing_key", "priority", "addressee", "expected"]}),
        ("Publishing", {"fields": ["created", "due", "published", "publish_attempts", "last_error", "leased"]}),
    ]
    readonly_fields = ["addressee", "expected", "created", "due", "published", "leased"]

    created = time_of("created_at", "created")
    created_briefly = time_of("created_at", "created", short=True)
    due = time_of("publish_at", "publish not before")
    published = time_of("published_at", "published")
    published_briefly = time_of("published_at", "published", short=True)
    leased = time_of("lease_until", "leased until")

    def get_urls(self) -> list[URLPattern]:
        """Add the page of a subject's story."""
        view = self.admin_site.admin_view(require_safe(self.story_view))
        return [path("story/", view, name="messaging_outboxmessage_story"), *super().get_urls()]

    def story_view(self, request: HttpRequest) -> HttpResponse:
        """Show everything that happened to the messages about `?subject=`."""
        if not may_read_stories(request):
            raise PermissionDenied
        subject = request.GET.get("subject", "").replace("\x00", "").strip()
        story = timeline.for_subject(subject)
        context = {
            **self.admin_site.each_context(request),
            "title": f"The story of {subject}" if subject else "The story of a subject",
            "subject": subject,
            "story": story,
            "story_lines": lines(story, unmasked=payload.may_be_seen_by(request.user)),
            "opts": self.opts,
            "media": self.media,
        }
        return TemplateResponse(request, "messaging/admin/subject.html", context)

    @admin.display(description="for")
    def addressee(self, row: OutboxMessage) -> str:
        """Its only consumer, and which attempt it is."""
        return f"{row.consumer}, attempt {row.attempt}" if row.consumer else "all"

    @admin.display(description="expected consumers")
    def expected(self, row: OutboxMessage) -> str:
        """The consumers that must receive it, as registered when it was published."""
        return ", ".join(map(str, row.expected_consumers)) or "–"

"""The audit log in the admin: who did what to which messages. To read only."""

from __future__ import annotations

import json
from typing import ClassVar
from urllib.parse import urlencode

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from messaging.actions.audit import VIEW_PAYLOAD
from messaging.admin import payload
from messaging.admin.filters import BY_ACTION, since
from messaging.admin.links import admin_url
from messaging.admin.long_lists import LongListAdmin
from messaging.admin.messages import time_of
from messaging.admin.searching import ASKED_FOR
from messaging.history.since import outcome_since
from messaging.masking import masked, masked_text
from messaging.models import OperatorAction

#: Messages that the page of one action names.
NAMED = 100


@admin.register(OperatorAction)
class OperatorActionAdmin(LongListAdmin):
    """What people did."""

    list_display = ["action", "actor", "about_masked", "changed", "when"]
    list_filter = [BY_ACTION, since("at")]
    search_fields = ["actor", "about"]
    search_help_text = (
        f"Searches who did it and what it was done to, among the newest {ASKED_FOR:,}; not notes, reasons or details. "
        "Looks at payloads have a list of their own: choose the action view payload."
    )
    actions = None
    fields = ["action", "actor", "about_masked", "changed", "when_exactly", "details_masked", "since_then", "messages"]
    readonly_fields: ClassVar[list[str]] = ["about_masked", "when_exactly", "details_masked", "since_then", "messages"]

    when = time_of("at", "when", short=True)
    when_exactly = time_of("at", "when")

    def get_search_fields(self, request: HttpRequest) -> list[str]:
        """Find masked values only as a whole: otherwise a search would reveal them piece by piece."""
        return ["actor", "about" if payload.may_be_seen_by(request.user) else "=about"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[OperatorAction]:
        """Leave looks at payloads out of the list, unless it is filtered by them: there are many."""
        rows: QuerySet[OperatorAction] = super().get_queryset(request)
        match = request.resolver_match
        is_list = match is not None and "object_id" not in match.kwargs
        return rows.exclude(action=VIEW_PAYLOAD) if is_list and "action" not in request.GET else rows

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        """Refuse to filter by what may be masked."""
        return lookup.partition("__")[0] not in {"about", "details"} and super().lookup_allowed(lookup, value, request)

    @admin.display(description="about")
    def about_masked(self, action: OperatorAction) -> str:
        """What it was done to, without phone numbers: a filter may have been one."""
        return masked_text(action.about) or "–"

    @admin.display(description="details")
    def details_masked(self, action: OperatorAction) -> str:
        """Note and options."""
        return json.dumps(masked(action.details), ensure_ascii=False) if action.details else "–"

    @admin.display(description="since then")
    def since_then(self, action: OperatorAction) -> str:
        """What has become of the messages since."""
        return ", ".join(f"{number} {words}" for number, words in outcome_since(action)) or "–"

    @admin.display(description="messages")
    def messages(self, action: OperatorAction) -> SafeString | str:
        """The messages that it changed or showed."""
        there = admin_url("messaging_inboxmessage_changelist")
        found = action.messages.order_by("id").values_list("message_id", flat=True)[: NAMED + 1]
        links = format_html_join(
            "\n", '<a href="{}?{}">{}</a>', ((there, urlencode({"q": each}), each) for each in found[:NAMED])
        )
        return format_html("{}{}", links, " and more" if len(found) > NAMED else "") if found else "–"

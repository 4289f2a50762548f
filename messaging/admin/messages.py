"""What the pages of outbox, inbox and effects share: lists, search, the story of a message, and its actions."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, ClassVar
from urllib.parse import urlencode

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.template.defaultfilters import truncatechars
from django.urls import URLPattern, path
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.views.decorators.http import require_POST

from messaging import database, events
from messaging.actions import audit
from messaging.actions.selection import COLUMNS, Columns
from messaging.admin import actions, explanations, payload, searching, words
from messaging.admin.links import admin_url
from messaging.admin.long_lists import LongListAdmin, note_how
from messaging.admin.read_only import ReadOnly
from messaging.admin.searching import ANYWHERE, How, begins_with, is_whole
from messaging.admin.story import lines, may_read_stories, story_url
from messaging.history import timeline
from messaging.masking import masked_text
from messaging.models import Effect, InboxMessage, OutboxMessage


def time_of(column: str, label: str, *, short: bool = False) -> staticmethod[[Any], str]:
    """Return a column for lists and pages that shows a time to the second (`short`) or millisecond."""

    @admin.display(description=label)
    def shown(row: Any) -> str:
        time = getattr(row, column)
        return "–" if time is None else words.short_moment(time) if short else words.moment(time)

    return staticmethod(shown)


class AttemptsInline(ReadOnly, admin.TabularInline):  # type: ignore[type-arg]
    """The attempts of a message or an effect. They are part of it."""

    template = "messaging/admin/attempts.html"
    title = "Attempts"
    #: What the page says if there was none.
    none: str
    fields = readonly_fields = ("number", "outcome")
    extra = 0

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Show them to users who may see the row."""
        return request.user.has_perm(f"messaging.view_{self.parent_model._meta.model_name}")


class MessageAdmin(LongListAdmin):
    """The parent of the admins of outbox, inbox and effects."""

    change_form_template = "messaging/admin/message.html"
    search_fields = ["subject", "message_id", "type", "consumer"]
    search_help_text = (
        "Searches order numbers and message ids by how they begin. ~WORDS looks for words anywhere in order number, "
        f"message id, type or name, and consumer, among the newest {searching.ASKED_FOR:,}; not in error texts (see "
        "`manage.py messages list --reason TEXT`) nor in a body, such as for a phone number."
    )
    #: Large columns that the list does not show.
    heavy_columns: ClassVar[list[str]] = []
    #: What the page calls the body.
    body_title: ClassVar[str] = "Body"
    #: What the list of a failure group is filtered by besides.
    group_filter: ClassVar[dict[str, str]] = {}

    @property
    def columns(self) -> Columns:
        """Where the rows hold their subject, last error and so on."""
        return COLUMNS[self.model]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Read bodies and headers for a single message only."""
        rows: QuerySet[Any] = super().get_queryset(request)
        match = request.resolver_match
        return rows if match and "object_id" in match.kwargs else rows.defer(*self.heavy_columns)

    def get_urls(self) -> list[URLPattern]:
        """Add where actions are asked for."""
        view = self.admin_site.admin_view(require_POST(self.operate_view))
        name = f"messaging_{self.opts.model_name}_operate"
        return [path("operate/<slug:name>/", view, name=name), *super().get_urls()]

    def operate_view(self, request: HttpRequest, name: str) -> HttpResponse:
        """Ask for confirmation, or do what was confirmed."""
        return actions.operate(request, self, name)

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        """Offer the actions that this user may do, and none of Django's."""
        return {each.name: (actions.in_list(each), each.name, each.label) for each in actions.offered(request, self)}

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        """Refuse to filter by payload: it would reveal piece by piece what is masked."""
        column = lookup.partition("__")[0]
        return column not in {"body", "headers", "payload", "reason", "last_error", "error"} and super().lookup_allowed(
            lookup, value, request
        )

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Find subjects and message ids by index: as a whole, else by their beginning. If there are none, or after a ~,
        look for each word among the newest rows."""
        term = search_term.strip()
        if not term or term.startswith(ANYWHERE):
            note_how(request, How.WORDS if term else How.WHOLE)
            return self.with_words(request, queryset, term.removeprefix(ANYWHERE), searching.ASKED_FOR)
        for how, matches in ((How.WHOLE, is_whole(term)), (How.BEGINNING, begins_with(term))):
            found = self.found_by(matches)
            if self.model._default_manager.filter(found).exists():
                note_how(request, how)
                return queryset.filter(found), False
        note_how(request, How.WORDS_AT_ONCE)
        return self.with_words(request, queryset, term, searching.AT_ONCE)

    def found_by(self, matches: Callable[[str], Q]) -> Q:
        """Return the rows whose subject or message id matches."""
        return matches("subject") | matches("message_id")

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Show the list, or ask for an action on its rows."""
        if request.method not in {"GET", "HEAD"} and not self._asks_for_what_is_offered(request):
            return HttpResponseNotAllowed(["GET", "HEAD"])
        return super().changelist_view(request, extra_context)

    def _asks_for_what_is_offered(self, request: HttpRequest) -> bool:
        # Django answers an empty choice with a hint.
        offered = {"", *self.get_actions(request)}
        return request.method == "POST" and len(offered) > 1 and offered.issuperset(request.POST.getlist("action"))

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        """Return the row, its error masked unless the user may see payloads."""
        row = super().get_object(request, object_id, from_field)
        if row is not None and not payload.may_be_seen_by(request.user):
            # It is never saved: these pages are read-only.
            setattr(row, self.columns.reason, masked_text(getattr(row, self.columns.reason)))
        return row

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """Add what the page shows beyond columns: explanation, story, payload, actions."""
        row: OutboxMessage | InboxMessage | Effect = context["original"]
        unmasked = payload.may_be_seen_by(request.user)
        if unmasked:
            self._audit_view(request, row)
        meaning, what_next = explanations.explain(row)
        headers = getattr(row, "headers", None)
        context.update(
            title=str(row),
            subtitle=None,
            state=words.pill_of(row),
            meaning=meaning,
            what_next=what_next,
            body_title=self.body_title,
            body_text=self.body_text(row, unmasked),
            headers_text=payload.written_json(headers, unmasked=unmasked) if headers else "",
            has_masks=not unmasked,
            actions=actions.on_page(request, self, row),
        )
        if may_read_stories(request):
            story = timeline.for_message(row.message_id)
            context.update(story=story, story_lines=lines(story, unmasked=unmasked))
            if subject := self.subject_of(row):
                context.update(subject=subject, story_url=story_url(subject))
        return super().render_change_form(request, context, *args, **kwargs)

    def body_text(self, row: Any, unmasked: bool) -> str:
        """Return the body as the page shows it."""
        return payload.written(bytes(row.body or b""), unmasked=unmasked, secrets=events.secrets_of(row.type))

    def subject_of(self, row: Any) -> str:
        """Return the subject of the row's message."""
        subject: str = attrgetter(self.columns.subject.replace("__", "."))(row)
        return subject

    def _audit_view(self, request: HttpRequest, row: OutboxMessage | InboxMessage | Effect) -> None:
        with database.atomic():
            audit.record(
                audit.VIEW_PAYLOAD,
                actor=request.user.get_username(),
                about=f"{self.opts.verbose_name} {row.pk}",
                message_ids=[row.message_id],
                changed=0,
            )

    @admin.display(description="state")
    def state_pill(self, row: Any) -> SafeString:
        """The state as icon and word, and the last error in a line. A list never shows phone numbers."""
        trouble = masked_text(" ".join(getattr(row, self.columns.reason)[:500].split()))
        return format_html(
            '{}<span class="messaging-detail">{}</span>', words.pill_of(row), truncatechars(trouble, 100)
        )

    @admin.display(description="failure group")
    def group(self, row: Any) -> SafeString | str:
        """The failure group, with a link to the rows that have it."""
        if not row.failure_group:
            return "–"
        there = admin_url(f"messaging_{self.opts.model_name}_changelist")
        query = urlencode({"failure_group": row.failure_group, **self.group_filter})
        return format_html('<a href="{}?{}">{}</a>', there, query, row.failure_group)

    @admin.display(description="subject")
    def subject_link(self, row: Any) -> SafeString | str:
        """The subject, with its story behind it."""
        subject = self.subject_of(row)
        return format_html('<a href="{}">{}</a>', story_url(subject), subject) if subject else "–"

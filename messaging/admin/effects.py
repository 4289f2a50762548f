"""Effects in the admin: to read, and to settle."""

from __future__ import annotations

from typing import Any, ClassVar
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.views.decorators.http import require_POST

from messaging.actions import settle
from messaging.actions.settle import SETTLES, Verdict
from messaging.admin import payload, words
from messaging.admin.filters import ChangedFilter, ConsumerFilter, TroubleFilter
from messaging.admin.links import admin_url
from messaging.admin.messages import MessageAdmin, time_of
from messaging.admin.operations import NOTE_LIMIT
from messaging.admin.read_only import ReadOnly
from messaging.models import Effect, EffectAttempt

_VERDICTS = {
    Verdict.DONE: "It was done.",
    Verdict.NOT_DONE: "It surely was not done: carry it out again.",
    Verdict.GIVE_UP: "Give up: it is not tried again, and no longer counts as a failure.",
}


class EffectAttemptInline(ReadOnly, admin.TabularInline):  # type: ignore[type-arg]
    """What the attempts that did not succeed came to, one below the other."""

    model = EffectAttempt
    template = "messaging/admin/effect_attempts.html"
    fields = readonly_fields = ("number", "outcome")
    extra = 0

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """They are a part of the effect: who may see one may see the other."""
        return request.user.has_perm("messaging.view_effect")


@admin.register(Effect)
class EffectAdmin(MessageAdmin):
    """What follows from messages outside the database, and how far it has come."""

    change_form_template = "messaging/admin/effect.html"
    list_display = ["name", "state_pill", "consumer", "subject_link", "attempts", "changed_briefly"]
    list_filter = [TroubleFilter, "state", ConsumerFilter, ChangedFilter]
    inlines = [EffectAttemptInline]
    list_select_related = ["inbox_message"]
    search_fields = ["inbox_message__subject", "message_id", "name", "consumer"]
    search_help_text = (
        "Searches order number, message id, name and consumer; not error texts (see `manage.py messages list "
        "--reason TEXT`) nor what is in a payload, such as a phone number."
    )
    exact_fields: ClassVar[tuple[str, ...]] = ("inbox_message__subject", "message_id")
    heavy_columns: ClassVar[list[str]] = ["payload", "inbox_message__body", "inbox_message__headers"]
    body_title: ClassVar[str] = "Payload"
    trouble_column: ClassVar[str] = "error"
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

    def get_urls(self) -> list[URLPattern]:
        """Add where an effect is settled."""
        view = self.admin_site.admin_view(require_POST(self.settle_view))
        return [path("<int:pk>/settle/", view, name="messaging_effect_settle"), *super().get_urls()]

    def settle_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Settle an effect as the form says, and show it."""
        if not (request.user.has_perm("messaging.settle_effect") and self.has_view_permission(request)):
            raise PermissionDenied
        effect = Effect.objects.filter(pk=pk).first()
        if effect is None:
            raise Http404
        self._settle(request, effect)
        return HttpResponseRedirect(admin_url("messaging_effect_change", pk))

    def _settle(self, request: HttpRequest, effect: Effect) -> None:
        try:
            verdict = Verdict(request.POST.get("verdict", ""))
        except ValueError:
            messages.error(request, "Say what became of it.")
            return
        reference, note = (
            request.POST.get(name, "").replace("\x00", "").strip()[:limit]
            for name, limit in (("reference", 255), ("note", NOTE_LIMIT))
        )
        if settle.settle(
            effect,
            verdict,
            by=request.user.get_username(),
            reference=reference if verdict is Verdict.DONE else "",
            note=note,
        ):
            messages.success(request, "Settled.")
        else:
            effect.refresh_from_db()
            messages.error(request, f"It is {effect.state} meanwhile: it was not settled.")

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """Add the form that settles it, for whom may."""
        effect: Effect = context["original"]
        if request.user.has_perm("messaging.settle_effect"):
            context["verdicts"] = [
                (verdict.value, _VERDICTS[verdict]) for verdict, states in SETTLES.items() if effect.state in states
            ]
            context["may_be_done"] = effect.state in SETTLES[Verdict.DONE]
            context["settle_url"] = admin_url("messaging_effect_settle", effect.pk)
            context["note_limit"] = NOTE_LIMIT
        return super().render_change_form(request, context, *args, **kwargs)

    @admin.display(description="failure group")
    def group(self, row: Effect) -> SafeString | str:
        """The group, with the effects behind it that failed likewise."""
        if not row.failure_group:
            return "–"
        there = admin_url("messaging_effect_changelist")
        return format_html(
            '<a href="{}?{}">{}</a>', there, urlencode({"failure_group": row.failure_group}), row.failure_group
        )

    def pill_of(self, row: Effect) -> SafeString:
        """Return the state; of one of which an attempt failed and another one follows, that it is failing."""
        return words.effect_pill(row)

    def explain(self, row: Effect) -> words.Explanation:
        """Return what the row's state means."""
        return words.explain_effect(row)

    def body_text(self, row: Effect, unmasked: bool) -> str:
        """Return the payload: what the effect's function is given."""
        return payload.written_json(row.payload, unmasked=unmasked)

    def headers_text(self, row: Effect, unmasked: bool) -> str:
        """An effect has none."""
        return ""

    def subject_of(self, row: Effect) -> str:
        """Return what the message is about that it follows from."""
        return row.inbox_message.subject

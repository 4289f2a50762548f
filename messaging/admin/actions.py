"""Actions on messages: chosen in a list or on a message's page, confirmed after a plan was shown, done by POST.

Each needs its own permission.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin import ModelAdmin
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse

from messaging.actions import on_messages
from messaging.actions.action import MessageAction, Option
from messaging.actions.selection import Selection
from messaging.admin import failures
from messaging.admin.links import admin_url

#: Rows that one request changes: it must not take long, and Django takes no form of more than a thousand fields. The
#: commands have no limit.
LIMIT = 500
#: Characters that are kept of a note, and of another text.
NOTE_LIMIT = 500
TEXT_LIMIT = 255


def offered(request: HttpRequest, model_admin: ModelAdmin[Any]) -> list[MessageAction]:
    """Return the actions on this admin's rows that the user may do."""
    return [each for each in _of(model_admin) if request.user.has_perm(each.permission)]


def in_list(action: MessageAction) -> Callable[..., HttpResponse]:
    """Return the action of a list that asks for `action`."""

    @admin.action(description=action.label)
    def act(model_admin: ModelAdmin[Any], request: HttpRequest, rows: QuerySet[Any]) -> HttpResponse:
        chosen = rows.order_by("pk").values_list("pk", flat=True)[: LIMIT + 1]
        return _ask(request, model_admin, action, list(chosen))

    return act


def on_page(request: HttpRequest, model_admin: ModelAdmin[Any], row: Any) -> list[dict[str, Any]]:
    """Return what the page of a row offers: each action with its address, and the fields of its form."""
    return [
        {
            "name": each.name,
            "label": each.label,
            "address": _address(model_admin, each),
            "options": _fields(each.options_for(row)),
            "note_limit": NOTE_LIMIT,
        }
        for each in offered(request, model_admin)
        if row.state in each.states[model_admin.model]
    ]


def operate(request: HttpRequest, model_admin: ModelAdmin[Any], name: str) -> HttpResponse:
    """Answer a POST that asks for an action on the rows in `row`: ask for confirmation, or do what is confirmed."""
    action = next((each for each in _of(model_admin) if each.name == name), None)
    if action is None:
        raise Http404
    if not (request.user.has_perm(action.permission) and model_admin.has_view_permission(request)):
        raise PermissionDenied
    rows = _rows(request, model_admin, action)
    if "confirmed" not in request.POST or not rows or len(rows) > LIMIT:
        return _ask(request, model_admin, action, rows)
    _do(request, action, Selection.of_rows(model_admin.model, rows))
    if request.POST["confirmed"] == "here":
        return HttpResponseRedirect(admin_url(f"messaging_{model_admin.opts.model_name}_change", rows[0]))
    return HttpResponseRedirect(_list_of(model_admin, request))


def _rows(request: HttpRequest, model_admin: ModelAdmin[Any], action: MessageAction) -> list[int]:
    """Return the ids of the rows that were chosen: each by itself, or all of a failure group, or the first of it."""
    if group := request.POST.get("group"):
        found = failures.rows_of(action, model_admin.model, group, request.POST.get("state", ""))
        return list(found.values_list("pk", flat=True)[: 1 if "first" in request.POST else LIMIT + 1])
    asked = request.POST.getlist("row")
    return sorted({int(row) for row in asked if row.isascii() and row.isdigit() and len(row) < 19})


def _do(request: HttpRequest, action: MessageAction, selection: Selection) -> None:
    """Do it with the form's options, and show the outcome."""
    options: dict[str, Any] = {each.name: _text(request, each.name, TEXT_LIMIT) for each in _fields(action.options)}
    try:
        action.check(selection, **options)
    except ValueError as error:
        messages.error(request, f"Nothing was done: {error}.")
        return
    note = _text(request, "note", NOTE_LIMIT)
    result = action.run(selection, by=request.user.get_username(), note=note, **options)
    if result.stopped:
        messages.error(request, f"{result.text} {result.stopped}")
    elif not result.changed:
        messages.warning(request, f"Nothing was done: {action.why_nothing(selection, **options)}.")
    else:
        messages.add_message(request, messages.WARNING if result.is_partial else messages.SUCCESS, result.text)


def _ask(
    request: HttpRequest, model_admin: ModelAdmin[Any], action: MessageAction, rows: Sequence[int]
) -> HttpResponse:
    """Show what the action would do to these rows, and ask for confirmation."""
    chosen = rows[:LIMIT]
    context = {
        **model_admin.admin_site.each_context(request),
        "title": action.label,
        "action": action,
        "plan": action.plan(Selection.of_rows(model_admin.model, chosen)) if chosen else None,
        "options": _fields(_options(request, model_admin, action, chosen)),
        "rows": chosen,
        "limit": LIMIT if len(rows) > LIMIT else None,
        "note_limit": NOTE_LIMIT,
        "address": _address(model_admin, action),
        "query": request.GET.urlencode(),
        "back": _list_of(model_admin, request),
        "opts": model_admin.opts,
        "media": model_admin.media,
    }
    return TemplateResponse(request, "messaging/admin/confirm.html", context)


def _options(
    request: HttpRequest, model_admin: ModelAdmin[Any], action: MessageAction, rows: Sequence[int]
) -> Sequence[Option]:
    """Return the options that make sense: for failures of one kind, which are in one state, those of that state."""
    first = model_admin.model._default_manager.filter(pk__in=rows[:1]).first() if "group" in request.POST else None
    return action.options_for(first) if first else action.options


def _of(model_admin: ModelAdmin[Any]) -> list[MessageAction]:
    return [each for each in on_messages() if model_admin.model in each.states]


def _fields(options: Sequence[Option]) -> list[Option]:
    return [each for each in options if each.type is str]


def _text(request: HttpRequest, name: str, limit: int) -> str:
    return request.POST.get(name, "").replace("\x00", "").strip()[:limit]


def _address(model_admin: ModelAdmin[Any], action: MessageAction) -> str:
    return admin_url(f"messaging_{model_admin.opts.model_name}_operate", action.name)


def _list_of(model_admin: ModelAdmin[Any], request: HttpRequest) -> str:
    """Where the rows were chosen: the list, filtered as it was, or the page of failures."""
    if request.GET.dict() == failures.FROM_HERE:
        return failures.url()
    there = admin_url(f"messaging_{model_admin.opts.model_name}_changelist")
    query = request.GET.urlencode()
    return f"{there}?{query}" if query else there

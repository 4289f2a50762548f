"""Failures by their kind: dead messages, and effects that failed, are failing, unknown or overdue, with what can be
done about all of a kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.safestring import SafeString

from messaging.actions import on_messages
from messaging.actions.action import MessageAction
from messaging.actions.selection import Box, Selection
from messaging.admin import words
from messaging.admin.links import admin_url
from messaging.history import listing
from messaging.history.effect_trouble import EffectTrouble
from messaging.history.listing import FailureGroup
from messaging.masking import masked_text
from messaging.models import Effect, InboxMessage

#: How many kinds the page shows.
MOST = 100
#: Characters of a reason that it shows.
REASON_LIMIT = 300
#: Says in an address that a person came from this page, and goes back there.
FROM_HERE = {"from": "failures"}
#: The state of effects with a trouble that is no state.
_STATES: dict[str, str] = dict.fromkeys((EffectTrouble.FAILING, EffectTrouble.OVERDUE), Effect.State.INTENDED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A kind of failure as pages show it: the address of its rows, and the actions on all of them with theirs."""

    group: FailureGroup
    state: SafeString
    reason: str
    url: str
    actions: Sequence[tuple[MessageAction, str]]

    @property
    def id(self) -> str:
        """Its id in the page. htmx gives the focus back to the element of the same id when it replaces the page."""
        return f"{self.group.state}-{self.group.consumer}-{self.group.type}-{self.group.group}"


def view(request: HttpRequest, site: AdminSite, opts: Any, media: Any) -> HttpResponse:
    """Show the kinds of failures, the most frequent first."""
    if not request.user.has_perms(["messaging.view_inboxmessage", "messaging.view_effect"]):
        raise PermissionDenied
    context = {
        **site.each_context(request),
        "title": "Failures",
        "groups": [line(request, each) for each in listing.failure_groups(Selection(), MOST)],
        "most": MOST,
        "opts": opts,
        "media": media,
    }
    return TemplateResponse(request, "messaging/admin/failures.html", context)


def line(request: HttpRequest, group: FailureGroup) -> Line:
    """Return a kind of failure for a page. Phone numbers in its reason are masked."""
    box = listing.BOXES[group.box]
    model = box._meta.model_name
    which = {"state__exact": group.state} if box is InboxMessage else {"trouble": group.state}
    if group.group:
        which["failure_group"] = group.group
    else:
        which["consumer"] = group.consumer
    return Line(
        group=group,
        state=words.pill(group.state),
        reason=masked_text(" ".join(group.reason.split()))[:REASON_LIMIT],
        url=f"{admin_url(f'messaging_{model}_changelist')}?{urlencode(which)}",
        actions=[
            (each, f"{admin_url(f'messaging_{model}_operate', each.name)}?{urlencode(FROM_HERE)}")
            for each in on_messages()
            if group.group and _is_for(each, box, group.state) and request.user.has_perm(each.permission)
        ],
    )


def _is_for(action: MessageAction, box: Box, state: str) -> bool:
    """Whether `action` is for rows of this state, or for effects with this trouble."""
    return _STATES.get(state, state) in action.states.get(box, ())


def rows_of(action: MessageAction, box: Box, group: str, state: str) -> QuerySet[Any]:
    """Return the rows of one kind of failure that `action` can change, the oldest first."""
    rows = action.rows(box, Selection(group=group)).order_by("pk")
    return rows.filter(EffectTrouble(state).which) if box is Effect and state in set(EffectTrouble) else rows


def url() -> str:
    """Return the address of the page."""
    return admin_url("messaging_inboxmessage_failures")

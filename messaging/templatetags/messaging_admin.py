"""Words and parts of the message pages, as template filters and tags."""

from typing import TYPE_CHECKING, Any

from django import template
from django.apps import apps
from django.utils.safestring import SafeString

from messaging.masking import masked_text

if TYPE_CHECKING:
    from messaging.admin.overview import Overview

register = template.Library()
register.filter("masked_text", masked_text)

# Django imports the template tags of every app at each command, also in a project that has no admin.
if apps.is_installed("django.contrib.admin"):
    from messaging.admin import links, words

    register.simple_tag(links.admin_url, name="messaging_url")
    for each in (
        words.pill,
        words.icon,
        words.moment,
        words.short_moment,
        words.clock,
        words.span,
        words.with_commands,
    ):
        register.filter(each.__name__, each)


@register.simple_tag(takes_context=True)
def messaging_overview(context: template.RequestContext) -> "Overview | None":
    """Return what the overview shows; None to users who may not read all that it sums up."""
    from messaging.admin import overview

    request = context.request
    return overview.overview(request) if overview.may_read(request) else None


@register.simple_tag(takes_context=True)
def messaging_wrong(context: template.RequestContext) -> dict[str, Any] | None:
    """Return what is wrong in outbox, inbox and effects; None if nothing is, and to users who may not read them."""
    from messaging.admin import overview
    from messaging.monitoring import status

    sentences = status.wrong_in(status.boxes()) if overview.may_read(context.request) else []
    return {"headline": overview.headline(len(sentences)), "sentences": sentences} if sentences else None


@register.simple_tag(takes_context=True)
def htmx_if_installed(context: template.Context) -> SafeString | str:
    """Return the script that lets a page look again by itself, if the project has installed django-htmx."""
    if not apps.is_installed("django_htmx"):
        return ""
    from django_htmx.jinja import htmx_script

    return htmx_script(nonce=context.get("csp_nonce"))

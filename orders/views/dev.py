"""A window for developers; closed unless DEBUG is on."""

from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from orders.models import TextMessage

NEWEST = 100


@never_cache
@require_safe
def text_messages(request: HttpRequest) -> HttpResponse:
    """The newest text messages, as their receivers would see them."""
    if not settings.DEBUG:
        raise Http404("The preview exists with DEBUG only.")
    texts = TextMessage.objects.select_related("order")[:NEWEST]
    return render(request, "orders/text_messages.html", {"texts": texts})

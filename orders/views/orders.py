"""The pages of an order, and the ways to find it again."""

from django.conf import settings
from django.contrib import messages
from django.core.paginator import Paginator
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_safe

from orders import destinations, services
from orders.exceptions import TooLate
from orders.forms import FindOrderForm
from orders.limits import TooManyTries
from orders.models import Order, RedPacket, TextMessage
from orders.timeline import timeline_of
from orders.views.errors import too_many
from orders.visitors import address_of, find_order, get_visible_order, show_to_guest, visitor

PER_PAGE = 20
#: Text messages that the preview shows.
NEWEST_TEXTS = 100
#: htmx stops polling when an answer has this status.
STOP_POLLING = 286


@never_cache
@require_safe
def order(request: HttpRequest, number: str) -> HttpResponse:
    """Show an order: its confirmation, tracking and record have one address."""
    found = get_visible_order(request, number)
    context = {
        "order": found,
        "lines": found.lines.select_related("product"),
        "timeline": timeline_of(found),
        "country": destinations.name_of(found.destination),
    }
    return render(request, "orders/order.html", context)


@never_cache
@require_safe
def timeline(request: HttpRequest, number: str) -> HttpResponse:
    """Show the timeline alone, for the page that refreshes itself until everything is done."""
    found = timeline_of(get_visible_order(request, number))
    if found.keeps_refreshing and request.GET.get("seen") == found.fingerprint:
        return HttpResponse(status=204)  # nothing to swap: a screen reader does not read it again
    status = 200 if found.keeps_refreshing else STOP_POLLING
    return render(request, "orders/_timeline.html", {"timeline": found}, status=status)


@never_cache
@require_safe
def timeline_json(request: HttpRequest, number: str) -> JsonResponse:
    """Return the timeline for programs."""
    return JsonResponse(timeline_of(get_visible_order(request, number)).as_json())


@never_cache
@require_safe
def documents(request: HttpRequest, number: str) -> HttpResponse:
    """Show the order's documents, to print or keep."""
    found = get_visible_order(request, number)
    context = {
        "order": found,
        "lines": found.lines.all(),
        "documents": found.documents.all(),
        "country": destinations.name_of(found.destination),
    }
    return render(request, "orders/documents.html", context)


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def cancel(request: HttpRequest, number: str) -> HttpResponse:
    """Ask, then cancel. Cancelling twice is harmless."""
    found = get_visible_order(request, number)
    if request.method != "POST":
        return render(request, "orders/cancel.html", {"order": found})
    try:
        services.cancel_order(found.number)
    except TooLate as refusal:
        messages.error(request, str(refusal))
    else:
        messages.success(request, _("Your order is cancelled. You will not be charged."))
    return redirect(found)


@never_cache
@require_safe
def mine(request: HttpRequest) -> HttpResponse:
    """List the orders of this account or browser."""
    orders = Order.objects.placed_by(**visitor(request)).prefetch_related("lines")
    page = Paginator(orders, PER_PAGE).get_page(request.GET.get("page"))
    return render(request, "orders/mine.html", {"page": page})


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def find(request: HttpRequest) -> HttpResponse:
    """Find a guest's order by its number and the phone's last four digits."""
    form = FindOrderForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            found = find_order(**form.cleaned_data, address=address_of(request))
        except TooManyTries as refusal:
            form.add_error(None, str(refusal))
            if refusal.key.startswith("order:"):
                form.add_error(None, _("Or enter the whole phone number instead of four digits."))
            return too_many(render(request, "orders/find.html", {"form": form}), refusal.wait)
        else:
            if found:
                show_to_guest(request, found)
                return redirect(found)
            form.add_error(None, _("No order has this number and these digits. Check both."))
    return render(request, "orders/find.html", {"form": form})


@never_cache
@require_safe
def red_packets(request: HttpRequest) -> HttpResponse:
    """The red packets that this visitor's orders earned."""
    packets = RedPacket.objects.of(**visitor(request)).select_related("order", "used_by")
    return render(request, "orders/red_packets.html", {"packets": packets, "now": timezone.now()})


@never_cache
@require_safe
def text_messages(request: HttpRequest) -> HttpResponse:
    """The newest text messages, as their receivers see them: a preview for developers."""
    if not settings.DEBUG:
        raise Http404("The preview exists with DEBUG only.")
    texts = TextMessage.objects.select_related("order")[:NEWEST_TEXTS]
    return render(request, "orders/text_messages.html", {"texts": texts})

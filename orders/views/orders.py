"""An order's own pages, and the ways to find it again."""

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_safe

from orders import destinations, services
from orders.addresses import address_of
from orders.exceptions import TooLate
from orders.forms import FindOrderForm
from orders.guesses import TooManyTries
from orders.lookup import find_order
from orders.models import Order, RedPacket
from orders.timeline import timeline_of
from orders.views.errors import too_many
from orders.visitors import get_visible_order, show_to_guest, visitor

PER_PAGE = 20
#: htmx stops polling when an answer has this status.
STOP_POLLING = 286


@never_cache
@require_safe
def order(request: HttpRequest, number: str) -> HttpResponse:
    """Confirmation, tracking and record of an order, at one address."""
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
    """The timeline alone, for the page that refreshes itself; it stops once everything is done."""
    found = timeline_of(get_visible_order(request, number))
    if found.keeps_refreshing and request.GET.get("seen") == found.fingerprint:
        return HttpResponse(status=204)  # nothing to swap, so nothing that a screen reader would read again
    status = 200 if found.keeps_refreshing else STOP_POLLING
    return render(request, "orders/_timeline.html", {"timeline": found}, status=status)


@never_cache
@require_safe
def timeline_json(request: HttpRequest, number: str) -> JsonResponse:
    """The timeline for programs."""
    return JsonResponse(timeline_of(get_visible_order(request, number)).as_json())


@never_cache
@require_safe
def documents(request: HttpRequest, number: str) -> HttpResponse:
    """The order's documents, to print or keep."""
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
        messages.success(request, "Your order is cancelled. You will not be charged.")
    return redirect(found)


@never_cache
@require_safe
def mine(request: HttpRequest) -> HttpResponse:
    """Every order of this account or browser."""
    orders = Order.objects.placed_by(**visitor(request)).prefetch_related("lines")
    page = Paginator(orders, PER_PAGE).get_page(request.GET.get("page"))
    return render(request, "orders/mine.html", {"page": page})


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def find(request: HttpRequest) -> HttpResponse:
    """Guest look-up, by number and the phone's last four digits."""
    form = FindOrderForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            found = find_order(**form.cleaned_data, address=address_of(request))
        except TooManyTries as refusal:
            hint = (
                " Or enter the whole phone number instead of four digits." if refusal.key.startswith("order:") else ""
            )
            form.add_error(None, f"{refusal}{hint}")
            return too_many(render(request, "orders/find.html", {"form": form}), refusal.wait)
        else:
            if found:
                show_to_guest(request, found)
                return redirect(found)
            form.add_error(None, "No order has this number and these digits. Check both.")
    return render(request, "orders/find.html", {"form": form})


@never_cache
@require_safe
def red_packets(request: HttpRequest) -> HttpResponse:
    """The wallet: what my orders earned."""
    packets = RedPacket.objects.of(**visitor(request)).select_related("order", "used_by")
    return render(request, "orders/red_packets.html", {"packets": packets, "now": timezone.now()})

"""From the cart to the order: one page, one POST."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from decimal import Decimal
from typing import Any

from django.contrib import messages
from django.db import DatabaseError, InterfaceError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST

from messaging import database
from messaging.logs import get_logger
from orders import destinations, languages
from orders.cart import Cart
from orders.exceptions import RedPacketRefused, Refused
from orders.forms import CheckoutForm, clean_code
from orders.limits import TooManyTries, count_order
from orders.models import Order, RedPacket
from orders.offer import Offer, OfferUnreadable
from orders.red_packets import discount_of
from orders.services import place_order
from orders.shipping import get_quote
from orders.views.errors import too_many, unavailable
from orders.visitors import address_of, get_or_make_key, visitor

log = get_logger(__name__)

CODE_UNUSABLE = gettext_lazy("This red packet code cannot be used: it is unknown, used, withdrawn or expired.")
BUSY = gettext_lazy(
    "The shop is very busy and could not confirm your order. Press the button again: you pay only once."
)
TOO_OFTEN = gettext_lazy(
    "Your order was not placed: too many orders came for this phone number, from this browser or from your network. "
    "Your cart is kept. Press the button again in %(wait)s."
)
OTHER_CONTENTS = gettext_lazy(
    "This cart was ordered before with other contents. This is that order; nothing was added to it."
)
_DRAFT_KEY = "checkout_draft"
_DRAFT_FIELDS = ("customer_name", "phone", "destination", "red_packet")


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def checkout(request: HttpRequest) -> HttpResponse:
    """Show the order and its price; place it."""
    return _place(request) if request.method == "POST" else _show(request)


@require_POST
def update(request: HttpRequest) -> HttpResponse:
    """Keep what was typed, and show the page again with shipping to the chosen country or region and the red packet."""
    _keep_draft(request)
    return redirect("orders:checkout")


def _show(request: HttpRequest) -> HttpResponse:
    """Fetch the quote and make the offer. Only this page waits for the shipping service."""
    cart = Cart(request.session)
    contents = cart.contents()
    lines = contents.lines
    if not lines and (order := cart.last_order()):
        messages.info(request, _("This cart was ordered already; here is your order."))
        return redirect(order)
    buyable = [line for line in lines if line.quantity]
    if not buyable:
        messages.info(request, _("There is nothing in your cart that can be ordered."))
        return redirect("orders:cart")

    draft = request.session.get(_DRAFT_KEY, {})
    destination = draft.get("destination", "")
    if destination not in destinations.CODES:
        destination = destinations.DEFAULT
    weight = sum(line.product.weight_grams * line.quantity for line in buyable)
    quote = get_quote(weight_grams=weight, destination=destination)
    packet = _spendable(draft.get("red_packet", ""))
    subtotal = sum((line.amount for line in buyable), Decimal(0))
    offer = Offer.of(
        buyable,
        token=contents.token,
        visitor_key=get_or_make_key(request.session),
        destination=destination,
        shipping=quote.amount,
        shipping_source=quote.source,
        red_packet=packet.code if packet else "",
        discount=discount_of(packet, subtotal) if packet else Decimal(0),
    )
    form = CheckoutForm(initial={**draft, "destination": destination})
    notices: list[object] = [notice for line in lines for notice in line.notices]
    if draft.get("red_packet") and packet is None:
        notices.append(CODE_UNUSABLE)
    return _render(request, offer, form, notices)


def _place(request: HttpRequest) -> HttpResponse:
    """Place exactly what the page offered, or say why that is not possible."""
    try:
        offer = Offer.read(request.POST.get("offer", ""), visitor_key=visitor(request)["visitor_key"])
    except OfferUnreadable:
        return _show_again(request, _("This page was too old to order from. Check the total and place your order."))
    if made := Order.objects.made_of(offer.token):
        return _ordered(request, offer, made)
    form = CheckoutForm(request.POST)
    if not form.is_valid():
        return _render_typed(request, offer, form)
    typed = form.cleaned_data
    if typed["red_packet"] not in ("", offer.red_packet) and _spendable(typed["red_packet"]) is None:
        form.add_error("red_packet", CODE_UNUSABLE)
        return _render_typed(request, offer, form)
    if typed["destination"] != offer.destination or typed["red_packet"] != offer.red_packet:
        return _show_again(request, _("The total has changed. Check it and place your order."))
    try:
        counted = count_order(phone=typed["phone"].as_e164, visitor_key=offer.visitor_key, address=address_of(request))
    except TooManyTries as refusal:
        often = TOO_OFTEN % {"wait": refusal.in_words}
        return too_many(_render_typed(request, offer, form, [often]), refusal.wait)
    except (DatabaseError, InterfaceError) as error:
        if not database.is_transient(error):
            raise
        return unavailable(_render(request, offer, form, [BUSY]))
    try:
        order = place_order(
            checkout_token=offer.token,
            wanted=offer.lines,
            customer_name=typed["customer_name"],
            phone=typed["phone"].as_e164,
            destination=offer.destination,
            shipping=offer.quote,
            red_packet_code=offer.red_packet,
            user=request.user if request.user.is_authenticated else None,
            visitor_key=offer.visitor_key,
            language=languages.current(),
        )
    except RedPacketRefused as refusal:
        counted.uncount()
        form.add_error("red_packet", str(refusal))
        return _render_typed(request, offer, form)
    except Refused as refusal:
        counted.uncount()
        words = _("%(why)s Nothing was ordered. Check the new total.")
        return _show_again(request, words % {"why": refusal})
    except (DatabaseError, InterfaceError) as error:
        if not database.is_transient(error):
            raise
        # The outcome is unknown: the connection may have been lost after the commit.
        log.error("order_not_confirmed", error=str(error))
        with suppress(DatabaseError, InterfaceError):
            counted.uncount()  # the shopper may press the button again and again
        return unavailable(_render(request, offer, form, [BUSY]))
    request.session.pop(_DRAFT_KEY, None)
    # Always saved: a guest sees the order as long as the session lives, counted from its last save.
    request.session.modified = True
    return redirect(order) if order.is_new else _ordered(request, offer, order)


def _ordered(request: HttpRequest, offer: Offer, made: Order) -> HttpResponse:
    """Redirect to the order that the cart became before, from this page or another tab, perhaps at this very moment.
    Later additions stay in the cart."""
    ordered = {line.product_id: line.quantity for line in made.lines.all()}
    if ordered != {line.product_id: line.quantity for line in offer.lines}:
        messages.warning(request, OTHER_CONTENTS)
    return redirect(made)


def _show_again(request: HttpRequest, why: str) -> HttpResponse:
    """Redirect to the page, which makes a new offer outside the POST and keeps what was typed."""
    _keep_draft(request)
    messages.warning(request, why)
    return redirect("orders:checkout")


def _keep_draft(request: HttpRequest) -> None:
    request.session[_DRAFT_KEY] = {field: request.POST.get(field, "")[:200] for field in _DRAFT_FIELDS}


def _spendable(typed_code: str) -> RedPacket | None:
    code = clean_code(typed_code)
    if not code or "\0" in code:
        return None
    return RedPacket.objects.spendable(timezone.now()).filter(code=code).first()


def _render_typed(
    request: HttpRequest, offer: Offer, form: CheckoutForm, notices: Sequence[object] = ()
) -> HttpResponse:
    """Show the page with what was typed, and keep that: the page may be opened again, in another language."""
    _keep_draft(request)
    return _render(request, offer, form, notices)


def _render(request: HttpRequest, offer: Offer, form: CheckoutForm, notices: Sequence[object] = ()) -> HttpResponse:
    context: dict[str, Any] = {
        "offer": offer,
        "form": form,
        "notices": notices,
        "country": destinations.name_of(offer.destination),
        "my_red_packets": RedPacket.objects.of(**visitor(request)).spendable(timezone.now()),
    }
    return render(request, "orders/checkout.html", context)

"""Template tags of the shop's pages."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from django import template
from django.conf import settings
from django.contrib.staticfiles.storage import staticfiles_storage
from django.http import HttpRequest
from django.template.context import Context

from orders import money as amounts
from orders import times
from orders.cart import Cart
from orders.models import Product

register = template.Library()

_PLAIN_PICTURE = "orders/products/plain.svg"


@register.filter
def money(amount: Decimal, currency: str | None = None) -> str:
    """Write an amount as the reader's language does; without a currency it is the shop's."""
    return amounts.written(amount, currency)


@register.filter
def as_date(at: datetime) -> str:
    """Write a date as the reader's language does, in the shop's time zone."""
    return times.day(at)


@register.filter
def as_time(at: datetime) -> str:
    """Write date and time, to the minute."""
    return times.minute(at)


@register.filter
def as_exact_time(at: datetime) -> str:
    """Write date and time, to the second."""
    return times.second(at)


@register.filter
def time_zone(at: datetime) -> str:
    """Return the name of the shop's time zone, with its offset at that time."""
    return times.zone(at)


@register.simple_tag
def picture_of(product: Product) -> str:
    """Return the address of the product's picture, or of a plain one if the file does not exist."""
    try:
        return str(staticfiles_storage.url(product.picture or _PLAIN_PICTURE))
    except ValueError:  # it is missing in the manifest of collected files
        return str(staticfiles_storage.url(_PLAIN_PICTURE))


@register.simple_tag(takes_context=True)
def cart_count(context: Context) -> int:
    """Return the number of pieces in the cart; 0 on pages without a request."""
    request: HttpRequest | None = context.get("request")
    return len(Cart(request.session)) if request and hasattr(request, "session") else 0


@register.simple_tag
def preview_exists() -> bool:
    """Return whether the text-message preview can be opened."""
    return bool(settings.DEBUG)

"""Who may see which order: the account or the browser that placed it, and guests who proved that they know it."""

from __future__ import annotations

from secrets import token_urlsafe
from typing import TYPE_CHECKING, TypedDict

from django.http import Http404, HttpRequest

from orders.models import Order

if TYPE_CHECKING:
    from django.contrib.auth.models import AnonymousUser, User

_VISITOR_KEY = "visitor_key"
_SHOWN_KEY = "orders_shown"
#: Looked-up orders that a session remembers.
_MOST_SHOWN = 50


class Visitor(TypedDict):
    """The two ways to own an order, as `placed_by()` takes them."""

    user: User | AnonymousUser
    visitor_key: str


def visitor(request: HttpRequest) -> Visitor:
    """Return who is asking. The key is empty until this browser has filled a cart."""
    return Visitor(user=request.user, visitor_key=request.session.get(_VISITOR_KEY, ""))


def get_or_make_key(request: HttpRequest) -> str:
    """Return the secret that ties orders to this session; it survives signing in."""
    if _VISITOR_KEY not in request.session:
        request.session[_VISITOR_KEY] = token_urlsafe(32)
    return str(request.session[_VISITOR_KEY])


def show_to_guest(request: HttpRequest, order: Order) -> None:
    """Remember that this session has proved to know the order."""
    shown: list[str] = request.session.get(_SHOWN_KEY, [])
    others = [number for number in shown if number != order.number]
    request.session[_SHOWN_KEY] = [*others[-_MOST_SHOWN:], order.number]


def get_visible_order(request: HttpRequest, number: str) -> Order:
    """Return the order if this visitor may see it. Otherwise Http404, exactly as for one that does not exist."""
    order = Order.objects.filter(number=number).first()
    if order is None or not (_is_owner(request, order) or number in request.session.get(_SHOWN_KEY, [])):
        raise Http404("No such order here.")
    return order


def _is_owner(request: HttpRequest, order: Order) -> bool:
    who = visitor(request)
    if request.user.is_authenticated and order.user_id == request.user.pk:
        return True
    return bool(who["visitor_key"]) and who["visitor_key"] == order.visitor_key

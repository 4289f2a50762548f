"""Who may see which order: the account or the browser that placed it, and guests who proved that they know it."""

from __future__ import annotations

from secrets import token_urlsafe
from typing import TYPE_CHECKING, TypedDict

from django.contrib.sessions.backends.base import SessionBase
from django.http import Http404, HttpRequest
from django.utils.crypto import salted_hmac

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
    """Return who is asking. The key is empty for a browser that has no session."""
    return Visitor(user=request.user, visitor_key=get_key(request.session))


def get_key(session: SessionBase) -> str:
    """Return the secret that ties carts and orders to this session; empty for a session that was never saved.

    Until `get_or_make_key` has stored it, the key follows from the session's own key: requests that come at once find
    the same cart, whichever of them saves the session last.
    """
    stored = session.get(_VISITOR_KEY)  # loads the session: a key that the visitor made up is gone after that
    if stored or not session.session_key:
        return str(stored or "")
    return salted_hmac("orders.visitors", session.session_key, algorithm="sha256").hexdigest()


def get_or_make_key(session: SessionBase) -> str:
    """Return the same secret, and store it in the session, so that it survives signing in."""
    if _VISITOR_KEY not in session:
        session[_VISITOR_KEY] = get_key(session) or token_urlsafe(32)
    return str(session[_VISITOR_KEY])


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

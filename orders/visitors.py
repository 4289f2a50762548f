"""Who is asking, and who may see which order: its account, its browser, and guests who proved that they know it."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from secrets import token_urlsafe
from typing import TYPE_CHECKING, TypedDict

from django.conf import settings
from django.contrib.sessions.backends.base import SessionBase
from django.http import Http404, HttpRequest
from django.utils.crypto import salted_hmac

from messaging.logs import get_logger
from orders import limits, phones
from orders.limits import Limit
from orders.models import Order

if TYPE_CHECKING:
    from django.contrib.auth.models import AnonymousUser, User

log = get_logger(__name__)

_VISITOR_KEY = "visitor_key"
_SHOWN_KEY = "orders_shown"
#: Looked-up orders that a session remembers.
_MOST_SHOWN = 50

#: Wrong tries of one order from one address.
MOST_PER_ORDER_AND_ADDRESS = 5
#: Addresses from which one order's four digits may be tried: they have ten thousand values. The tries of one address
#: count once, so that no single visitor can lock others out.
MOST_ADDRESSES_PER_ORDER = 5
#: Wrong tries of any order from one address. Many: a whole office may share it.
MOST_PER_ADDRESS = 50


class Visitor(TypedDict):
    """The two ways to own an order, as `placed_by()` takes them."""

    user: User | AnonymousUser
    visitor_key: str


def visitor(request: HttpRequest) -> Visitor:
    """Return who is asking. The key is empty for a browser without a session."""
    return Visitor(user=request.user, visitor_key=get_key(request.session))


def get_key(session: SessionBase) -> str:
    """Return the secret that ties carts and orders to this session; empty for a session that was never saved.

    Until `get_or_make_key` has stored it, the key is derived from the session's own key: parallel requests find the
    same cart, whichever of them saves the session last.
    """
    stored = session.get(_VISITOR_KEY)  # loads the session, which drops a session key that the visitor made up
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
    """Return the order if this visitor may see it. Raises Http404 else, exactly as for an order that does not exist."""
    order = Order.objects.filter(number=number).first()
    if order is None or not (_is_owner(request, order) or number in request.session.get(_SHOWN_KEY, [])):
        raise Http404("No such order here.")
    return order


def _is_owner(request: HttpRequest, order: Order) -> bool:
    who = visitor(request)
    if request.user.is_authenticated and order.user_id == request.user.pk:
        return True
    return bool(who["visitor_key"]) and who["visitor_key"] == order.visitor_key


def find_order(number: str, last_four: str, *, address: str) -> Order | None:
    """Return the order if number and phone belong together, None if not. Raises TooManyTries.

    `last_four` is the phone's last four digits, or the whole number as its owner writes it. A stranger cannot lock a
    guest out: the whole number cannot be guessed, and is looked at however often others tried the digits.
    """
    is_whole = len(last_four) > 4
    here = f"order{'-whole' if is_whole else ''}:{number}:{address}"
    allowed = {here: Limit(MOST_PER_ORDER_AND_ADDRESS), f"address:{address}": Limit(MOST_PER_ADDRESS)}
    if not is_whole and not limits.is_counted(here):
        allowed[f"order:{number}"] = Limit(MOST_ADDRESSES_PER_ORDER)
    try:
        tries = limits.count(allowed)
    except limits.TooManyTries:
        log.warning("lookup_refused", order=number)
        raise
    order = Order.objects.filter(number=number).first()
    if order is None:
        return None
    if last_four != order.phone_last_four and not phones.is_same(order.phone, last_four, region=order.destination):
        return None
    tries.uncount()
    return order


def address_of(request: HttpRequest) -> str:
    """Return the address by which tries are counted: the visitor's; for IPv6 the network of one household.

    Each of our `PROXIES` adds the address that it saw to the right end of X-Forwarded-For. The rest, on the left, may
    come from the visitor and is ignored.
    """
    found = str(request.META.get("REMOTE_ADDR", ""))
    if settings.PROXIES:
        forwarded = [each.strip() for each in request.headers.get("X-Forwarded-For", "").split(",") if each.strip()]
        if forwarded:
            found = forwarded[-min(settings.PROXIES, len(forwarded))]
    try:
        address = ip_address(_without_port(found))
    except ValueError:
        return found[:60]
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    if isinstance(address, IPv4Address):
        return str(address)
    return str(IPv6Network((int(address), 64), strict=False))


def _without_port(text: str) -> str:
    # Some proxies write 203.0.113.9:4711 or [2001:db8::1]:4711.
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text

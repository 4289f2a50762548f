"""Guest look-up: an order number and the phone's last four digits, with a limit on guessing."""

from __future__ import annotations

from datetime import timedelta

import structlog
from django.conf import settings
from django.db import transaction
from django.http import HttpRequest
from django.utils import timezone

from orders.models import LookupAttempt, Order

log = structlog.get_logger(__name__)

#: Wrong tries within WINDOW that one order, and one address, may see. Four digits have ten thousand values.
MOST_PER_ORDER = 5
MOST_PER_ADDRESS = 20
WINDOW = timedelta(minutes=15)


class TooManyTries(Exception):
    """This order, or this address, has seen too many wrong tries; none is answered until WINDOW has passed."""


def find_order(number: str, last_four: str, *, address: str) -> Order | None:
    """Return the order if number and digits belong together, None if not. Raises TooManyTries.

    The try is counted before it is answered, so that parallel guesses do not slip under the limit; a right one
    is taken off again.
    """
    keys = {f"order:{number}": MOST_PER_ORDER, f"address:{address}": MOST_PER_ADDRESS}
    tries = _count(list(keys))
    if any(_tries_of(key) > most for key, most in keys.items()):
        log.warning("lookup_refused", order=number)
        raise TooManyTries
    order = Order.objects.filter(number=number).first()
    if order is None or order.phone_last_four != last_four:
        return None
    LookupAttempt.objects.filter(pk__in=[attempt.pk for attempt in tries]).delete()
    return order


def address_of(request: HttpRequest) -> str:
    """Return the visitor's address. Behind a proxy (a proxy's header is trusted) it is the one that proxy saw."""
    if settings.SECURE_PROXY_SSL_HEADER:
        forwarded = request.headers.get("X-Forwarded-For", "")
        if nearest := forwarded.rpartition(",")[2].strip():
            return nearest[:60]
    return str(request.META.get("REMOTE_ADDR", ""))[:60]


def _count(keys: list[str]) -> list[LookupAttempt]:
    with transaction.atomic():
        LookupAttempt.objects.filter(created_at__lt=timezone.now() - WINDOW).delete()
        return LookupAttempt.objects.bulk_create(LookupAttempt(key=key) for key in keys)


def _tries_of(key: str) -> int:
    return LookupAttempt.objects.filter(key=key, created_at__gte=timezone.now() - WINDOW).count()

"""How many orders the shop takes: each sends texts to a number that the visitor types, and may earn a red packet."""

from __future__ import annotations

import hashlib
from datetime import timedelta

import structlog
from django.conf import settings

from orders import guesses
from orders.guesses import Limit, Tries

log = structlog.get_logger(__name__)

DAY = timedelta(days=1)


def count_order(*, phone: str, visitor_key: str, address: str) -> Tries:
    """Count an order against its phone number, its browser and its address. Raises guesses.TooManyTries.

    Take it off again with `were_right()` if no order was made. Commands do not come by here: they are trusted. An
    address that is not known has no limit: all visitors would share it.
    """
    number = hashlib.sha256(phone.encode()).hexdigest()[:32]
    limits: dict[str, Limit] = {
        f"order-phone:{number}": Limit(settings.ORDERS_PER_PHONE),
        f"order-phone-day:{number}": Limit(settings.ORDERS_PER_PHONE_A_DAY, DAY),
        f"order-browser:{visitor_key}": Limit(settings.ORDERS_PER_BROWSER),
        f"order-address:{address}": Limit(settings.ORDERS_PER_ADDRESS if address else 0),
    }
    try:
        return guesses.count({key: limit for key, limit in limits.items() if limit.most})
    except guesses.TooManyTries as refusal:
        log.warning("order_limit_reached", limit=refusal.key.partition(":")[0], address=address)
        raise

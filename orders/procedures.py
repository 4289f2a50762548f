"""The shop's RPC procedures; `manage.py run_rpc_worker` serves them."""

from __future__ import annotations

from decimal import Decimal
from math import ceil

from django.conf import settings

from messaging.rpc import procedure
from orders import destinations
from orders.money import rounded

#: (first kilogram, each further started kilogram), in the shop's currency.
_RATES = {
    "home": (Decimal("8.00"), Decimal("2.00")),
    "near": (Decimal("18.00"), Decimal("6.00")),
    "far": (Decimal("45.00"), Decimal("15.00")),
}
_ZONES = {"CN": "home", "HK": "near", "MO": "near", "TW": "near", "SG": "near", "JP": "near", "KR": "near"}


@procedure("shipping.quote")
def shipping_quote(weight_grams: int, destination: str) -> dict[str, str]:
    """Return {"amount", "currency"} for a parcel. Raises ValueError for an unknown destination, or no weight."""
    if destination not in destinations.CODES:
        raise ValueError(f"We do not send to {destination!r}.")
    if not isinstance(weight_grams, int) or weight_grams < 0:
        raise ValueError(f"weight_grams is {weight_grams!r}; it is a whole number of grams.")
    first, further = _RATES[_ZONES.get(destination, "far")]
    kilograms = max(1, ceil(weight_grams / 1000))
    amount = rounded(first + further * (kilograms - 1))
    return {"amount": str(amount), "currency": settings.SHOP_CURRENCY}

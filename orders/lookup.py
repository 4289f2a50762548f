"""Guest look-up: an order number and the phone's last four digits, with a limit on guessing."""

from __future__ import annotations

import structlog

from orders import guesses
from orders.models import Order

log = structlog.get_logger(__name__)

#: Wrong tries of one order from one address.
MOST_PER_ORDER_AND_ADDRESS = 5
#: Addresses from which one order's four digits may be tried: they have ten thousand values. Tries of one address count
#: once, so that nobody alone can lock others out.
MOST_ADDRESSES_PER_ORDER = 5
#: Of any order from one address. Many: behind it may be a whole office.
MOST_PER_ADDRESS = 50


def find_order(number: str, last_four: str, *, address: str) -> Order | None:
    """Return the order if number and phone belong together, None if not. Raises guesses.TooManyTries.

    `last_four` is the phone's last four digits, or all of it in E.164. Nobody can lock a guest out: the whole number
    cannot be guessed, and is looked at however often the digits were tried elsewhere.
    """
    is_whole = last_four.startswith("+")
    here = f"order{'-whole' if is_whole else ''}:{number}:{address}"
    limits = {here: MOST_PER_ORDER_AND_ADDRESS, f"address:{address}": MOST_PER_ADDRESS}
    if not is_whole and not guesses.is_counted(here):
        limits[f"order:{number}"] = MOST_ADDRESSES_PER_ORDER
    try:
        tries = guesses.count(limits)
    except guesses.TooManyTries:
        log.warning("lookup_refused", order=number)
        raise
    order = Order.objects.filter(number=number).first()
    if order is None or last_four not in {order.phone_last_four, order.phone.as_e164}:
        return None
    tries.were_right()
    return order

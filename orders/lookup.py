"""Guest look-up: an order number and the phone's last four digits, with a limit on guessing."""

from __future__ import annotations

import structlog

from orders import guesses
from orders.models import Order

log = structlog.get_logger(__name__)

#: Wrong tries that one order, and one address, may see. Four digits have ten thousand values; behind one address may
#: be a whole office.
MOST_PER_ORDER = 5
MOST_PER_ADDRESS = 50


def find_order(number: str, last_four: str, *, address: str) -> Order | None:
    """Return the order if number and digits belong together, None if not. Raises guesses.TooManyTries."""
    try:
        tries = guesses.count({f"order:{number}": MOST_PER_ORDER, f"address:{address}": MOST_PER_ADDRESS})
    except guesses.TooManyTries:
        log.warning("lookup_refused", order=number)
        raise
    order = Order.objects.filter(number=number).first()
    if order is None or order.phone_last_four != last_four:
        return None
    tries.were_right()
    return order

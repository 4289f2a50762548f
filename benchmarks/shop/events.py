"""The event: its body has 500 bytes."""

from __future__ import annotations

from messaging.events import Event

BODY_BYTES = 500


class OrderPlaced(Event, type="order.placed"):
    """An order was placed."""

    number: str
    phone: str
    total: str
    lines: list[dict[str, str | int]]
    note: str = ""


class OrderSeen(Event, type="order.seen"):
    """An event of the same content, which only the consumer receives that does nothing."""

    number: str
    phone: str
    total: str
    lines: list[dict[str, str | int]]
    note: str = ""


def order_placed(number: str) -> OrderPlaced:
    """Return an event of exactly BODY_BYTES bytes."""
    lines: list[dict[str, str | int]] = [
        {"sku": "jasmine-tea", "name": "Jasmine tea, 100 g", "quantity": 2, "price": "38.00"},
        {"sku": "fan-silk", "name": "Silk fan, painted by hand", "quantity": 1, "price": "188.00"},
    ]
    event = OrderPlaced(number=number, phone="+8613800138000", total="264.00", lines=lines)
    return event.model_copy(update={"note": "n" * (BODY_BYTES - len(event.encode()))})

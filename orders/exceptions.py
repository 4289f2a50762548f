"""The shop's refusals. Their texts are written for shoppers."""

from __future__ import annotations

from django.conf import settings


class Refused(Exception):
    """Base of all refusals: nothing was changed. `str(error)` may be shown to the shopper."""


class OutOfStock(Refused):
    """Fewer pieces are left than were ordered."""

    def __init__(self, product_name: str, left: int) -> None:
        super().__init__(f"{product_name}: only {left} left." if left else f"{product_name} is sold out.")


class PriceChanged(Refused):
    """A price differs from the one that the shopper saw."""

    def __init__(self, product_name: str) -> None:
        super().__init__(f"The price of {product_name} has changed.")


class NotPayable(Refused):
    """A price has more decimals than the currency."""

    def __init__(self, product_name: str) -> None:
        super().__init__(
            f"{product_name} cannot be ordered: its price has more decimals than {settings.SHOP_CURRENCY} has. "
            "The shop must correct it."
        )


class RedPacketRefused(Refused):
    """The red packet does not exist, is used, withdrawn or expired."""


class TooLate(Refused):
    """The order has been shipped, or was cancelled before it could be."""

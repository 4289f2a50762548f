"""Why the shop says no. The text of each is written for the shopper."""

from __future__ import annotations

from django.conf import settings


class Refused(Exception):
    """Parent of every refusal: nothing was changed. `str(error)` may be shown to the shopper."""


class OutOfStock(Refused):
    """There are fewer pieces than asked for."""

    def __init__(self, product_name: str, left: int) -> None:
        super().__init__(f"{product_name}: only {left} left." if left else f"{product_name} is sold out.")
        self.left = left


class PriceChanged(Refused):
    """A price is no longer the one the shopper was shown."""

    def __init__(self, product_name: str) -> None:
        super().__init__(f"The price of {product_name} has changed.")


class NotPayable(Refused):
    """A price is finer than the currency."""

    def __init__(self, product_name: str) -> None:
        super().__init__(
            f"{product_name} cannot be ordered: its price has more decimals than {settings.SHOP_CURRENCY} has. "
            "The shop must correct it."
        )


class RedPacketRefused(Refused):
    """The red packet does not exist, is used, withdrawn or expired."""


class TooLate(Refused):
    """The order has been shipped, or was cancelled before it could be."""

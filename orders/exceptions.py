"""The shop's refusals. Their texts are written for shoppers, in the language that is active when they are raised."""

from __future__ import annotations

from django.conf import settings
from django.utils.translation import gettext as _


class Refused(Exception):
    """Base of all refusals: nothing was changed. `str(error)` may be shown to the shopper."""


class OutOfStock(Refused):
    """Fewer pieces are left than were ordered."""

    def __init__(self, product_name: str, left: int) -> None:
        words = _("%(product)s: only %(left)d left.") if left else _("%(product)s is sold out.")
        super().__init__(words % {"product": product_name, "left": left})


class PriceChanged(Refused):
    """A price differs from the one that the shopper saw."""

    def __init__(self, product_name: str) -> None:
        super().__init__(_("The price of %(product)s has changed.") % {"product": product_name})


class NotPayable(Refused):
    """A price has more decimals than the currency."""

    def __init__(self, product_name: str) -> None:
        words = _(
            "%(product)s cannot be ordered: its price has more decimals than %(currency)s has. "
            "The shop must correct it."
        )
        super().__init__(words % {"product": product_name, "currency": settings.SHOP_CURRENCY})


class RedPacketRefused(Refused):
    """The red packet does not exist, is used, withdrawn or expired."""


class TooLate(Refused):
    """The order has been shipped, or was cancelled before it could be."""

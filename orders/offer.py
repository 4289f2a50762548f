"""The offer: what the checkout page showed, signed, so that exactly this is ordered.

It travels in a hidden field. The price of shipping was fetched when the page was made. So the POST that places the
order needs neither the broker nor the cart, and no tab can disturb another.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Self
from uuid import UUID

from django.core import signing
from pydantic import BaseModel, ConfigDict, ValidationError

from orders.cart import CartLine
from orders.services import Wanted
from orders.shipping import ShippingQuote

#: Seconds for which an offer can be accepted. Prices and stock are checked again; shipping is not.
VALID_FOR = 12 * 3600
_SALT = "orders.offer"


class OfferUnreadable(Exception):
    """The offer is too old, belongs to another visitor, or was changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferedLine(Wanted):
    """A product as `place_order` takes it, with the name and price that were shown."""

    name: str
    unit_price: Decimal

    @property
    def amount(self) -> Decimal:
        return self.unit_price * self.quantity


class Offer(BaseModel):
    """What the shopper saw, and would pay."""

    model_config = ConfigDict(frozen=True)

    token: UUID
    visitor_key: str
    destination: str
    lines: tuple[OfferedLine, ...]
    shipping: Decimal
    shipping_source: str
    red_packet: str = ""
    discount: Decimal = Decimal(0)

    @classmethod
    def of(cls, lines: list[CartLine], **fields: object) -> Self:
        """Make an offer from the lines that can be bought."""
        offered = tuple(
            OfferedLine(
                product_id=line.product.pk,
                name=line.product.translated_name,
                quantity=line.quantity,
                in_cart=line.wanted,
                unit_price=line.product.price,
            )
            for line in lines
        )
        return cls.model_validate({"lines": offered, **fields})

    @classmethod
    def read(cls, signed: str, *, visitor_key: str) -> Self:
        """Return the offer that `sign()` wrote for this visitor. Raises OfferUnreadable."""
        try:
            offer = cls.model_validate(signing.loads(signed, salt=_SALT, max_age=VALID_FOR))
        except (signing.BadSignature, ValidationError, ValueError) as error:
            raise OfferUnreadable from error
        if not visitor_key or offer.visitor_key != visitor_key:
            raise OfferUnreadable
        return offer

    def sign(self) -> str:
        """Return the offer as signed text."""
        return signing.dumps(self.model_dump(mode="json"), salt=_SALT, compress=True)

    @property
    def subtotal(self) -> Decimal:
        return sum((line.amount for line in self.lines), Decimal(0))

    @property
    def total(self) -> Decimal:
        return self.subtotal + self.shipping - self.discount

    @property
    def quote(self) -> ShippingQuote:
        return ShippingQuote(amount=self.shipping, source=self.shipping_source)

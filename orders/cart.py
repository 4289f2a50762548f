"""The cart: a few numbers in the session, and what they mean against today's catalogue."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any
from uuid import UUID, uuid4

from django.contrib.sessions.backends.base import SessionBase

from orders.models import Order, Product
from orders.money import written

#: Pieces of one product, and different products, that a cart holds.
MOST_PIECES = 99
MOST_PRODUCTS = 50
_KEY = "cart"
_TOKEN_KEY = "checkout_token"  # noqa: S105  (the name of a session entry)


@dataclass(frozen=True, slots=True, kw_only=True)
class CartLine:
    """A product as it can be bought now, with what changed since the shopper chose it."""

    product: Product
    quantity: int
    notices: tuple[str, ...] = ()

    @property
    def amount(self) -> Decimal:
        return self.product.price * self.quantity


class Cart:
    """The session's cart. Nothing in it is a promise: price and stock are read again wherever it is shown."""

    def __init__(self, session: SessionBase) -> None:
        self._session = session
        stored = session.get(_KEY)
        self._entries: dict[str, dict[str, Any]] = stored if isinstance(stored, dict) else {}

    def __len__(self) -> int:
        """Pieces, as the badge in the header shows them."""
        return sum(entry["quantity"] for entry in self._entries.values())

    @property
    def is_full(self) -> bool:
        return len(self._entries) >= MOST_PRODUCTS

    def quantity_of(self, product: Product) -> int:
        entry = self._entries.get(str(product.pk))
        return entry["quantity"] if entry else 0

    def set(self, product: Product, quantity: int) -> None:
        """Put `quantity` pieces into the cart at today's price; 0 takes the product out."""
        if quantity:
            self._entries[str(product.pk)] = {"quantity": quantity, "price": str(product.price)}
        else:
            self._entries.pop(str(product.pk), None)
        self._store()

    def forget(self, product_ids: Iterable[int]) -> None:
        """Take out what was ordered. What is left, or comes next, gets a checkout token of its own."""
        for pk in product_ids:
            self._entries.pop(str(pk), None)
        self._session.pop(_TOKEN_KEY, None)
        self._store()

    def checkout_token(self) -> UUID:
        """Return the token of this cart: however many tabs and retries it is ordered from, it is one order."""
        if _TOKEN_KEY not in self._session:
            self._session[_TOKEN_KEY] = str(uuid4())
        return UUID(self._session[_TOKEN_KEY])

    def order_already_made(self) -> Order | None:
        """Return the order this very cart became: a browser that lost the answer still holds the old cart."""
        if _TOKEN_KEY not in self._session:
            return None
        return Order.objects.filter(checkout_token=self._session[_TOKEN_KEY]).first()

    def lines(self) -> list[CartLine]:
        """Return what the cart holds against the stock and prices of this moment, in the order it was filled."""
        products = Product.objects.in_bulk([int(pk) for pk in self._entries])
        return list(self._lines(products))

    def _lines(self, products: dict[int, Product]) -> Iterator[CartLine]:
        for pk, entry in self._entries.items():
            product = products.get(int(pk))
            if product is None:
                continue
            left = product.stock if product.active else 0
            quantity = min(entry["quantity"], left)
            yield CartLine(product=product, quantity=quantity, notices=tuple(_notices(product, entry, quantity)))

    def _store(self) -> None:
        self._session[_KEY] = self._entries


def _notices(product: Product, entry: dict[str, Any], quantity: int) -> Iterator[str]:
    if not quantity:
        yield f"{product.name} is sold out. It will not be part of your order."
        return
    if quantity < entry["quantity"]:
        yield f"Only {quantity} of {product.name} left: you wanted {entry['quantity']}."
    try:
        before = Decimal(entry["price"])
    except InvalidOperation:
        return
    if before != product.price:
        yield f"The price of {product.name} has changed from {written(before)} to {written(product.price)}."

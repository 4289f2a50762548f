"""The visitor's cart, compared with today's catalogue."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from uuid import UUID

from django.contrib.sessions.backends.base import SessionBase
from django.db import transaction
from django.db.models import QuerySet, Sum
from django.utils import timezone
from django.utils.translation import gettext as _

from orders import models
from orders.models import CartItem, Order, Product
from orders.money import written
from orders.visitors import get_key, get_or_make_key

#: Pieces of one product, and different products, that a cart holds.
MOST_PIECES = 99
MOST_PRODUCTS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class CartLine:
    """A product as it can be bought now, with what changed since the shopper chose it."""

    product: Product
    #: Pieces that can be ordered, and pieces that the shopper wanted.
    quantity: int
    wanted: int
    notices: tuple[str, ...] = ()

    @property
    def amount(self) -> Decimal:
        return self.product.price * self.quantity


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a cart holds, and the token of the order that it becomes. An empty cart has no token."""

    token: UUID | None
    lines: list[CartLine]


class OpenCart:
    """The visitor's cart while it is locked."""

    def __init__(self, row: models.Cart) -> None:
        self._row = row
        self._items = {item.product_id: item for item in row.items.all()}

    @property
    def is_full(self) -> bool:
        return len(self._items) >= MOST_PRODUCTS

    def quantity_of(self, product: Product) -> int:
        item = self._items.get(product.pk)
        return item.quantity if item else 0

    def set(self, product: Product, quantity: int) -> None:
        """Put `quantity` pieces into the cart at today's price; 0 removes the product."""
        item = self._items.pop(product.pk, None)
        if quantity:
            item = item or CartItem(cart=self._row, product=product)
            item.quantity, item.price = quantity, product.price
            item.save()
            self._items[product.pk] = item
        elif item:
            item.delete()
        self._row.changed_at = timezone.now()
        self._row.save(update_fields=["changed_at"])


class Cart:
    """The session's cart. Nothing in it is a promise: each page reads price and stock again."""

    def __init__(self, session: SessionBase) -> None:
        self._session = session

    def __len__(self) -> int:
        """Pieces, as the badge in the header shows them."""
        return self._items().aggregate(pieces=Sum("quantity"))["pieces"] or 0

    @contextmanager
    def opened(self) -> Iterator[OpenCart]:
        """Lock the cart for changes, which commit at the end. Another tab, or an order, has to wait."""
        key = get_or_make_key(self._session)
        with transaction.atomic():
            yield OpenCart(models.Cart.objects.lock_or_make(key))

    def last_order(self) -> Order | None:
        """Return the order that this cart became last. A browser that lost the answer does not know it."""
        cart = models.Cart.objects.filter(visitor_key=get_key(self._session)).select_related("last_order").first()
        return cart.last_order if cart else None

    def contents(self) -> Contents:
        """Return what the cart holds, with the stock and prices of this moment, in the order it was filled."""
        # One statement reads token and items: an order changes both at once.
        items = list(self._items().select_related("cart", "product"))
        return Contents(token=items[0].cart.token if items else None, lines=[_line(item) for item in items])

    def _items(self) -> QuerySet[CartItem]:
        return CartItem.objects.filter(cart__visitor_key=get_key(self._session))


def _line(item: CartItem) -> CartLine:
    left = item.product.stock if item.product.active else 0
    quantity = min(item.quantity, left)
    return CartLine(
        product=item.product, quantity=quantity, wanted=item.quantity, notices=tuple(_notices(item, quantity))
    )


def _notices(item: CartItem, quantity: int) -> Iterator[str]:
    product, name = item.product, item.product.translated_name
    if not quantity:
        yield _("%(product)s is sold out. It will not be part of your order.") % {"product": name}
        return
    if quantity < item.quantity:
        words = _("Only %(left)d of %(product)s left: you wanted %(wanted)d.")
        yield words % {"left": quantity, "product": name, "wanted": item.quantity}
    if item.price != product.price:
        words = _("The price of %(product)s has changed from %(before)s to %(now)s.")
        yield words % {"product": name, "before": written(item.price), "now": written(product.price)}

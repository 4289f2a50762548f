"""Carts: what a visitor wants to order."""

from __future__ import annotations

from functools import reduce
from operator import or_
from uuid import uuid4

from django.db import models
from django.db.models import F, Q
from django.utils import timezone

from messaging.models.columns import PrimaryQuerySet, Row
from orders.models.order import Order
from orders.models.product import Product


class CartQuerySet(PrimaryQuerySet["Cart"]):
    def lock_or_make(self, visitor_key: str) -> Cart:
        """Lock the visitor's cart and return it; make an empty one if there is none."""
        cart, _ = self.select_for_update().get_or_create(visitor_key=visitor_key)
        return cart


class Cart(models.Model):
    """A visitor's cart. However often, and from however many tabs, its token is ordered: that is one order.

    The transaction that commits the order removes the ordered items and gives the cart a new token. The cart is not in
    the session, because sessions are saved whole: of two parallel requests, the later save would restore items that
    the other removed.
    """

    visitor_key = models.CharField(max_length=64, unique=True, help_text="The browser that fills it.")
    token = models.UUIDField(unique=True, default=uuid4, editable=False, help_text="Of the order that it becomes.")
    last_order = models.ForeignKey(
        Order, null=True, blank=True, on_delete=models.SET_NULL, related_name="+", help_text="What it last became."
    )
    changed_at = models.DateTimeField(default=timezone.now, db_index=True)

    objects = CartQuerySet.as_manager()

    class Meta:
        base_manager_name = "objects"

    def __str__(self) -> str:
        return str(self.token)

    def has_become(self, order: Order, taken: dict[int, int]) -> None:
        """Remove the ordered pieces, by product, and take a new token. The cart must be locked, and the order written
        in the same transaction."""
        whole = [Q(product_id=product_id, quantity__lte=pieces) for product_id, pieces in taken.items()]
        removed, _ = self.items.filter(reduce(or_, whole)).delete()
        if removed < len(taken):
            for product_id, pieces in taken.items():
                self.items.filter(product_id=product_id).update(quantity=F("quantity") - pieces)
        self.token, self.last_order, self.changed_at = uuid4(), order, timezone.now()
        self.save(update_fields=["token", "last_order", "changed_at"])


class CartItem(Row):
    """A product in a cart, with its price at the moment when the quantity was chosen."""

    cart = models.ForeignKey(Cart, on_delete=models.CASCADE, related_name="items")
    product = models.ForeignKey(Product, on_delete=models.CASCADE, related_name="+")
    quantity = models.PositiveIntegerField()
    price = models.DecimalField(max_digits=12, decimal_places=2)

    class Meta(Row.Meta):
        ordering = ["pk"]
        constraints = [
            models.UniqueConstraint(fields=["cart", "product"], name="cart_item_once_per_product"),
            models.CheckConstraint(condition=models.Q(quantity__gte=1), name="cart_item_at_least_one_piece"),
        ]

    def __str__(self) -> str:
        return f"{self.quantity} × {self.product_id}"

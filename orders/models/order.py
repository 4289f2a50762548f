"""Orders, their lines and their documents."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Self
from uuid import UUID

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy
from phonenumber_field.modelfields import PhoneNumberField

from messaging.models.columns import PrimaryQuerySet, Row
from orders.models.product import Product

if TYPE_CHECKING:
    from django.contrib.auth.models import AnonymousUser, User


class OrderQuerySet(PrimaryQuerySet["Order"]):
    def placed_by(self, *, user: User | AnonymousUser, visitor_key: str) -> Self:
        """Orders of this account or this browser."""
        mine = Q(pk__in=[])
        if user.is_authenticated:
            mine |= Q(user=user)
        if visitor_key:
            mine |= Q(visitor_key=visitor_key)
        return self.filter(mine)

    def made_of(self, checkout_token: UUID) -> Order | None:
        """Return the order that the cart with this token became, if it did."""
        return self.filter(checkout_token=checkout_token).first()

    def lock(self, number: str) -> Order:
        """Lock the order and return its current state. Raises Order.DoesNotExist."""
        return self.select_for_update().get(number=number)


class Order(models.Model):
    """A committed order. Its amounts are copies: a later change of prices does not affect them."""

    class Status(models.TextChoices):
        PLACED = "placed", pgettext_lazy("state of an order", "Placed")
        CANCELLED = "cancelled", pgettext_lazy("state of an order", "Cancelled")
        SHIPPED = "shipped", pgettext_lazy("state of an order", "Shipped")

    class ShippingSource(models.TextChoices):
        QUOTED = "quoted", "Quoted by the shipping service"
        FLAT_RATE = "flat_rate", "Flat rate"

    number = models.CharField(max_length=12, unique=True, editable=False)
    checkout_token = models.UUIDField(
        unique=True, editable=False, help_text="One per filled cart: a repeated POST finds the order it made."
    )
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="orders"
    )
    visitor_key = models.CharField(
        max_length=64, blank=True, db_index=True, editable=False, help_text="The browser session that placed it."
    )
    customer_name = models.CharField(max_length=80)
    phone = PhoneNumberField(help_text="Stored as E.164.")
    destination = models.CharField(max_length=2, help_text="Country or region, ISO 3166.")
    #: Processes of a version without this column write orders, too: hence the default in the database.
    language = models.CharField(
        max_length=10, default="en", db_default="en", help_text="In which the shop writes to the customer."
    )
    currency = models.CharField(max_length=3, help_text="ISO 4217.")
    # Wider than a price: a full cart of the most expensive products must fit.
    subtotal = models.DecimalField(max_digits=16, decimal_places=2)
    shipping = models.DecimalField(max_digits=12, decimal_places=2)
    discount = models.DecimalField(max_digits=12, decimal_places=2, default=Decimal(0))
    total = models.DecimalField(max_digits=16, decimal_places=2)
    shipping_source = models.CharField(max_length=10, choices=ShippingSource)
    status = models.CharField(max_length=10, choices=Status, default=Status.PLACED, db_index=True)
    placed_at = models.DateTimeField(default=timezone.now)
    cancelled_at = models.DateTimeField(null=True, blank=True)
    shipped_at = models.DateTimeField(null=True, blank=True)
    red_packet_settled_at = models.DateTimeField(
        null=True, blank=True, editable=False, help_text="When it was decided whether this order earns a red packet."
    )

    #: Whether this very call of `place_order` has made it.
    is_new = False

    objects = OrderQuerySet.as_manager()

    class Meta:
        base_manager_name = "objects"
        ordering = ["-placed_at", "-pk"]
        indexes = [models.Index(fields=["user", "-placed_at"]), models.Index(fields=["-placed_at"])]
        constraints = [
            models.CheckConstraint(
                condition=Q(subtotal__gte=0, shipping__gte=0, discount__gte=0, total__gte=0),
                name="order_amounts_not_negative",
            ),
        ]

    def __str__(self) -> str:
        return self.number

    def get_absolute_url(self) -> str:
        return reverse("orders:order", args=[self.number])

    @property
    def is_cancelled(self) -> bool:
        return self.status == self.Status.CANCELLED

    @property
    def can_be_cancelled(self) -> bool:
        """Until it is shipped."""
        return self.status == self.Status.PLACED

    @property
    def phone_last_four(self) -> str:
        """The digits by which a guest proves to know the order."""
        return str(self.phone.as_e164)[-4:]

    @property
    def masked_phone(self) -> str:
        """The number as a page may show it."""
        return f"•••• {self.phone_last_four}"


class OrderLine(Row):
    """One product of an order, with its name and price on that day."""

    order = models.ForeignKey(Order, on_delete=models.CASCADE, related_name="lines")
    product = models.ForeignKey(Product, on_delete=models.PROTECT, related_name="+")
    sku = models.CharField("SKU", max_length=40)
    product_name = models.CharField(max_length=120)
    unit_price = models.DecimalField(max_digits=12, decimal_places=2)
    quantity = models.PositiveIntegerField()

    class Meta(Row.Meta):
        ordering = ["pk"]
        constraints = [
            models.UniqueConstraint(fields=["order", "product"], name="order_line_once_per_product"),
            models.CheckConstraint(condition=Q(quantity__gte=1), name="order_line_at_least_one_piece"),
        ]

    def __str__(self) -> str:
        return f"{self.quantity} × {self.product_name}"

    @property
    def amount(self) -> Decimal:
        return self.unit_price * self.quantity


class Document(Row):
    """A document of an order. Each kind has a series of numbers."""

    class Kind(models.TextChoices):
        RECEIPT = "receipt", _("Receipt")
        PACKING_SLIP = "packing_slip", _("Packing slip")

    order = models.ForeignKey(Order, on_delete=models.CASCADE, related_name="documents")
    kind = models.CharField(max_length=12, choices=Kind)
    number = models.CharField(max_length=20, unique=True, editable=False)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta(Row.Meta):
        ordering = ["-kind"]
        constraints = [models.UniqueConstraint(fields=["order", "kind"], name="document_once_per_order_and_kind")]

    def __str__(self) -> str:
        return f"{self.get_kind_display()} {self.number}"

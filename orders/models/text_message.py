"""Text messages: what was sent to whom."""

from __future__ import annotations

from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from phonenumber_field.modelfields import PhoneNumberField

from messaging.models.columns import Row
from orders.models.order import Order


class TextMessage(Row):
    """One text message about an order: at most one of each kind, however often its event arrives."""

    class Kind(models.TextChoices):
        PLACED = "placed", _("Order placed")
        CANCELLED = "cancelled", _("Order cancelled")
        SHIPPED = "shipped", _("Order shipped")

    order = models.ForeignKey(Order, on_delete=models.CASCADE, related_name="text_messages")
    kind = models.CharField(max_length=10, choices=Kind)
    phone = PhoneNumberField()
    body = models.TextField()
    message_id = models.CharField(max_length=255, db_index=True, help_text="The message that asked for it.")
    created_at = models.DateTimeField(default=timezone.now, db_index=True)

    class Meta(Row.Meta):
        ordering = ["-created_at", "-pk"]
        constraints = [models.UniqueConstraint(fields=["order", "kind"], name="text_message_once_per_order_and_kind")]

    def __str__(self) -> str:
        return f"{self.get_kind_display()}, {self.order_id}"

    @property
    def masked_phone(self) -> str:
        return f"•••• {str(self.phone.as_e164)[-4:]}"

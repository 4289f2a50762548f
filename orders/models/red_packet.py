"""Red packets: lucky money that an order earns and a later order spends."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Self

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import F, Q
from django.utils import timezone

from messaging.models.columns import PrimaryQuerySet
from orders.models.order import Order
from orders.money import check_payable

if TYPE_CHECKING:
    from django.contrib.auth.models import AnonymousUser, User

_AMOUNT: list[Callable[[Any], None]] = [MinValueValidator(Decimal("0.01")), check_payable]
#: Days. A longer validity may end after the last date that Python knows.
_LONGEST_VALIDITY = 3650


class CampaignQuerySet(PrimaryQuerySet["Campaign"]):
    def running(self, at: datetime) -> Self:
        """Campaigns that give red packets at that moment, the oldest first."""
        return self.filter(active=True, starts_at__lte=at, ends_at__gt=at).order_by("pk")


class Campaign(models.Model):
    """A budget that is given away in random amounts, in `SHOP_CURRENCY`."""

    name = models.CharField(max_length=80, unique=True)
    budget = models.DecimalField(max_digits=12, decimal_places=2, validators=_AMOUNT)
    spent = models.DecimalField(max_digits=12, decimal_places=2, default=Decimal(0), editable=False)
    min_amount = models.DecimalField(max_digits=12, decimal_places=2, validators=_AMOUNT)
    max_amount = models.DecimalField(max_digits=12, decimal_places=2, validators=_AMOUNT)
    starts_at = models.DateTimeField(default=timezone.now)
    ends_at = models.DateTimeField()
    valid_days = models.PositiveIntegerField(
        default=30,
        validators=[MinValueValidator(1), MaxValueValidator(_LONGEST_VALIDITY)],
        help_text="How long a red packet can be spent.",
    )
    active = models.BooleanField(default=True)

    objects = CampaignQuerySet.as_manager()

    class Meta:
        base_manager_name = "objects"
        ordering = ["-starts_at"]
        constraints = [
            models.CheckConstraint(
                condition=Q(spent__gte=0, spent__lte=F("budget")),
                name="campaign_within_budget",
            ),
            models.CheckConstraint(
                condition=Q(min_amount__gt=0, min_amount__lte=F("max_amount")),
                name="campaign_amounts_in_order",
                violation_error_message="The smallest amount must not exceed the largest.",
            ),
            models.CheckConstraint(
                condition=Q(starts_at__lt=F("ends_at")),
                name="campaign_ends_after_start",
                violation_error_message="A campaign must end after it starts.",
            ),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def left(self) -> Decimal:
        return self.budget - self.spent


class RedPacketQuerySet(PrimaryQuerySet["RedPacket"]):
    def of(self, *, user: User | AnonymousUser, visitor_key: str) -> Self:
        """Red packets that orders of this account or this browser earned."""
        return self.filter(order__in=Order.objects.placed_by(user=user, visitor_key=visitor_key))

    def spendable(self, at: datetime) -> Self:
        """Red packets that an order may still use."""
        return self.filter(used_by=None, voided_at=None, expires_at__gt=at)


class RedPacket(models.Model):
    """One red packet. Anybody who knows its code may spend it, once."""

    code = models.CharField(max_length=12, unique=True, editable=False)
    campaign = models.ForeignKey(Campaign, on_delete=models.PROTECT, related_name="red_packets")
    order = models.OneToOneField(
        Order, on_delete=models.PROTECT, related_name="earned_red_packet", verbose_name="earned by"
    )
    amount = models.DecimalField(max_digits=12, decimal_places=2)
    granted_at = models.DateTimeField(default=timezone.now)
    expires_at = models.DateTimeField()
    voided_at = models.DateTimeField(null=True, blank=True)
    used_by = models.OneToOneField(
        Order, null=True, blank=True, on_delete=models.PROTECT, related_name="spent_red_packet"
    )
    used_at = models.DateTimeField(null=True, blank=True)

    objects = RedPacketQuerySet.as_manager()

    class Meta:
        base_manager_name = "objects"
        ordering = ["-granted_at"]
        permissions = [("see_redpacket_code", "Can see and so spend red packet codes")]
        constraints = [
            models.CheckConstraint(condition=Q(amount__gt=0), name="red_packet_worth_something"),
            models.CheckConstraint(
                condition=Q(used_by=None) | Q(voided_at=None), name="red_packet_not_both_used_and_void"
            ),
        ]

    def __str__(self) -> str:
        return self.masked_code

    @property
    def masked_code(self) -> str:
        """The code without the characters that are needed to spend it."""
        return f"•••• {self.code[-3:]}"

    @property
    def state(self) -> str:
        """One word: void, used, expired or ready."""
        if self.voided_at:
            return "void"
        if self.used_by_id:
            return "used"
        return "expired" if self.expires_at <= timezone.now() else "ready"

"""The life of a red packet: granted once per order, spent once, withdrawn or given back with a cancelled order.

The functions run in the caller's transaction. `grant_red_packet` and `withdraw_red_packet` open one if there is none.
"""

from __future__ import annotations

import random
from collections import defaultdict
from datetime import timedelta
from decimal import Decimal
from math import ceil

from django.db import transaction
from django.db.models import F, Q
from django.utils import timezone
from django.utils.translation import gettext as _

from messaging.logs import get_logger
from orders.exceptions import RedPacketRefused
from orders.models import Campaign, Order, RedPacket
from orders.money import rounded_down, smallest_unit
from orders.numbers import new_red_packet_code

log = get_logger(__name__)

# Amounts should not be predictable from earlier ones.
_random = random.SystemRandom()


def grant_red_packet(order_number: str) -> RedPacket | None:
    """Give the order a red packet of a random amount, or decide that it gets none.

    It may be repeated, and may come before or after a cancellation: the order is locked and read as it is now. A second
    call returns the same red packet; a cancelled order gets none. Raises Order.DoesNotExist.
    """
    with transaction.atomic():
        order = Order.objects.lock(order_number)
        if order.red_packet_settled_at:
            return RedPacket.objects.filter(order=order).first()
        packet = None if order.is_cancelled else _draw(order)
        order.red_packet_settled_at = timezone.now()
        order.save(update_fields=["red_packet_settled_at"])
    log.info("red_packet_settled", order=order_number, amount=str(packet.amount) if packet else None)
    return packet


def withdraw_red_packet(order_number: str) -> None:
    """Void the unspent red packet that a cancelled order earned. An order that is not cancelled stays unchanged.

    `cancel_order` has done this already. The repetition when the event arrives covers orders that were cancelled by
    other means. Raises Order.DoesNotExist.
    """
    with transaction.atomic():
        order = Order.objects.lock(order_number)
        if order.is_cancelled:
            undo(order)


def lock_spendable(code: str) -> RedPacket:
    """Lock the red packet of that code. Raises RedPacketRefused, saying why it cannot be spent."""
    packet = RedPacket.objects.select_for_update().filter(code=code).first()
    if packet is None:
        raise RedPacketRefused(_("There is no red packet with this code."))
    if packet.state != "ready":
        reasons = {
            "used": _("Red packet %(code)s is already used."),
            "void": _("Red packet %(code)s was withdrawn."),
            "expired": _("Red packet %(code)s has expired."),
        }
        raise RedPacketRefused(reasons[packet.state] % {"code": packet.code})
    return packet


def discount_of(packet: RedPacket, subtotal: Decimal) -> Decimal:
    """Return the discount of a red packet, in whole units of the currency: never more than the price of the goods."""
    return min(rounded_down(packet.amount), subtotal)


def spend(packet: RedPacket, order: Order) -> None:
    """Mark a locked red packet as used by `order`."""
    packet.used_by, packet.used_at = order, timezone.now()
    packet.save(update_fields=["used_by", "used_at"])


def undo(order: Order) -> None:
    """For a cancelled, locked order: void the unspent red packet that it earned, give back the one that it used."""
    packets = RedPacket.objects.filter(Q(order=order, used_by=None, voided_at=None) | Q(used_by=order))
    void = []
    for packet in packets.order_by("pk").select_for_update():
        if packet.used_by_id == order.pk:
            packet.used_by = packet.used_at = None
            packet.save(update_fields=["used_by", "used_at"])
        # Read only after the red packet is locked: if the order that earned it is cancelled at the same moment, the
        # second transaction sees what the first one did.
        if Order.objects.filter(pk=packet.order_id, status=Order.Status.CANCELLED).exists():
            void.append(packet)
    _void(void)


def _draw(order: Order) -> RedPacket | None:
    """Take a random amount out of the oldest running campaign that can afford one."""
    now = timezone.now()
    unit = smallest_unit(order.currency)
    running = Campaign.objects.running(now).filter(spent__lte=F("budget") - F("min_amount"))
    for candidate in running.values_list("pk", flat=True):
        campaign = Campaign.objects.select_for_update().get(pk=candidate)
        least, most = campaign.min_amount, min(campaign.max_amount, campaign.left)
        # Whole units within the limits: 0.01 for CNY, 1 for JPY.
        amount = Decimal(_random.randint(ceil(least / unit), max(ceil(least / unit), int(most / unit)))) * unit
        if amount > most:
            continue
        campaign.spent += amount
        campaign.save(update_fields=["spent"])
        return RedPacket.objects.create(
            code=new_red_packet_code(),
            campaign=campaign,
            order=order,
            amount=amount,
            granted_at=now,
            expires_at=now + timedelta(days=campaign.valid_days),
        )
    return None


def _void(packets: list[RedPacket]) -> None:
    freed: defaultdict[int, Decimal] = defaultdict(Decimal)
    for packet in packets:
        packet.voided_at = timezone.now()
        packet.save(update_fields=["voided_at"])
        freed[packet.campaign_id] += packet.amount
        log.info("red_packet_withdrawn", red_packet=packet.pk)
    for campaign in Campaign.objects.filter(pk__in=freed).order_by("pk").select_for_update():
        campaign.spent -= freed[campaign.pk]
        campaign.save(update_fields=["spent"])

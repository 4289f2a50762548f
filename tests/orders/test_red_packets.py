"""Granting red packets: within the budget, once, and never for a cancelled order."""

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal

import pytest
from django.utils import timezone

from orders.models import Campaign, Order, Product, RedPacket
from orders.red_packets import grant_red_packet

OrderOf = Callable[..., Order]


def test_the_amount_is_within_the_campaigns_limits_and_counted_as_spent(
    order_of: OrderOf, tea: Product, campaign: Campaign
) -> None:
    packets = [grant_red_packet(order_of(tea).number) for _ in range(8)]
    amounts = [packet.amount for packet in packets if packet]
    campaign.refresh_from_db()
    assert len(amounts) == 8
    assert all(Decimal(1) <= amount <= Decimal("8.88") for amount in amounts)
    assert campaign.spent == sum(amounts)


def test_an_order_gets_one_red_packet_however_often_it_is_asked_and_it_expires(
    order_of: OrderOf, tea: Product, campaign: Campaign
) -> None:
    number = order_of(tea).number
    packet = grant_red_packet(number)
    assert packet
    assert packet == grant_red_packet(number)
    assert RedPacket.objects.get().state == "ready"
    RedPacket.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert RedPacket.objects.get().state == "expired"
    assert not RedPacket.objects.spendable(timezone.now()).exists()


def test_the_budget_is_never_exceeded_and_what_is_left_of_it_is_given(
    order_of: OrderOf, tea: Product, campaign: Campaign
) -> None:
    Campaign.objects.update(budget=Decimal("7.50"), min_amount=Decimal("5.00"), max_amount=Decimal("5.00"))
    assert grant_red_packet(order_of(tea).number)
    assert grant_red_packet(order_of(tea).number) is None
    campaign.refresh_from_db()
    assert campaign.spent == Decimal("5.00")


def test_another_campaign_steps_in_when_the_first_is_spent(order_of: OrderOf, tea: Product, campaign: Campaign) -> None:
    second = Campaign.objects.create(
        name="More luck",
        budget=Decimal(10),
        min_amount=Decimal(2),
        max_amount=Decimal(2),
        ends_at=timezone.now() + timedelta(days=1),
    )
    Campaign.objects.filter(pk=campaign.pk).update(spent=Decimal(100))
    packet = grant_red_packet(order_of(tea).number)
    assert packet
    assert packet.campaign == second


def test_an_order_that_got_none_stays_without_even_when_a_campaign_starts_later(
    order_of: OrderOf, tea: Product
) -> None:
    number = order_of(tea).number
    assert grant_red_packet(number) is None
    Campaign.objects.create(
        name="Late", budget=10, min_amount=1, max_amount=1, ends_at=timezone.now() + timedelta(days=1)
    )
    assert grant_red_packet(number) is None


@pytest.mark.parametrize(
    "change",
    [
        {"active": False},
        {"starts_at": timezone.now() + timedelta(hours=1)},
        {"starts_at": timezone.now() - timedelta(days=2), "ends_at": timezone.now() - timedelta(days=1)},
    ],
    ids=["switched off", "not begun", "over"],
)
def test_a_campaign_that_does_not_run_gives_nothing(
    order_of: OrderOf, tea: Product, campaign: Campaign, change: dict[str, object]
) -> None:
    Campaign.objects.update(**change)
    assert grant_red_packet(order_of(tea).number) is None

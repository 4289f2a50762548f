"""What every fault test has: a shop with something to sell and a campaign that pays."""

from datetime import timedelta
from decimal import Decimal

import pytest
from django.utils import timezone

from orders.models import Campaign, Product


@pytest.fixture
def product(transactional_db: None) -> Product:
    """A product that does not sell out, in a shop whose campaign gives every order a red packet."""
    Campaign.objects.create(
        name="Lucky days",
        budget=Decimal("1000000.00"),
        min_amount=Decimal("1.00"),
        max_amount=Decimal("8.88"),
        ends_at=timezone.now() + timedelta(days=1),
    )
    return Product.objects.create(
        sku="TEA", slug="tea", name="Tea", price=Decimal("38.00"), stock=1_000_000, weight_grams=250
    )

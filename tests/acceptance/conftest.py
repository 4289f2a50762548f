"""A shop with stock and a campaign, on a real database that real processes share."""

from datetime import timedelta
from decimal import Decimal

import pytest
from django.utils import timezone

from orders.models import Campaign, Product


@pytest.fixture
def product(transactional_db: None) -> Product:
    """Something to buy, in plenty, that earns a red packet."""
    Campaign.objects.create(
        name="Lucky days",
        budget=Decimal("10000.00"),
        min_amount=Decimal("1.00"),
        max_amount=Decimal("5.00"),
        ends_at=timezone.now() + timedelta(days=1),
    )
    return Product.objects.create(
        sku="TEA", slug="tea", name="Tea", price=Decimal("38.00"), stock=1000, weight_grams=250
    )

"""The products and the campaign of a chaos run."""

from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal

from django.db import connections
from django.utils import timezone

from orders.models import Campaign, Product


def stock_the_shop(pieces: Mapping[str, int]) -> None:
    """Create the products with so many pieces each, and a campaign with a large budget."""
    Product.objects.bulk_create(
        Product(sku=slug.upper(), slug=slug, name=slug.title(), price=Decimal("38.00"), stock=stock, weight_grams=250)
        for slug, stock in pieces.items()
    )
    Campaign.objects.create(
        name="Chaos",
        budget=Decimal("9999999.00"),
        min_amount=Decimal("1.00"),
        max_amount=Decimal("5.00"),
        ends_at=timezone.now() + timedelta(days=30),
    )
    connections.close_all()

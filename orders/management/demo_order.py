"""Orders without a browser, for `place_order` and `simulate_orders`."""

from __future__ import annotations

from uuid import uuid4

from orders import destinations
from orders.models import Order, Product
from orders.services import Wanted, place_order
from orders.shipping import flat_rate

CUSTOMER = "Demo Customer"
PHONE = "+8613800138000"


def place_demo_order(product: Product, *, quantity: int = 1, phone: str = PHONE, language: str = "") -> Order:
    """Place an order as the shop does, at today's price and the flat shipping rate. Raises what place_order raises."""
    return place_order(
        checkout_token=uuid4(),
        wanted=[Wanted(product_id=product.pk, quantity=quantity)],
        customer_name=CUSTOMER,
        phone=phone,
        destination=destinations.DEFAULT,
        shipping=flat_rate(),
        language=language,
    )

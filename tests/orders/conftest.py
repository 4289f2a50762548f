"""A small shop, and the ways to order from it."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
from django.test import Client
from django.utils import timezone

from messaging.message import Delivery
from orders import shipping
from orders.models import Campaign, Order, Product
from orders.services import Wanted, place_order
from orders.shipping import ShippingQuote
from orders.sms_gateway import SmsGateway
from script.services.sms_gateway import SmsGateway as StubGateway
from tests.orders.shop import Buyer, arrival

QUOTE = ShippingQuote(amount=Decimal("10.00"), source=Order.ShippingSource.QUOTED)


@pytest.fixture
def tea(db: None) -> Product:
    return Product.objects.create(sku="TEA", slug="tea", name="Tea", price=Decimal("38.00"), stock=10, weight_grams=250)


@pytest.fixture
def pot(db: None) -> Product:
    return Product.objects.create(sku="POT", slug="pot", name="Pot", price=Decimal("268.00"), stock=4, weight_grams=800)


@pytest.fixture
def campaign(db: None) -> Campaign:
    return Campaign.objects.create(
        name="Lucky days",
        budget=Decimal("100.00"),
        min_amount=Decimal("1.00"),
        max_amount=Decimal("8.88"),
        ends_at=timezone.now() + timedelta(days=1),
    )


@pytest.fixture
def order_of() -> Callable[..., Order]:
    """Places an order: `order_of(tea, quantity=2)`; other keyword arguments go to `place_order`."""

    def place(*products: Product, quantity: int = 1, **changes: Any) -> Order:
        arguments: dict[str, Any] = {
            "checkout_token": uuid4(),
            "wanted": [Wanted(product_id=product.pk, quantity=quantity) for product in products],
            "customer_name": "Ann Shopper",
            "phone": "+8613800138000",
            "destination": "CN",
            "shipping": QUOTE,
        }
        return place_order(**arguments | changes)

    return place


@pytest.fixture
def delivery() -> Delivery:
    """An arrival of some message, for handlers that only want its id."""
    return arrival("id-1")


@pytest.fixture
def quoted(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The shipping service answers 12.00 to everything; what it was asked, one by one."""
    asked: list[dict[str, Any]] = []

    def call(name: str, payload: dict[str, Any], *, timeout: float) -> dict[str, str]:
        asked.append(payload)
        return {"amount": "12.00", "currency": "CNY"}

    monkeypatch.setattr(shipping.rpc, "call", call)
    return asked


@pytest.fixture
def buyer(client: Client, quoted: list[dict[str, Any]]) -> Buyer:
    """A visitor of the shop, without JavaScript."""
    return Buyer(client)


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StubGateway]:
    with StubGateway(tmp_path_factory.mktemp("gateway")) as running:
        yield running


@pytest.fixture
def gateway(stub: StubGateway) -> SmsGateway:
    """The shop's side of a gateway that behaves well, unless told otherwise."""
    stub.behave()
    return SmsGateway(url=stub.url, token=stub.token, honours_keys=True, ask_url=f"{stub.url}?key={{key}}")

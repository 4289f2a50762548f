"""The shop's events. Their types are the contract; consumers read the order itself from the database."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from pydantic import BaseModel, ConfigDict

from messaging.events import Event


class OrderedProduct(BaseModel):
    """One line of an order."""

    model_config = ConfigDict(frozen=True)

    sku: str
    quantity: int
    unit_price: Decimal


class OrderPlaced(Event, type="order.placed", version=1):
    """An order was committed, with its stock and documents. It holds no personal data."""

    order_number: str
    placed_at: datetime
    currency: str
    total: Decimal
    lines: tuple[OrderedProduct, ...]


class OrderCancelled(Event, type="order.cancelled", version=1):
    """An order was cancelled and its stock is back on the shelf."""

    order_number: str
    cancelled_at: datetime


class OrderShipped(Event, type="order.shipped", version=1):
    """An order left the house; it can no longer be cancelled."""

    order_number: str
    shipped_at: datetime

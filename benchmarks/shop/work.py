"""The work: placing an order, and the handler of those who keep an inbox by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from django.db import connection, transaction
from django.db.models import F

from benchmarks.shop.models import Line, Order, Product, Receipt


def place_order(number: str, products: Sequence[Product], event: Callable[[str], object]) -> None:
    """Write an order with a line for each product, and call `event` in its transaction."""
    with transaction.atomic():
        order = Order.objects.create(number=number, phone="+8613800138000", total="264.00")
        Line.objects.bulk_create(Line(order=order, product=product, quantity=1) for product in products)
        Product.objects.filter(pk__in=[product.pk for product in products]).update(stock=F("stock") - 1)
        event(number)


def write_receipt(event: dict[str, Any], message_id: str) -> None:
    """Note the message and write its receipt, with the caller's transaction; nothing if it was noted before."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO shop_seen (message_id, seen_at) VALUES (%s, now()) ON CONFLICT DO NOTHING", [message_id]
        )
        if cursor.rowcount:
            Receipt.objects.create(number=event["number"], phone=event["phone"], text=event["note"])

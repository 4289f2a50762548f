"""The work of a handler, for those who fence it by hand."""

from __future__ import annotations

from typing import Any

from django.db import connection

from benchmarks.shop.models import Receipt


def write_receipt(event: dict[str, Any], message_id: str) -> None:
    """Note the message and write its receipt, with the caller's transaction; nothing if it was noted before."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO shop_seen (message_id, seen_at) VALUES (%s, now()) ON CONFLICT DO NOTHING", [message_id]
        )
        if cursor.rowcount:
            Receipt.objects.create(number=event["number"], phone=event["phone"], text=event["note"])

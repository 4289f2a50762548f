"""Warren's consumer."""

from __future__ import annotations

import os
from typing import Any

from benchmarks.shop.count import handled
from benchmarks.shop.direct import entered
from benchmarks.shop.events import OrderPlaced, OrderSeen
from benchmarks.shop.models import Receipt
from messaging.consumers import consumer

#: Its queue.
QUEUE = "shop.receipts"


@consumer("receipts", OrderPlaced, batch=int(os.environ.get("BENCH_BATCH", "1")))
def receipts(event: OrderPlaced, delivery: Any) -> None:
    """Write a receipt."""
    entered(event.number)
    Receipt.objects.create(number=event.number, phone=event.phone, text=event.note)


# Another checkout may not know the option.
_OPTIONS: dict[str, Any] = {"fenced": False} if os.environ.get("BENCH_FENCED") == "0" else {}


@consumer("nothing", OrderSeen, **_OPTIONS)
def nothing(event: OrderSeen, delivery: Any) -> None:
    """Only count."""
    handled()

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


_BATCH = int(os.environ.get("BENCH_BATCH", "1"))

if os.environ.get("BENCH_WHOLE"):

    @consumer("receipts", OrderPlaced, batch=_BATCH, whole_batch=True)
    def all_receipts(events: list[OrderPlaced], deliveries: list[Any]) -> None:
        """Write the receipts of a batch at once."""
        Receipt.objects.bulk_create(Receipt(number=each.number, phone=each.phone, text=each.note) for each in events)

else:

    @consumer("receipts", OrderPlaced, batch=_BATCH)
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

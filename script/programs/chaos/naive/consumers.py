"""The naive consumer: it fails at times, and never checks whether it did its work before."""

import time
from zlib import crc32

from messaging.consumers import consumer
from messaging.message import Delivery
from orders.events import OrderCancelled, OrderPlaced
from script.programs.chaos.naive.models import Handling

#: One in so many messages fails at its first attempt.
FAILS = 8
#: Seconds that the work takes: long enough to be killed while it runs.
WORK = 0.02


@consumer("naive", OrderPlaced, OrderCancelled)
def naive(event: OrderPlaced | OrderCancelled, delivery: Delivery) -> None:
    """Record the run. If it fails, the record must be rolled back with its transaction."""
    Handling.objects.create(message_id=delivery.message_id, order_number=event.order_number)
    time.sleep(WORK)
    if delivery.attempt == 1 and crc32(delivery.message_id.encode()) % FAILS == 0:
        raise RuntimeError("this one fails the first time")

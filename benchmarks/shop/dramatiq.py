"""Dramatiq: the same work as an actor, acknowledged after it ran."""

from __future__ import annotations

from typing import Any

import django
import dramatiq
from django.apps import apps
from django.conf import settings
from django.db import transaction
from dramatiq.brokers.rabbitmq import RabbitmqBroker

if not apps.ready:
    django.setup()

from benchmarks.shop.count import handled
from benchmarks.shop.work import write_receipt

QUEUE = "receipts"

dramatiq.set_broker(RabbitmqBroker(url=settings.AMQP_URL))


@dramatiq.actor(queue_name=QUEUE)
def receipts(event: dict[str, Any], message_id: str) -> None:
    """Write a receipt, once for each message."""
    with transaction.atomic():
        write_receipt(event, message_id)


@dramatiq.actor(queue_name=QUEUE)
def nothing(event: dict[str, Any], message_id: str) -> None:
    """Only count."""
    handled()

"""Celery: the same work as a task, published with confirms to a quorum queue, acknowledged late."""

from __future__ import annotations

from typing import Any

import django
from django.apps import apps
from django.conf import settings
from django.db import transaction

if not apps.ready:
    django.setup()

from benchmarks.shop.celery_app import confirming
from benchmarks.shop.count import handled
from benchmarks.shop.direct import entered
from benchmarks.shop.work import write_receipt

QUEUE = "celery.receipts"

app = confirming(settings.AMQP_URL, QUEUE)


@app.task(name="receipts", ignore_result=True)
def receipts(event: dict[str, Any], message_id: str) -> None:
    """Write a receipt, once for each message."""
    entered(event["number"])
    with transaction.atomic():
        write_receipt(event, message_id)


@app.task(name="nothing", ignore_result=True)
def nothing(event: dict[str, Any], message_id: str) -> None:
    """Only count."""
    handled()


@app.task(name="echo")
def echo(text: str) -> str:
    """Return what was sent."""
    return text

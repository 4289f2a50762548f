"""Celery: the same work as a task, published with confirms to a quorum queue, acknowledged late."""

from __future__ import annotations

import os
from typing import Any

import django
from celery import Celery
from django.apps import apps
from django.conf import settings
from django.db import transaction
from kombu import Queue

if not apps.ready:
    django.setup()

from benchmarks.shop.direct import entered
from benchmarks.shop.work import write_receipt

QUEUE = "celery.receipts"

app = Celery("bench", broker=settings.AMQP_URL)
app.conf.update(
    broker_transport_options={"confirm_publish": True},
    broker_connection_retry_on_startup=True,
    task_default_queue=QUEUE,
    task_queues=[Queue(QUEUE, routing_key=QUEUE, queue_arguments={"x-queue-type": "quorum"})],
    result_backend="rpc://",
    task_acks_late=True,
    worker_hijack_root_logger=False,
)
if os.environ.get("BENCH_TUNED"):
    # Celery closes the database connection after each task unless told to use it several times.
    app.conf.update(worker_prefetch_multiplier=100, CELERY_DB_REUSE_MAX=1_000_000, worker_enable_remote_control=False)


@app.task(name="receipts", ignore_result=True)
def receipts(event: dict[str, Any], message_id: str) -> None:
    """Write a receipt, once for each message."""
    entered(event["number"])
    with transaction.atomic():
        write_receipt(event, message_id)


@app.task(name="echo")
def echo(text: str) -> str:
    """Return what was sent."""
    return text

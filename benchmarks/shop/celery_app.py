"""Celery as all benchmarks use it: published with confirms to a quorum queue, acknowledged late."""

from __future__ import annotations

import os

from celery import Celery
from kombu import Queue


def confirming(url: str, queue: str) -> Celery:
    """Return an app for one broker and one queue."""
    app = Celery("bench", broker=url)
    app.conf.update(
        broker_transport_options={"confirm_publish": True},
        broker_connection_retry_on_startup=True,
        task_default_queue=queue,
        task_queues=[Queue(queue, routing_key=queue, queue_arguments={"x-queue-type": "quorum"})],
        result_backend="rpc://",
        task_acks_late=True,
        worker_hijack_root_logger=False,
    )
    if os.environ.get("BENCH_TUNED"):
        # Celery closes the database connection after each task unless told to use it several times.
        app.conf.update(
            worker_prefetch_multiplier=100, CELERY_DB_REUSE_MAX=1_000_000, worker_enable_remote_control=False
        )
    return app

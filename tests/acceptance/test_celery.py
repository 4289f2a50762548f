"""Housekeeping runs in a real Celery worker, on the same RabbitMQ as the messages."""

import re
import sys
from datetime import timedelta
from pathlib import Path

from django.utils import timezone

from messaging.models import OutboxMessage
from tests.support.processes import ProcessStarter
from tests.support.waiting import eventually

CELERY = (str(Path(sys.executable).with_name("celery")), "-A", "project")
WORKER = (*CELERY, "worker", "--concurrency=1", "--loglevel=INFO")


def outbox_row(age: timedelta) -> OutboxMessage:
    then = timezone.now() - age
    return OutboxMessage.objects.create(
        message_id=str(age),
        type="order.placed",
        routing_key="order.placed",
        body=b"{}",
        state=OutboxMessage.State.PUBLISHED,
        created_at=then,
        published_at=then,
    )


def test_a_worker_prunes_when_it_is_asked_to(vhost: str, run_process: ProcessStarter) -> None:
    outbox_row(timedelta(days=15))
    young = outbox_row(timedelta(days=1))
    worker = run_process.program(*WORKER)
    worker.wait_for_line(r"ready\.", timeout=40)

    assert run_process.program(*CELERY, "call", "messaging.prune").wait() == 0

    line = worker.wait_for_line(r"messages\.pruned.*").string
    assert re.search(r"outbox=1\b.*inbox=0\b|inbox=0\b.*outbox=1\b", line)
    assert OutboxMessage.objects.get() == young
    assert worker.stop() == 0


def test_beat_asks_for_what_the_worker_knows(vhost: str, run_process: ProcessStarter, tmp_path: Path) -> None:
    outbox_row(timedelta(days=15))
    run_process.program(*WORKER).wait_for_line(r"ready\.", timeout=40)
    beat = run_process.program(
        *CELERY, "beat", "--pidfile=", f"--schedule={tmp_path / 'schedule'}", "--loglevel=INFO",
        DJANGO_SETTINGS_MODULE="tests.acceptance.frequent_beat",
    )  # fmt: skip

    beat.wait_for_line(r"Sending due task.*messaging\.prune", timeout=40)

    eventually(lambda: not OutboxMessage.objects.exists(), within=30)

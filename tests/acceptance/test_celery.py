"""Housekeeping runs in a real Celery worker, on the same RabbitMQ as the messages."""

import re
import sys
from datetime import timedelta
from pathlib import Path

import pika
from django.utils import timezone

from messaging.models import OutboxMessage
from tests.support.amqp import plain_channel
from tests.support.pickle_probe import pickle_that_creates
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


def test_a_worker_reconciles_when_it_is_asked_to(vhost: str, run_process: ProcessStarter) -> None:
    stuck = outbox_row(timedelta(days=1))
    OutboxMessage.objects.filter(pk=stuck.pk).update(state=OutboxMessage.State.FAILED)
    worker = run_process.program(*WORKER)
    worker.wait_for_line(r"ready\.", timeout=40)

    assert run_process.program(*CELERY, "call", "messaging.reconcile").wait() == 0

    assert "stuck=1" in worker.wait_for_line(r"messages\.reconciled.*").string


def test_beat_asks_for_what_the_worker_knows(vhost: str, run_process: ProcessStarter) -> None:
    outbox_row(timedelta(days=15))
    run_process.program(*WORKER).wait_for_line(r"ready\.", timeout=40)
    beat = run_process.program(
        *CELERY, "beat", "--pidfile=", "--loglevel=INFO",
        DJANGO_SETTINGS_MODULE="tests.acceptance.frequent_beat",
    )  # fmt: skip

    beat.wait_for_line(r"Sending due task.*messaging\.prune", timeout=40)

    eventually(lambda: not OutboxMessage.objects.exists(), within=30)


def test_a_pickled_task_is_refused_and_nothing_of_it_runs(
    vhost: str, run_process: ProcessStarter, tmp_path: Path
) -> None:
    worker = run_process.program(*WORKER)
    worker.wait_for_line(r"ready\.", timeout=40)
    message = {"id": "1", "task": "messaging.prune", "lang": "py"}
    with plain_channel(vhost) as channel:
        for content_type in ("application/x-python-serialize", "application/x-yaml"):
            properties = pika.BasicProperties(content_type=content_type, content_encoding="binary", headers=message)
            channel.basic_publish(
                "", "warren.celery", pickle_that_creates(tmp_path / "ran"), properties, mandatory=True
            )

    eventually(lambda: worker.output.count("ContentDisallowed: Refusing") == 2, within=30, report=lambda: worker.output)
    assert not (tmp_path / "ran").exists()
    assert run_process.program(*CELERY, "call", "messaging.prune").wait() == 0
    worker.wait_for_line(r"messages\.pruned")


def test_beat_keeps_no_file(run_process: ProcessStarter, vhost: str, tmp_path: Path) -> None:
    beat = run_process.program(
        *CELERY, "beat", "--pidfile=", f"--schedule={tmp_path / 'schedule'}", "--loglevel=INFO"
    )  # fmt: skip
    beat.wait_for_line(r"beat: Starting", timeout=40)
    beat.stop()
    assert list(tmp_path.iterdir()) == []

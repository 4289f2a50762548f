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


def outbox_row(age: timedelta, state: str = OutboxMessage.State.PUBLISHED) -> OutboxMessage:
    then = timezone.now() - age
    return OutboxMessage.objects.create(
        message_id=f"{age} {state}",
        type="order.placed",
        routing_key="order.placed",
        body=b"{}",
        state=state,
        created_at=then,
        published_at=then,
    )


def test_a_worker_refuses_pickles_and_prunes_and_reconciles_when_beat_asks(
    vhost: str, run_process: ProcessStarter, tmp_path: Path
) -> None:
    outbox_row(timedelta(days=15))
    young, stuck = outbox_row(timedelta(days=1)), outbox_row(timedelta(days=1), OutboxMessage.State.FAILED)
    worker = run_process.program(*CELERY, "worker", "--concurrency=1", "--loglevel=INFO")
    worker.wait_for_line(r"ready\.", timeout=40)

    task = {"id": "1", "task": "messaging.prune", "lang": "py"}
    with plain_channel(vhost) as channel:
        for content_type in ("application/x-python-serialize", "application/x-yaml"):
            properties = pika.BasicProperties(content_type=content_type, content_encoding="binary", headers=task)
            pickled = pickle_that_creates(tmp_path / "ran")
            channel.basic_publish("", "warren.celery", pickled, properties, mandatory=True)
    eventually(lambda: worker.output.count("ContentDisallowed: Refusing") == 2, within=30, report=lambda: worker.output)
    assert list(tmp_path.iterdir()) == []

    beat = run_process.program(
        *CELERY, "beat", "--pidfile=", f"--schedule={tmp_path / 'schedule'}", "--loglevel=INFO",
        DJANGO_SETTINGS_MODULE="tests.acceptance.frequent_beat",
    )  # fmt: skip

    pruned = worker.wait_for_line(r"messages\.pruned.*", timeout=40).string
    assert re.search(r"outbox=1\b.*inbox=0\b|inbox=0\b.*outbox=1\b", pruned)
    assert set(OutboxMessage.objects.all()) == {young, stuck}
    assert "stuck=1" in worker.wait_for_line(r"messages\.reconciled.*").string
    beat.stop()
    # Told to stop while a task is on its way to its child, Celery waits for that child for ever.
    eventually(lambda: worker.output.count(" succeeded in ") == beat.output.count("Sending due task"), within=30)
    assert worker.stop() == 0
    assert list(tmp_path.iterdir()) == [], "beat keeps no file"

"""The shop's site with another way out for its events: `gunicorn benchmarks.shop.site`. BENCH_EVENTS says which.

`nothing`: no event is published. `celery`: each is sent as a task after the commit, with a confirm.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import django
from django.apps import apps
from django.conf import settings
from django.db import transaction

if not apps.ready:
    django.setup()

from benchmarks.shop.celery_app import confirming
from messaging import outbox
from messaging.events import Event
from project.wsgi import application

__all__ = ["application"]

QUEUE = "celery.receipts"


@confirming(settings.AMQP_URLS[0], QUEUE).task(name="receipts", ignore_result=True)
def receipts(event: dict[str, Any], number: str) -> None:
    """Be sent; no worker runs."""


def nothing(*events: Event, **options: Any) -> None:
    """Publish nothing."""


def celery(*events: Event, subject: str = "", **options: Any) -> None:
    """Send each event after the commit."""
    for event in events:
        transaction.on_commit(partial(receipts.apply_async, (event.model_dump(mode="json"), subject)))


outbox.add = {"nothing": nothing, "celery": celery}[os.environ["BENCH_EVENTS"]]  # type: ignore[assignment]

"""Housekeeping for Celery: each task calls the function that its command calls. No message travels through Celery."""

from __future__ import annotations

from dataclasses import asdict

from celery import shared_task

from messaging import consumers
from messaging.operations import prune
from messaging.sweep import sweep


@shared_task(name="messaging.prune")  # type: ignore[untyped-decorator]
def prune_messages() -> dict[str, int]:
    """Delete what is finished and old; return the counts."""
    return asdict(prune.prune())


@shared_task(name="messaging.sweep")  # type: ignore[untyped-decorator]
def sweep_effects() -> dict[str, int]:
    """Look after effects and messages that wait, for consumers that have no process running; return the counts."""
    return asdict(sweep(consumers.registered()))

"""A database router that sends reads to a replica which has received nothing yet."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connections, models
from django.test import override_settings

REPLICA = "replica"
_OF_THE_PROJECT = {"messaging", "orders", "sessions"}


class ReadsFromReplica:
    """The router of Django's own documentation, for what this project reads."""

    def db_for_read(self, model: type[models.Model], **hints: Any) -> str | None:
        return REPLICA if model._meta.app_label in _OF_THE_PROJECT else None

    def db_for_write(self, model: type[models.Model], **hints: Any) -> str:
        return "default"

    def allow_relation(self, one: models.Model, other: models.Model, **hints: Any) -> bool:
        return True


@contextmanager
def empty_replica() -> Iterator[None]:
    """Within the block reads are routed to a database without a single table: one that goes there fails."""
    primary = connections["default"].settings_dict
    connections.settings[REPLICA] = {
        **primary,
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": ":memory:",
        "OPTIONS": {},
    }
    try:
        with override_settings(DATABASE_ROUTERS=[ReadsFromReplica()]):
            yield
    finally:
        connections[REPLICA].close()
        del connections[REPLICA]
        del connections.settings[REPLICA]

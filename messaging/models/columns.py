"""Columns that outbox and inbox share."""

from __future__ import annotations

from typing import Any

from django.db import models

from messaging.message import MAX_ID_LENGTH


class MessageColumns(models.Model):
    """The columns that belong to the message itself, the same in outbox and inbox."""

    message_id = models.CharField(max_length=MAX_ID_LENGTH)
    type = models.CharField(max_length=255)
    version = models.PositiveIntegerField(default=1)
    subject = models.CharField(max_length=255, blank=True)
    correlation_id = models.CharField(max_length=MAX_ID_LENGTH, blank=True)
    #: Messages with the same key are handled in the order of their transactions; empty: in any order.
    ordering_key = models.CharField(max_length=255, blank=True)
    #: Place of the message among those of its key: the id of its first outbox row, and empty in that row.
    position = models.BigIntegerField(null=True, blank=True)
    #: From 0 to 255, for queues that have priorities; empty: none.
    priority = models.PositiveSmallIntegerField(null=True, blank=True)
    attempt = models.PositiveIntegerField(default=1)
    headers = models.JSONField(default=dict, blank=True)

    class Meta:
        abstract = True

    def message_columns(self) -> dict[str, Any]:
        """Return these columns by name, for another row of the same message."""
        return {field.name: getattr(self, field.name) for field in MessageColumns._meta.fields}

"""Guest look-ups that are still counted against the limit."""

from __future__ import annotations

from django.db import models
from django.utils import timezone


class LookupAttempt(models.Model):
    """One try to find an order as a guest. A table, so that several web processes share the count."""

    key = models.CharField(max_length=80, help_text="Whom it counts against: an order number or an address.")
    created_at = models.DateTimeField(default=timezone.now, db_index=True)

    class Meta:
        indexes = [models.Index(fields=["key", "created_at"])]

    def __str__(self) -> str:
        return self.key

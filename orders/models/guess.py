"""Guesses that are still counted against a limit."""

from __future__ import annotations

from django.db import models
from django.utils import timezone

from messaging.primary import PrimaryQuerySet


class Guess(models.Model):
    """One try to prove something: to know an order, or a password. A table, so that all web processes share the
    count."""

    key = models.CharField(max_length=120, help_text="What it counts against: an order number, an address, …")
    created_at = models.DateTimeField(default=timezone.now, db_index=True)

    objects = PrimaryQuerySet["Guess"].as_manager()

    class Meta:
        base_manager_name = "objects"
        verbose_name_plural = "guesses"
        indexes = [models.Index(fields=["key", "created_at"], name="guess_key_time")]

    def __str__(self) -> str:
        return self.key

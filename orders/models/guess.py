"""Tries that are still counted against a limit, and places where they need not be."""

from __future__ import annotations

from django.db import models
from django.utils import timezone

from messaging.models.querysets import PrimaryQuerySet


class Guess(models.Model):
    """One try at what is limited: to prove to know an order or a password, to sign up, to order. A table, so that all
    web processes share the count."""

    key = models.CharField(max_length=120, help_text="What it counts against: an order number, an address, …")
    created_at = models.DateTimeField(default=timezone.now, db_index=True)
    kept_until = models.DateTimeField(null=True, help_text="If it counts for longer than the usual time.")

    objects = PrimaryQuerySet["Guess"].as_manager()

    class Meta:
        base_manager_name = "objects"
        verbose_name_plural = "guesses"
        indexes = [models.Index(fields=["key", "created_at"], name="guess_key_time")]

    def __str__(self) -> str:
        return self.key


class KnownPlace(models.Model):
    """An account and an address from which it signed in. Whoever locks the name elsewhere does not lock it there."""

    key = models.CharField(max_length=64, unique=True, help_text="A digest of both.")
    seen_at = models.DateTimeField(default=timezone.now, db_index=True)

    objects = PrimaryQuerySet["KnownPlace"].as_manager()

    class Meta:
        base_manager_name = "objects"

    def __str__(self) -> str:
        return self.key

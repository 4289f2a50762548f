"""What the web processes share about visits: sessions, limits, and services that do not answer."""

from __future__ import annotations

from datetime import timedelta

from django.contrib.sessions.models import Session
from django.db import models
from django.db.models.functions import Now
from django.utils import timezone

from messaging.models.columns import PrimaryQuerySet, Row


class VisitorSession(Session):
    """Django's session, always read from the primary database.

    On a replica that lags, a cart that was just filled would be empty, and a session that was just ended would live.
    """

    objects = PrimaryQuerySet["VisitorSession"].as_manager()  # type: ignore[assignment,misc]

    class Meta:
        proxy = True
        base_manager_name = "objects"
        default_permissions = ()


class Guess(Row):
    """One try at something limited: proving to know an order or a password, signing up, ordering."""

    key = models.CharField(max_length=120, help_text="What it counts against: an order number, an address, …")
    created_at = models.DateTimeField(default=timezone.now, db_index=True)
    kept_until = models.DateTimeField(null=True, help_text="If it counts for longer than the usual time.")

    class Meta(Row.Meta):
        verbose_name_plural = "guesses"
        indexes = [models.Index(fields=["key", "created_at"], name="guess_key_time")]

    def __str__(self) -> str:
        return self.key


class KnownPlace(Row):
    """An account and an address from which it signed in: tries from elsewhere do not lock it there."""

    key = models.CharField(max_length=64, unique=True, help_text="A digest of both.")
    seen_at = models.DateTimeField(default=timezone.now, db_index=True)

    def __str__(self) -> str:
        return self.key


class QuietServiceQuerySet(PrimaryQuerySet["QuietService"]):
    def note(self, name: str, pause: timedelta) -> None:
        """Record that `name` did not answer: it is not asked during `pause`."""
        self.update_or_create(name=name, defaults={"until": Now() + pause})

    def may_try(self, name: str, pause: timedelta) -> bool:
        """Return whether the caller may ask a quiet service: after each pause one caller may."""
        over = self.filter(name=name, until__lte=Now())
        return over.exists() and bool(over.update(until=Now() + pause))

    def forget(self, name: str) -> None:
        """Let every visitor ask `name` again."""
        self.filter(name=name).delete()


class QuietService(models.Model):
    """A service that did not answer. Until it does, most visitors do not wait for it."""

    name = models.CharField(max_length=80, unique=True)
    until = models.DateTimeField()

    objects = QuietServiceQuerySet.as_manager()

    class Meta:
        base_manager_name = "objects"

    def __str__(self) -> str:
        return self.name

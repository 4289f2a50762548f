"""Services that did not answer, and until when nobody asks them again."""

from __future__ import annotations

from datetime import timedelta

from django.db import models
from django.db.models.functions import Now

from messaging.models.querysets import PrimaryQuerySet


class QuietServiceQuerySet(PrimaryQuerySet["QuietService"]):
    def note(self, name: str, rest: timedelta) -> None:
        """Let nobody ask `name` for as long as `rest`."""
        self.update_or_create(name=name, defaults={"until": Now() + rest})

    def take_turn(self, name: str, rest: timedelta) -> bool:
        """Whether the caller may try if `name` is back: once its rest is over one may, and for the others it
        begins anew."""
        over = self.filter(name=name, until__lte=Now())
        return over.exists() and bool(over.update(until=Now() + rest))

    def forget(self, name: str) -> None:
        """Let everybody ask `name` again."""
        self.filter(name=name).delete()


class QuietService(models.Model):
    """A service that visitors waited for in vain. A table, so that all web processes know."""

    name = models.CharField(max_length=80, unique=True)
    until = models.DateTimeField()

    objects = QuietServiceQuerySet.as_manager()

    class Meta:
        base_manager_name = "objects"

    def __str__(self) -> str:
        return self.name

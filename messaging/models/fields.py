"""Times of rows, which mean the same whatever the project's time zones are."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.expressions import Expression
from django.utils import timezone

#: The class that migrations name instead of ours: the columns are the same.
_PLAIN = "django.db.models.DateTimeField"


class UTCDateTimeField(models.DateTimeField):  # type: ignore[type-arg]
    """A time that is an aware datetime in Python, also in projects with `USE_TZ = False`.

    Django's own is naive there, in the time of `TIME_ZONE`. SQLite's clock (`Now()`), which writes most of our times,
    is UTC whatever the settings are: so SQLite's columns always hold UTC here.
    """

    def deconstruct(self) -> Any:
        """Return what migrations write: Django's own field."""
        name, _, arguments, options = super().deconstruct()
        return name, _PLAIN, arguments, options

    def from_db_value(self, value: Any, expression: Expression, connection: BaseDatabaseWrapper) -> datetime | None:
        """Return the time as it was written."""
        return None if value is None else as_written(value, connection)

    def get_prep_value(self, value: Any) -> Any:
        """Return what is compared or written, aware. A naive time is in the project's time zone."""
        value = self.to_python(value)
        if isinstance(value, datetime) and timezone.is_naive(value):
            value = timezone.make_aware(value, timezone.get_default_timezone())
        return value

    def get_db_prep_value(self, value: Any, connection: BaseDatabaseWrapper, prepared: bool = False) -> Any:
        """Return the value as the driver takes it."""
        if not prepared:
            value = self.get_prep_value(value)
        if isinstance(value, datetime) and connection.vendor == "sqlite":
            value = value.astimezone(UTC).replace(tzinfo=None)
        return connection.ops.adapt_datetimefield_value(value)


def as_written(value: datetime, connection: BaseDatabaseWrapper) -> datetime:
    """Return a time that Django has read, aware."""
    if connection.vendor == "sqlite":
        return value.replace(tzinfo=UTC)  # Django took it for the project's time zone
    if timezone.is_naive(value):
        # When summer time ends an hour occurs twice: the driver's `fold` says which it is.
        return value.replace(tzinfo=ZoneInfo(connection.timezone_name)).astimezone(UTC)
    return value

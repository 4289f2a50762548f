"""What all rows share: times in UTC, reads from the primary database, and the columns of a message."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from django.db import models, router
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.expressions import Expression
from django.utils import timezone

from messaging.message import MAX_ID_LENGTH

AnyRow = TypeVar("AnyRow", bound=models.Model)


class UTCDateTimeField(models.DateTimeField):  # type: ignore[type-arg]
    """A time that is an aware datetime in Python, also in projects with `USE_TZ = False`.

    Django's own is naive there, in the time of `TIME_ZONE`. SQLite's clock (`Now()`), which writes most of our times,
    is UTC whatever the settings are: so SQLite's columns always hold UTC here.
    """

    def deconstruct(self) -> Any:
        """Return what migrations write: Django's own field, which has the same column."""
        name, _, arguments, options = super().deconstruct()
        return name, "django.db.models.DateTimeField", arguments, options

    def from_db_value(self, value: Any, expression: Expression, connection: BaseDatabaseWrapper) -> datetime | None:
        """Return the time as it was written."""
        return None if value is None else as_written(value, connection)

    def get_prep_value(self, value: Any) -> Any:
        """Return what is compared or written, aware. A naive time is in the project's time zone."""
        value = self.to_python(value)
        is_naive = isinstance(value, datetime) and timezone.is_naive(value)
        return timezone.make_aware(value, timezone.get_default_timezone()) if is_naive else value

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


class PrimaryQuerySet(models.QuerySet[AnyRow]):
    """A query set that reads the database to which its rows are written.

    A router may send reads to a replica, which lags: a message would be handled out of order, or taken for lost.
    `using()` still names another database. As the default and base manager of a model it also covers
    `refresh_from_db`, related objects and the admin.
    """

    _db: str | None
    _hints: dict[str, Any]

    @property
    def db(self) -> str:
        """The alias of the database that this query is sent to."""
        # `_db` stays unset, so that inside a project's query of a replica this query can go there too.
        return self._db or router.db_for_write(self.model, **self._hints)


class Row(models.Model):
    """Parent of every row: it is read where it is written."""

    objects = PrimaryQuerySet.as_manager()

    class Meta:
        abstract = True
        base_manager_name = "objects"


def by_beginning(column: str, *, name: str) -> models.Index:
    """Return an index that finds a text as a whole, or by its beginning, whatever the database's collation is."""
    return models.Index(fields=[column], name=name, opclasses=["varchar_pattern_ops"])


class MessageColumns(Row):
    """The columns that belong to the message itself, the same in outbox and inbox.

    Defaults are in the database too: `insert` leaves out what has its default, and so may an older or newer version of
    this code that knows fewer columns.
    """

    message_id = models.CharField(max_length=MAX_ID_LENGTH)
    type = models.CharField(max_length=255)
    version = models.PositiveIntegerField(default=1, db_default=1)
    subject = models.CharField(max_length=255, blank=True, default="", db_default="")
    correlation_id = models.CharField(max_length=MAX_ID_LENGTH, blank=True, default="", db_default="")
    #: Messages with the same key are handled in the order of their transactions; empty: in any order.
    ordering_key = models.CharField(max_length=255, blank=True, default="", db_default="")
    #: Place of the message among those of its key: the id of its first outbox row, and empty in that row.
    position = models.BigIntegerField(null=True, blank=True)
    #: From 0 to 255, for queues that have priorities; empty: none.
    priority = models.PositiveSmallIntegerField(null=True, blank=True)
    attempt = models.PositiveIntegerField(default=1, db_default=1)
    headers = models.JSONField(default=dict, db_default={}, blank=True)

    class Meta(Row.Meta):
        abstract = True

    def message_columns(self) -> dict[str, Any]:
        """Return these columns by name, for another row of the same message."""
        return {field.name: getattr(self, field.name) for field in MessageColumns._meta.fields}

"""One narrow INSERT: it names only the columns that differ from their default in the database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from typing import Any

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.functions import Now
from django.db.transaction import mark_for_rollback_on_error

from messaging.models.clock import later

#: Most parameters of a statement where the database sets no limit. PostgreSQL's protocol has room for 65,535.
MOST_PARAMETERS = 32_767
#: A time as it is returned: a text in UTC, or microseconds since 1970. Drivers take longer to read times, and depend on
#: settings of time zones.
_RETURNED = {"sqlite": "\"{}\" || ''", "postgresql": '(EXTRACT(EPOCH FROM "{}") * 1000000)::bigint'}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def insert(rows: Sequence[models.Model], connection: BaseDatabaseWrapper, **from_now: timedelta) -> None:
    """Insert new `rows` of one model, in one statement if a database takes so many parameters at once.

    A column is written if it differs from its database default in one of the rows. Times whose default is Now() are
    left to the database; those that `from_now` names become so much later than now. The rows get their keys and the
    times with a default; other times in `from_now` are read once they are asked for.

    As with `bulk_create`, no signals are sent, and an error marks the transaction for rollback.
    """
    if not rows:
        return
    model = type(rows[0])
    columns = _columns(model)
    defaults = columns.defaults.items()
    names = tuple(dict.fromkeys(name for row in rows for name, default in defaults if getattr(row, name) != default))
    head, values, tail, returned = _sql(model, connection.vendor, names, tuple(from_now))
    seconds = [each.total_seconds() for each in from_now.values()]
    most = (connection.features.max_query_params or MOST_PARAMETERS) // (len(names) + len(seconds))
    with mark_for_rollback_on_error(connection.alias), connection.cursor() as cursor:
        for start in range(0, len(rows), most):
            some = rows[start : start + most]
            given: list[Any] = []
            for row in some:
                given += [columns.fields[name].get_db_prep_save(getattr(row, name), connection) for name in names]
                given += seconds
            cursor.execute(f"{head}{', '.join([values] * len(some))}{tail}", given)
            for row, (key, *written) in zip(some, cursor.fetchall(), strict=True):
                for name in from_now:
                    row.__dict__.pop(name, None)
                times = [_time(each) for each in written]
                for name, place in returned:
                    setattr(row, name, times[place])
                row.pk = key
                row._state.adding, row._state.db = False, connection.alias


@dataclass(frozen=True, slots=True)
class _Columns:
    #: Those that a row may set, by their attribute, and what the database writes into each by itself.
    fields: dict[str, Any]
    defaults: dict[str, Any]
    #: Attributes of the times whose default is Now().
    filled: tuple[str, ...]


@cache
def _columns(model: type[models.Model]) -> _Columns:
    own = {field.attname: field for field in model._meta.concrete_fields if not field.primary_key}
    filled = tuple(name for name, field in own.items() if isinstance(field.db_default, Now))
    fields = {name: field for name, field in own.items() if name not in filled}
    defaults = {
        name: None if field.null and not field.has_db_default() else field.db_default for name, field in fields.items()
    }
    return _Columns(fields, defaults, filled)


@lru_cache(maxsize=256)
def _sql(
    model: type[models.Model], vendor: str, names: tuple[str, ...], from_now: tuple[str, ...]
) -> tuple[str, str, str, list[tuple[str, int]]]:
    """Return the beginning of the statement, the values of each row, the end, and which of the times behind the key
    each time with a default is. Now() is the same in all of a statement, and returned once."""
    columns = {field.attname: field.column for field in model._meta.concrete_fields}
    values = ["%s"] * len(names) + [later(vendor, "%s")] * len(from_now)
    filled = _columns(model).filled
    now = [name for name in filled if name not in from_now]
    times = [*now[:1], *(name for name in filled if name in from_now)]
    back = [f'"{columns[model._meta.pk.attname]}"', *(_RETURNED[vendor].format(columns[name]) for name in times)]
    listed = ", ".join(f'"{columns[name]}"' for name in names + from_now)
    return (
        f'INSERT INTO "{model._meta.db_table}" ({listed}) VALUES ',  # noqa: S608
        f"({', '.join(values)})",
        f" RETURNING {', '.join(back)}",
        [(name, times.index(name) if name in times else 0) for name in filled],
    )


def _time(written: int | str) -> datetime:
    """Return a time that was returned as one of _RETURNED."""
    if isinstance(written, int):
        return _EPOCH + timedelta(microseconds=written)
    return datetime.fromisoformat(written).replace(tzinfo=UTC)

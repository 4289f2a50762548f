"""Reads from the primary database, whatever a database router says about reads."""

from __future__ import annotations

from typing import Any, TypeVar

from django.db import models, router

Row = TypeVar("Row", bound=models.Model)


class PrimaryQuerySet(models.QuerySet[Row]):
    """A query set that reads the database to which its rows are written.

    A router may send reads to a replica. A replica lags, and decisions based on it would be wrong: a message would be
    handled out of order, or taken for lost. `using()` still names another database. As the default and base manager of
    a model it also covers `refresh_from_db`, related objects and the admin.
    """

    _db: str | None
    _hints: dict[str, Any]

    @property
    def db(self) -> str:
        """The alias of the database that this query is sent to."""
        # `_db` stays unset, so that inside a project's query of a replica this query can go there too.
        return self._db or router.db_for_write(self.model, **self._hints)

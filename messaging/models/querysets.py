"""Reads that decide: made where the rows are written, whatever a database router says about reads."""

from __future__ import annotations

from typing import Any, TypeVar

from django.db import models, router

Row = TypeVar("Row", bound=models.Model)


class PrimaryQuerySet(models.QuerySet[Row]):
    """A query set that reads the database to which its rows are written.

    A router may send reads to a replica. A replica lags, and a decision made on what it says is wrong: a message would
    be handled out of order, or taken for lost. `using()` still names another database. As default and base manager of
    a model it covers `refresh_from_db`, related objects and the admin as well.
    """

    _db: str | None
    _hints: dict[str, Any]

    @property
    def db(self) -> str:
        """The alias of the database that this query is sent to."""
        # Not set as `_db`: inside a query of the project's that reads a replica, this one has to go along.
        return self._db or router.db_for_write(self.model, **self._hints)

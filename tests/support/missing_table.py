"""A database that has not been migrated yet."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection
from django.db.models import Model


@contextmanager
def missing_table(model: type[Model]) -> Iterator[None]:
    """Within the block the database has no table for `model`; afterwards it is back, with its rows.

    The table itself goes. To give the model another name for it would outlive the block: Django's fields remember the
    table that they are of from the first time they are asked.
    """
    table = model._meta.db_table
    _rename(table, f"{table}_hidden")
    try:
        yield
    finally:
        _rename(f"{table}_hidden", table)


def _rename(old: str, new: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f'ALTER TABLE "{old}" RENAME TO "{new}"')

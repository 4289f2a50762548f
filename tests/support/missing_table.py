"""A database that has not been migrated yet."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection
from django.db.models import Model


@contextmanager
def missing_table(model: type[Model]) -> Iterator[None]:
    """Within the block the database has no table for `model`; afterwards it is back, with its rows.

    The table itself is renamed. Renaming it in the model would outlive the block: Django's fields cache the name of
    their table.
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

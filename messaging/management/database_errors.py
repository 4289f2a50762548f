"""What a command says when the database does not do what it asks: one line, and the exit code that belongs to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.core.management.base import CommandError
from django.db import InterfaceError, OperationalError, ProgrammingError

from messaging import database
from messaging.management.arguments import EXIT_UNREACHABLE


@contextmanager
def told_in_one_line() -> Iterator[None]:
    """Turn the database's errors into CommandError: 3 where it cannot be reached, else 1."""
    try:
        yield
    except (OperationalError, InterfaceError, ProgrammingError) as error:
        reason = str(error).strip()
        if database.is_away(error):
            raise CommandError(f"The database is out of reach: {reason}", returncode=EXIT_UNREACHABLE) from None
        missing = isinstance(error, ProgrammingError) or "no such" in reason
        # A lock, or a deadlock: what was done before it stands, as each page is a transaction of its own.
        hint = "Did `manage.py migrate` run?" if missing else "Repeat the command: it goes on where it was."
        raise CommandError(f"The database refuses: {reason}. {hint}") from None

"""What a command says when the database does not do what it asks: one line, and the exit code that belongs to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.core.management.base import CommandError
from django.db import InterfaceError, OperationalError, ProgrammingError

from messaging import database
from messaging.management.arguments import EXIT_UNREACHABLE


@contextmanager
def told_in_one_line(otherwise: str = "Repeat the command: it goes on where it was.") -> Iterator[None]:
    """Turn the database's errors into CommandError: 3 where it cannot be reached, else 1.

    `otherwise` is the advice where the error itself suggests none; without it such an error counts as out of reach.
    """
    try:
        yield
    except (OperationalError, InterfaceError, ProgrammingError) as error:
        reason = str(error).strip()
        # A lock, or a deadlock: what was done before it stands, as each page is a transaction of its own.
        hint = cure(error) or otherwise
        if database.is_away(error) or not hint:
            raise CommandError(f"The database is out of reach: {reason}", returncode=EXIT_UNREACHABLE) from None
        raise CommandError(f"The database refuses: {reason}. {hint}") from None


def cure(error: BaseException) -> str:
    """Return what helps against an error of a database that can be reached; empty where that is not known."""
    if database.takes_no_rows(error):
        return "Is its disk full, or failing?"
    if database.is_read_only(error):
        return "May this user write to it, and is it no standby?"
    if isinstance(error, ProgrammingError) or "no such" in str(error):
        return "Did `manage.py migrate` run?"
    return ""

"""What a command says when the database does not do what it asks: one line, and the exit code that belongs to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from django.core.management.base import CommandError
from django.db import InterfaceError, OperationalError, ProgrammingError
from django.db.models import Model

from messaging import database
from messaging.logs import Throttle, get_logger
from messaging.management.arguments import EXIT_UNREACHABLE

log = get_logger(__name__)

#: Seconds between two tries to reach the database.
PAUSE = 1.0
#: In PostgreSQL's refusals of an address or account, which no waiting mends.
_REFUSALS = ("authentication failed", "does not exist", "no pg_hba.conf entry", "not permitted to log in")


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


def wait_for_table(model: type[Model], should_stop: Callable[[], bool], *, patiently: bool) -> bool:
    """Wait until the table of `model` can be read, as long as the database is away; return False where told to stop.

    The reason is logged at once, and each minute. Raises CommandError with exit code 3 where the database is away and
    `patiently` is not said, or refuses this account; the database's own error where the table is missing, and any of
    SQLite's: a file is there or not.
    """
    reasons = Throttle()
    while not should_stop():
        try:
            with database.atomic():
                model._default_manager.exists()
        except (OperationalError, InterfaceError) as error:
            if database.is_sqlite():
                raise
            reason = " ".join(str(error).split())
            if not patiently or any(each in reason for each in _REFUSALS):
                raise CommandError(f"The database is out of reach: {reason}", returncode=EXIT_UNREACHABLE) from None
            if reasons.allows(reason):
                log.warning("database.unreachable", reason=reason, tried_again_in_seconds=PAUSE)
            time.sleep(PAUSE)
        else:
            database.give_back_pooled()
            if reasons.reset():
                log.info("database.reached")
            return True
    return False

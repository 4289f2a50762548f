"""Ctrl-C in a command that holds nothing which could be lost: one line, and the exit code that shells have for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.core.management.base import CommandError

from messaging.management.arguments import EXIT_INTERRUPTED


@contextmanager
def told_when_interrupted() -> Iterator[None]:
    """Turn KeyboardInterrupt into CommandError (130). A command that has more to say of it catches it itself."""
    try:
        yield
    except KeyboardInterrupt:
        raise CommandError("Interrupted.", returncode=EXIT_INTERRUPTED) from None

"""Counts of what happened in each minute: pages show them without counting other tables.

Relays and consumers count in memory, and add what they have counted to the rows every few seconds. What a process has
not added when it ends is lost: these are figures for people, and nothing is decided by them.
"""

from __future__ import annotations

import threading
import time
from collections import Counter

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper

from messaging.models.columns import Row, UTCDateTimeField

#: Seconds between two times that a process adds its counts to the rows.
WRITE_EVERY = 5.0
#: Characters that are kept of a name.
NAME_LIMIT = 255
_THIS_MINUTE = {
    "postgresql": "date_trunc('minute', STATEMENT_TIMESTAMP(), 'UTC')",
    "sqlite": "STRFTIME('%%Y-%%m-%%d %%H:%%M:00', 'NOW')",
}


class MinuteCount(Row):
    """How often something happened in a minute, by the database's clock: to the messages of a consumer, say."""

    class What(models.TextChoices):
        #: Confirmed by the broker. Its name is the exchange, or the consumer that it is addressed to alone.
        PUBLISHED = "published", "published"
        #: The others have the consumer as their name.
        HANDLED = "handled", "handled"
        #: An attempt failed: the message is to be tried again, or dead.
        FAILED = "failed", "failed"
        EFFECT_DONE = "effect done", "effect done"
        #: An attempt at an effect failed, or is in doubt.
        EFFECT_FAILED = "effect failed", "effect failed"

    minute = UTCDateTimeField()
    what = models.CharField(max_length=20, choices=What.choices)
    name = models.CharField(max_length=NAME_LIMIT)
    number = models.BigIntegerField()

    class Meta(Row.Meta):
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["minute", "what", "name"], name="minute_count_once")]

    def __str__(self) -> str:
        return f"{self.number} {self.what}, {self.name}, {self.minute}"


class Counting:
    """What this process has counted and not yet written. `add` may be called by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._due = 0.0

    def reset(self) -> None:
        """Begin anew in a child process: the parent writes its own counts, and its lock may be held for ever here."""
        self._lock = threading.Lock()
        self._counts = Counter()

    def add(self, what: MinuteCount.What, name: str, number: int = 1) -> None:
        """Count something that happened just now."""
        with self._lock:
            self._counts[what.value, name[:NAME_LIMIT]] += number

    @property
    def is_due(self) -> bool:
        """Whether there are counts to be written now."""
        return bool(self._counts) and time.monotonic() >= self._due

    def write(self, connection: BaseDatabaseWrapper) -> None:
        """Add the counts to the rows of this minute, in the caller's transaction. If it fails they are kept."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
            self._due = time.monotonic() + WRITE_EVERY
        if not counts:
            return
        table = MinuteCount._meta.db_table
        row = f"({_THIS_MINUTE[connection.vendor]}, %s, %s, %s)"
        # In one order, so that of two processes one waits for the other, and neither for both.
        values = [value for (what, name), number in sorted(counts.items()) for value in (what, name, number)]
        try:
            with connection.cursor() as cursor:
                if connection.vendor == "postgresql":
                    # Another session may hold a row for long. No figure is worth a relay that waits.
                    cursor.execute("SET LOCAL lock_timeout = '100ms'")
                cursor.execute(
                    f"INSERT INTO {table} (minute, what, name, number) VALUES {', '.join([row] * len(counts))}"  # noqa: S608  (constants only)
                    f" ON CONFLICT (minute, what, name) DO UPDATE SET number = {table}.number + EXCLUDED.number",
                    values,
                )
        except BaseException:
            with self._lock:
                self._counts.update(counts)
            raise


#: What this process counts.
counting = Counting()

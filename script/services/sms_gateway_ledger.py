"""What the SMS gateway was asked, and which texts it really sent: an SQLite file, committed before each answer."""

import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (
    number INTEGER PRIMARY KEY, at REAL NOT NULL, method TEXT NOT NULL, path TEXT NOT NULL, key TEXT NOT NULL,
    recipient TEXT NOT NULL, text TEXT NOT NULL, fault TEXT NOT NULL, status INTEGER);
CREATE TABLE IF NOT EXISTS texts (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, at REAL NOT NULL, key TEXT NOT NULL,
    recipient TEXT NOT NULL, text TEXT NOT NULL, request INTEGER NOT NULL REFERENCES requests (number));
CREATE INDEX IF NOT EXISTS texts_key ON texts (key);
"""


@dataclass(frozen=True)
class Request:
    """One request, well served or not. `status` is None where no answer was meant to go out, or none has yet."""

    number: int
    at: float
    method: str
    path: str
    key: str
    recipient: str
    text: str
    #: The fault it met; empty if it was served well.
    fault: str
    status: int | None


@dataclass(frozen=True)
class SentText:
    """A text that reached its phone."""

    number: int
    id: str
    at: float
    key: str
    recipient: str
    text: str
    #: The number of the request that made it go out.
    request: int


class SmsLedger:
    """The gateway's ledger in a file. The gateway alone writes it; everybody may read it, at any time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._writer: sqlite3.Connection | None = None

    # Reading

    def requests(self) -> list[Request]:
        """Every request about messages, oldest first."""
        return [Request(*row) for row in self._read("SELECT * FROM requests ORDER BY number")]

    def texts(self, key: str | None = None) -> list[SentText]:
        """Every text sent, oldest first; with `key`, those sent under it."""
        found = [SentText(*row) for row in self._read("SELECT * FROM texts ORDER BY number")]
        return found if key is None else [text for text in found if text.key == key]

    def _read(self, query: str) -> list[tuple[Any, ...]]:
        if not self.path.exists():
            return []
        with closing(sqlite3.connect(self.path, timeout=20)) as connection:
            return connection.execute(query).fetchall()

    # Writing

    def open(self) -> None:
        """Make the file ready to be written, by this process alone."""
        self._writer = sqlite3.connect(self.path, timeout=20, isolation_level=None, check_same_thread=False)
        self._writer.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; {SCHEMA}")

    def note(self, method: str, path: str, *, key: str, recipient: str, text: str, fault: str) -> int:
        """Write a request down; its number."""
        values = (time.time(), method, path, key, recipient, text, fault)
        with self._transaction() as writer:
            columns = "(at, method, path, key, recipient, text, fault)"
            cursor = writer.execute(f"INSERT INTO requests {columns} VALUES (?, ?, ?, ?, ?, ?, ?)", values)  # noqa: S608
            return cursor.lastrowid or 0

    def answered(self, number: int, status: int) -> None:
        """Write down what a request is about to be answered."""
        with self._transaction() as writer:
            writer.execute("UPDATE requests SET status = ? WHERE number = ?", (status, number))

    def send(self, request: int, *, key: str, recipient: str, text: str, once_per_key: bool) -> tuple[SentText, bool]:
        """Send a text: write it down as sent. With `once_per_key`, a key that sent one before sends none again.

        Returns the text of that key, and whether it was sent just now.
        """
        with self._transaction() as writer:
            if once_per_key and key:
                row = writer.execute("SELECT * FROM texts WHERE key = ? ORDER BY number", (key,)).fetchone()
                if row is not None:
                    return SentText(*row), False
            values = (uuid.uuid4().hex, time.time(), key, recipient, text, request)
            columns = "(id, at, key, recipient, text, request)"
            cursor = writer.execute(f"INSERT INTO texts {columns} VALUES (?, ?, ?, ?, ?, ?)", values)  # noqa: S608
            return SentText(cursor.lastrowid or 0, *values), True

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        if self._writer is None:
            raise RuntimeError("the ledger was not opened for writing")
        with self._lock:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
            except BaseException:
                self._writer.execute("ROLLBACK")
                raise
            self._writer.execute("COMMIT")

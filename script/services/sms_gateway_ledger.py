"""The SMS gateway's SQLite file: what it was asked, which texts it sent, and how it is to misbehave.

The gateway commits before each answer. Any process may read the file, and say there how the gateway misbehaves.
"""

import json
import random
import sqlite3
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

SCHEMA = """
PRAGMA journal_mode=WAL;
CREATE TABLE IF NOT EXISTS requests (
    number INTEGER PRIMARY KEY, at REAL NOT NULL, method TEXT NOT NULL, path TEXT NOT NULL, key TEXT NOT NULL,
    recipient TEXT NOT NULL, text TEXT NOT NULL, fault TEXT NOT NULL, status INTEGER);
CREATE TABLE IF NOT EXISTS texts (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, at REAL NOT NULL, key TEXT NOT NULL,
    recipient TEXT NOT NULL, text TEXT NOT NULL, request INTEGER NOT NULL REFERENCES requests (number));
CREATE INDEX IF NOT EXISTS texts_key ON texts (key);
CREATE TABLE IF NOT EXISTS misbehaviours (
    number INTEGER PRIMARY KEY, method TEXT NOT NULL, times INTEGER, chance REAL NOT NULL, seed INTEGER NOT NULL,
    faults TEXT NOT NULL, seconds REAL NOT NULL);
"""


class Fault(StrEnum):
    """One way to misbehave. "Sends" means that the text goes out although the client does not learn it."""

    #: 500, nothing is sent.
    SERVER_ERROR = "server_error"
    #: 503, nothing is sent.
    UNAVAILABLE = "unavailable"
    #: 429 with Retry-After, nothing is sent.
    TOO_MANY = "too_many"
    #: 400, nothing is sent, and never will be.
    BAD_REQUEST = "bad_request"
    #: 422, nothing is sent, and never will be.
    REFUSED = "refused"
    #: 401 although the token is right, nothing is sent.
    UNAUTHORISED = "unauthorised"
    #: 302 to another path of the gateway, nothing is sent.
    REDIRECT = "redirect"
    #: Cuts the connection before it reads the body, nothing is sent.
    CUT_BEFORE = "cut_before"
    #: Reads the request, sends nothing and never answers (the connection stays open for `seconds`).
    NEVER_ANSWER = "never_answer"
    #: Sends, and answers after `seconds`.
    ANSWER_LATE = "answer_late"
    #: Accepts the request, and sends only after `seconds`, whether or not the client still waits.
    SEND_LATE = "send_late"
    #: Sends, and answers 500.
    SEND_AND_FAIL = "send_and_fail"
    #: Sends, and cuts the connection before it answers.
    CUT_AFTER = "cut_after"
    #: Sends, and answers 201 with a page that is no JSON.
    GARBAGE = "garbage"
    #: Sends, and answers 201 with half of its JSON, then cuts the connection.
    HALF_AN_ANSWER = "half_an_answer"
    #: Sends, and answers 201, its body byte by byte over `seconds`: no single byte is late.
    SLOW_BODY = "slow_body"


#: Faults that pass: a client that tries again (with the same key) gets its text through.
PASSING = tuple(fault for fault in Fault if fault not in {Fault.BAD_REQUEST, Fault.REFUSED, Fault.UNAUTHORISED})


@dataclass(frozen=True)
class Request:
    """One request. `status` is None if no answer was meant to go out, or none has yet."""

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
    """The file, for the gateway and for those who look at it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def requests(self) -> list[Request]:
        """Return every request about messages, oldest first."""
        return [Request(*row) for row in self._read("SELECT * FROM requests ORDER BY number")]

    def texts(self, key: str | None = None) -> list[SentText]:
        """Return every text sent, oldest first; with `key`, those sent under it."""
        found = [SentText(*row) for row in self._read("SELECT * FROM texts ORDER BY number")]
        return found if key is None else [text for text in found if text.key == key]

    def create(self) -> None:
        """Create the file if it does not exist, and let the gateway behave well."""
        with closing(sqlite3.connect(self.path, timeout=20)) as connection:
            connection.executescript(SCHEMA)
        self.behave()

    def note(self, method: str, path: str, *, key: str) -> tuple[int, Fault | None, float]:
        """Record a request; return its number, the fault that it meets, and the seconds of that fault."""
        with self._transaction() as writer:
            fault, seconds = self._next_fault(writer, method) if path == "/messages" else (None, 0.0)
            columns = "(at, method, path, key, recipient, text, fault)"
            values = (time.time(), method, path, key, "", "", fault or "")
            number = writer.execute(f"INSERT INTO requests {columns} VALUES (?, ?, ?, ?, ?, ?, ?)", values).lastrowid  # noqa: S608
            return number or 0, fault, seconds

    def content(self, number: int, recipient: str, text: str) -> None:
        """Record what a request asks to send."""
        with self._transaction() as writer:
            writer.execute("UPDATE requests SET recipient = ?, text = ? WHERE number = ?", (recipient, text, number))

    def answered(self, number: int, status: int) -> None:
        """Record the status that a request is about to be answered with."""
        with self._transaction() as writer:
            writer.execute("UPDATE requests SET status = ? WHERE number = ?", (status, number))

    def send(self, request: int, *, key: str, recipient: str, text: str, once_per_key: bool) -> tuple[SentText, bool]:
        """Send a text, that is, record it as sent. With `once_per_key`, a key that sent one before sends no second one.

        Return the text of that key, and whether it was sent just now.
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

    # Misbehaving

    def misbehave(
        self, faults: Sequence[Fault], *, method: str, times: int | None, seconds: float, chance: float, seed: int
    ) -> None:
        """Let the next `times` requests (None: all) with `method` meet one of `faults`, with that chance."""
        values = (method, times, chance, seed, json.dumps(faults), seconds)
        with self._transaction() as writer:
            columns = "(method, times, chance, seed, faults, seconds)"
            writer.execute(f"INSERT INTO misbehaviours {columns} VALUES (?, ?, ?, ?, ?, ?)", values)  # noqa: S608

    def behave(self) -> None:
        """Forget every misbehaviour."""
        with self._transaction() as writer:
            writer.execute("DELETE FROM misbehaviours")

    def _next_fault(self, writer: sqlite3.Connection, method: str) -> tuple[Fault | None, float]:
        query = "SELECT * FROM misbehaviours WHERE method = ? ORDER BY number"
        row = writer.execute(query, (method,)).fetchone()
        if row is None:
            return None, 0.0
        number, _, times, chance, seed, faults, seconds = row
        if times is not None:
            writer.execute("UPDATE misbehaviours SET times = times - 1 WHERE number = ?", (number,))
            writer.execute("DELETE FROM misbehaviours WHERE times = 0")
        # One seed means one sequence of faults, also after a restart.
        (requests,) = writer.execute("SELECT COUNT(*) FROM requests").fetchone()
        dice = random.Random(f"{seed} {requests}")  # noqa: S311 (not a secret)
        return (Fault(dice.choice(json.loads(faults))), seconds) if dice.random() < chance else (None, 0.0)

    # The file

    def _read(self, query: str) -> list[tuple[Any, ...]]:
        if not self.path.exists():
            return []
        with closing(sqlite3.connect(self.path, timeout=20)) as connection:
            return connection.execute(query).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.path, timeout=20, isolation_level=None)) as connection, connection:
            # A killed gateway loses nothing by that: only a power cut would tell.
            connection.execute("PRAGMA synchronous=OFF")
            connection.execute("BEGIN IMMEDIATE")
            yield connection

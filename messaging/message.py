"""Message: what travels. Body, properties and headers, the same on the way out and on the way in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from uuid6 import uuid7

from messaging.exceptions import Undecodable

# Headers for the machinery begin with "x-": a headers exchange ignores those when it matches bindings.
VERSION_HEADER = "x-event-version"
ATTEMPT_HEADER = "x-attempt"
SUBJECT_HEADER = "x-subject"
OUTBOX_ID_HEADER = "x-outbox-id"
REQUEST_ID_HEADER = "x-request-id"
ORDERING_KEY_HEADER = "x-ordering-key"
POSITION_HEADER = "x-position"

#: AMQP short strings hold 255 bytes; ours are kept within as characters of an index.
MAX_ID_LENGTH = 255

#: In front of what stands for an id that cannot be stored, or is too long.
HASHED = "sha256:"
#: Content encodings that say nothing about the bytes: a character set stands there by mistake (kombu, Spring), and JSON
#: has no other.
_PLAIN_ENCODINGS = {"", "identity", "utf-8", "utf8"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message, outgoing or incoming. Texts are empty where the AMQP property is absent.

    `id`, `type`, `correlation_id`, `reply_to`, `app_id`, `content_type`, `content_encoding`, `expiration` (text,
    milliseconds), `priority` and `timestamp` are the AMQP 0-9-1 basic properties of those names.
    """

    body: bytes
    id: str = ""
    type: str = ""
    content_type: str = "application/json"
    content_encoding: str = ""
    correlation_id: str = ""
    reply_to: str = ""
    app_id: str = ""
    expiration: str = ""
    priority: int | None = None
    timestamp: datetime | None = None
    persistent: bool = True
    headers: Mapping[str, Any] = field(default_factory=dict)

    @property
    def version(self) -> int:
        """Version of the event's schema; absent means 1. Raises Undecodable."""
        return self._positive_number(VERSION_HEADER)

    @property
    def attempt(self) -> int:
        """Which attempt of its consumer this delivery is; absent means 1. Raises Undecodable."""
        return self._positive_number(ATTEMPT_HEADER)

    @property
    def has_plain_body(self) -> bool:
        """Whether the body is as it was written, neither compressed nor otherwise encoded."""
        return self.content_encoding.strip().lower() in _PLAIN_ENCODINGS

    @property
    def subject(self) -> str:
        """What the message is about: a business key such as an order number."""
        return self._text(SUBJECT_HEADER)

    @property
    def request_id(self) -> str:
        """Id of the web request that caused the message."""
        return self._text(REQUEST_ID_HEADER)

    @property
    def ordering_key(self) -> str:
        """Messages with the same key are handled in the order of their positions; empty: in any order."""
        return self._text(ORDERING_KEY_HEADER)

    @property
    def position(self) -> int:
        """Place among the messages of its ordering key; without a key it means nothing. Raises Undecodable."""
        return self._positive_number(POSITION_HEADER, below=2**63)

    def _positive_number(self, header: str, *, below: int = 2**31) -> int:
        value = self.headers.get(header, 1)
        number = whole_number(value)
        if number is None or not 1 <= number < below:
            raise Undecodable(f"header {header} must be a whole number from 1, not {value!r:.100}")
        return number

    def _text(self, header: str) -> str:
        value = self.headers.get(header, "")
        return value[:MAX_ID_LENGTH].replace("\x00", "") if isinstance(value, str) else ""


def whole_number(value: Any) -> int | None:
    """Return the whole number that a header says, in any of the ways in which clients say one; None where it is none.

    Some (amqp-tools) have no header but text, some languages no number but floats."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= 19:
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    # bool is an int to Python, not to a person.
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def new_id() -> str:
    """Return a new message id: a UUIDv7 (RFC 9562) as text, so that ids sort by time of birth."""
    return str(uuid7())


def identity(message_id: str, app_id: str, *, own_app_id: str) -> str:
    """Return what a message is known by in the database, from its properties; empty where it has no id.

    Two applications may both count 1, 2, 3: an id that is not ours has its `app_id` in front, `billing/17`. Ours stays
    as it is: a retry of a foreign message comes by our relay, with its identity as message id. That of a client without
    an app_id does so too; only where it could be taken for one of the others it gets an empty name in front.

    Two different (message_id, app_id) never have one identity, and none is longer than an id may be.
    """
    if not message_id or app_id == own_app_id:
        return message_id
    if not app_id and "/" not in message_id and not message_id.startswith(HASHED):
        return message_id
    # The first slash ends the app_id, so none may be in it.
    found = f"{app_id.replace('%', '%25').replace('/', '%2F')}/{message_id}"
    return found if len(found.encode()) <= MAX_ID_LENGTH else hashed(found.encode())


def hashed(raw: bytes) -> str:
    """Return a text that stands for `raw`, and for nothing else."""
    return f"{HASHED}{hashlib.sha256(raw).hexdigest()}"

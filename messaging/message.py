"""Message: what travels. Body, properties and headers, the same on the way out and on the way in."""

from __future__ import annotations

import math
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
        # bool is an int to Python, not to a person.
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < below:
            raise Undecodable(f"header {header} must be a whole number from 1, not {value!r:.100}")
        return value

    def _text(self, header: str) -> str:
        value = self.headers.get(header, "")
        return value[:MAX_ID_LENGTH].replace("\x00", "") if isinstance(value, str) else ""


def new_id() -> str:
    """Return a new message id: a UUIDv7 (RFC 9562) as text, so that ids sort by time of birth."""
    return str(uuid7())


def storable_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return AMQP headers as JSON: tables, arrays and numbers as they are, all else (bytes, times) as text."""
    return {storable_text(str(name)): _storable(value) for name, value in headers.items()}


def storable_text(text: str) -> str:
    """Return `text` as every database takes it: none holds half of a surrogate pair, and PostgreSQL no NUL."""
    return text.encode(errors="replace").decode().replace("\x00", "\ufffd")


def headers_to_pass_on(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the headers that the next attempt of a message keeps.

    Those of the machinery are written anew, and what a broker added on the way is history. CC and BCC would make
    the broker route copies elsewhere (https://www.rabbitmq.com/docs/sender-selected).
    """
    return {
        name: value
        for name, value in storable_headers(headers).items()
        if name == REQUEST_ID_HEADER or not (name.startswith("x-") or name in {"CC", "BCC"})
    }


def _storable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return storable_headers(value)
    if isinstance(value, list):
        return [_storable(item) for item in value]
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return storable_text(str(value))

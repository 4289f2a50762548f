"""A message (body, properties and headers, outgoing or incoming), and its delivery to a consumer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from uuid6 import uuid7

from messaging import effects
from messaging.effects import Intended
from messaging.exceptions import Undecodable

# Our own headers begin with "x-": a headers exchange ignores such headers when it matches bindings.
VERSION_HEADER = "x-event-version"
ATTEMPT_HEADER = "x-attempt"
SUBJECT_HEADER = "x-subject"
OUTBOX_ID_HEADER = "x-outbox-id"
REQUEST_ID_HEADER = "x-request-id"
ORDERING_KEY_HEADER = "x-ordering-key"
POSITION_HEADER = "x-position"

#: AMQP short strings have room for 255 bytes, and so have our columns.
MAX_ID_LENGTH = 255

#: Prefix of a digest that replaces an id which cannot be stored or is too long.
HASHED = "sha256:"
#: Content encodings that change nothing. kombu and Spring put the character set there by mistake.
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
    def may_be_json(self) -> bool:
        """Whether the body may be JSON: its type is JSON, or none, or the one that a client gives to every body."""
        plain = self.content_type.partition(";")[0].strip().lower()
        return plain in {"", "application/json", "text/json", "text/plain", "application/octet-stream"} or (
            plain.startswith("application/") and plain.endswith("+json")
        )

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
        """Messages with the same key are handled in the order of their positions."""
        return self._text(ORDERING_KEY_HEADER)

    @property
    def position(self) -> int:
        """Place among the messages of its ordering key. Raises Undecodable."""
        return self._positive_number(POSITION_HEADER, below=2**63)

    def _positive_number(self, header: str, *, below: int = 2**31) -> int:
        if header not in self.headers:
            return 1
        number = whole_number(value := self.headers[header])
        if number is None or not 1 <= number < below:
            raise Undecodable(f"header {header} must be a whole number from 1, not {value!r:.100}")
        return number

    def _text(self, header: str) -> str:
        value = self.headers.get(header, "")
        return value[:MAX_ID_LENGTH].replace("\x00", "") if isinstance(value, str) else ""


@dataclass(slots=True)
class Tries:
    """What this process knows of one delivery, over all its tries to handle it."""

    #: Whether the handler was called in the present try.
    called: bool = False
    #: Whether it has returned.
    returned: bool = False
    #: Whether its start was counted, by a row of the inbox.
    counted: bool = False
    #: How often the connection to the database was lost after the call.
    losses: int = 0
    #: How long the handler took in the present try.
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One arrival of a message at one consumer, as its handler sees it.

    `message_id` is the message's id in the database, see `message.identity`. If it had none, one is made on arrival and
    `identified` is False: a second delivery then cannot be told from a second message. `attempt` counts from 1.
    """

    consumer: str
    queue: str
    message: Message
    message_id: str
    attempt: int = 1
    identified: bool = True
    redelivered: bool = False
    exchange: str = ""
    routing_key: str = ""
    #: Effects that the handler has intended in this try.
    intended: list[Intended] = field(default_factory=list, compare=False)
    #: For the worker alone.
    tries: Tries = field(default_factory=Tries, compare=False, repr=False)

    @property
    def subject(self) -> str:
        """What the message is about: a business key such as an order number."""
        return self.message.subject

    def effect(self, name: str, payload: dict[str, Any] | None = None) -> None:
        """Intend something outside the database: the effect `name`, with a JSON `payload`.

        It is recorded in the handler's transaction and carried out after the commit, before the ack. A message has one
        effect of each name.

        Raises RuntimeError once the handler has returned (in an `on_commit` callback or another thread), UnknownEffect,
        and ValueError for a second effect of that name, or a payload that is no JSON object, that a database does not
        store, or that JSON would change (keys that are numbers).
        """
        if self.tries.returned:
            raise RuntimeError(
                f"the effect {name!r} was intended after the handler had returned, so it will not be carried out: "
                "intend it in the handler itself"
            )
        self.intended.append(effects.intended(name, {} if payload is None else payload, beside=self.intended))


def whole_number(value: Any) -> int | None:
    """Return a header's value as a whole number, or None. Some clients send numbers as texts (amqp-tools) or floats."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= 19:
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    # A bool is an int in Python.
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def new_id() -> str:
    """Return a new message id: a UUIDv7 (RFC 9562) as text, so that ids sort by the time they were made."""
    return str(uuid7())


def identity(message_id: str, app_id: str, *, own_app_id: str) -> str:
    """Return a message's id in the database, made from its properties; empty if it has no id.

    Two applications may both count 1, 2, 3: a foreign id gets its `app_id` as prefix, `billing/17`. Our own stays
    unchanged: a retry of a foreign message has this identity as its message id. So does the id of a client without an
    app_id, unless it looks like one of the others: then it gets an empty prefix.

    Different (message_id, app_id) have different identities of at most MAX_ID_LENGTH bytes.
    """
    if not message_id or app_id == own_app_id:
        return message_id
    if not app_id and "/" not in message_id and not message_id.startswith(HASHED):
        return message_id
    # The first slash ends the app_id, so the app_id may contain none.
    found = f"{app_id.replace('%', '%25').replace('/', '%2F')}/{message_id}"
    return found if len(found.encode()) <= MAX_ID_LENGTH else hashed(found.encode())


def hashed(raw: bytes) -> str:
    """Return a text that identifies `raw`."""
    return f"{HASHED}{hashlib.sha256(raw).hexdigest()}"

"""Events: facts that happened, with a stable type, a version and a schema."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from string import Formatter
from typing import Any, ClassVar, Self

from django.core.exceptions import ImproperlyConfigured
from pydantic import BaseModel, ConfigDict, ValidationError

from messaging.exceptions import Undecodable
from messaging.message import Message
from messaging.routing import MAX_SHORT_STRING, Exchange

type_name = str
Upcast = Callable[[dict[str, Any]], dict[str, Any]]

_registry: dict[type_name, type[Event]] = {}


class Event(BaseModel):
    """Parent of every event. Declare one with its type, a noun and a past participle:

        class OrderPlaced(Event, type="order.placed"):
            order_number: str

    The type is the contract, and the routing key: renaming the class orphans nothing. Adding an optional field
    keeps the version; any other change raises it and adds an upcast beside the schema. Fields unknown to this
    code are ignored, so that a newer publisher does not stop an older consumer.

    Events go to the project's own topic exchange, or to another, of any type:

        class LogLine(Event, type="log.line", exchange=Exchange("topic_logs"), key="{facility}.{severity}"):
            facility: str
            severity: str

        class Report(Event, type="report.made", exchange=Exchange("reports", "headers"), headers=("format",)):
            format: str

    `key` is then what the routing key is made of: text, and fields in braces. `headers` names the fields that travel
    as headers too, for a headers exchange to route by.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    event_type: ClassVar[str] = ""
    event_version: ClassVar[int] = 1
    #: None: the project's own.
    event_exchange: ClassVar[Exchange | None] = None
    #: The template of the routing key; empty: the type.
    event_key: ClassVar[str] = ""
    event_headers: ClassVar[tuple[str, ...]] = ()
    _upcasts: ClassVar[dict[int, Upcast]] = {}

    def __init_subclass__(
        cls,
        *,
        type: str = "",
        version: int = 1,
        exchange: str | Exchange | None = None,
        key: str = "",
        headers: Iterable[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init_subclass__(**kwargs)

    @classmethod
    def __pydantic_init_subclass__(
        cls,
        *,
        type: str = "",
        version: int = 1,
        exchange: str | Exchange | None = None,
        key: str = "",
        headers: Iterable[str] = (),
        **kwargs: Any,
    ) -> None:
        """Register the event under `type`. A name alone for `exchange` is a topic exchange.

        Raises ImproperlyConfigured for a bad or taken type, an exchange that another event calls of another type, and
        a key or headers of fields that are not there.
        """
        super().__pydantic_init_subclass__(**kwargs)
        if not type:
            return  # an abstract parent of events
        if not 1 <= len(type.encode()) <= MAX_SHORT_STRING:
            raise ImproperlyConfigured(f"{cls.__qualname__}: an event's type is also a routing key, 255 bytes at most")
        if {"*", "#"} & set(type.split(".")):
            raise ImproperlyConfigured(f"{cls.__qualname__}: in a routing key '*' and '#' are wildcards: {type!r}")
        other = _registry.get(type)
        if other is not None and _name(other) != _name(cls):
            raise ImproperlyConfigured(f"two events have the type {type!r}: {_name(other)}, {_name(cls)}")
        cls.event_type, cls.event_version, cls.event_key = type, version, key
        cls.event_exchange = _checked_exchange(cls, exchange)
        cls.event_headers = _checked_headers(cls, headers)
        _check_key(cls)
        cls._upcasts = {}
        _registry[type] = cls

    @classmethod
    def upcast(cls, *, from_version: int) -> Callable[[Upcast], Upcast]:
        """Register a function that turns a payload of `from_version` into one of the next version."""

        def register(function: Upcast) -> Upcast:
            cls._upcasts[from_version] = function
            return function

        return register

    @classmethod
    def versions(cls) -> list[int]:
        """Return the versions that this code understands, oldest first: its own, and those with upcasts up to it."""
        oldest = cls.event_version
        while oldest - 1 in cls._upcasts:
            oldest -= 1
        return list(range(oldest, cls.event_version + 1))

    def encode(self) -> bytes:
        """Return the JSON body (UTF-8)."""
        return self.model_dump_json().encode()

    @classmethod
    def decode(cls, body: bytes, version: int) -> Self:
        """Return the event that `body` holds, upcast from `version` if that is older.

        Raises Undecodable where the body is not JSON, does not fit the schema, or is newer than this code.
        """
        if version > cls.event_version:
            raise Undecodable(
                f"{cls.event_type} version {version} is newer than this code's {cls.event_version}; "
                "replay it once the newer code runs"
            )
        payload = _read_object(body)
        for older in range(version, cls.event_version):
            if older not in cls._upcasts:
                raise Undecodable(f"{cls.event_type} version {older} has no upcast to version {older + 1}")
            try:
                payload = cls._upcasts[older](payload)
            except Exception as error:
                # It reads a payload that no schema has checked.
                raise Undecodable(
                    f"{cls.event_type} version {older} does not fit its upcast: {type(error).__name__}"
                ) from error
        try:
            return cls.model_validate(payload)
        except ValidationError as error:
            raise Undecodable(f"{cls.event_type} does not fit its schema: {_first_problem(error)}") from None


def named(message: Message, routing_key: str) -> Message:
    """Return `message` with its type: some clients cannot set that property, and then the routing key names the event,
    if there is one of that name."""
    if message.type or routing_key not in _registry:
        return message
    return replace(message, type=routing_key)


def decode(message: Message) -> Event:
    """Return the event of `message`.

    Raises Undecodable, saying why, for anything that is not a known event in JSON.
    """
    if not message.type:
        raise Undecodable(
            "the message has no type property, which names the event (order.placed), and its routing key names none"
        )
    if message.type not in _registry:
        raise Undecodable(f"no event of type {message.type!r:.100} is known here")
    if not message.has_plain_body:
        raise Undecodable(f"content encoding {message.content_encoding!r:.50} is not understood")
    if not _may_be_json(message.content_type):
        raise Undecodable(f"content type {message.content_type!r:.50} is not application/json")
    return _registry[message.type].decode(message.body, message.version)


def registered() -> list[type[Event]]:
    """Return every event, by type."""
    return [_registry[name] for name in sorted(_registry)]


def routing_key_of(event: Event) -> str:
    """Return the routing key that `event` is published with; a field that is None is an empty text in it.

    Raises ValueError where it is longer than AMQP allows, 255 bytes.
    """
    if not event.event_key:
        return event.event_type
    fields = event.model_dump(mode="json", include=set(fields_in(event.event_key)))
    key = event.event_key.format_map({name: "" if value is None else value for name, value in fields.items()})
    if len(key.encode()) > MAX_SHORT_STRING:
        raise ValueError(f"{event.event_type}: its routing key has over {MAX_SHORT_STRING} bytes: {key[:60]}…")
    return key


def routing_headers_of(event: Event) -> dict[str, Any]:
    """Return the headers that `event` is published with: those of its fields that are not None.

    Raises ValueError for a field that is no text, number or truth, or a number that AMQP or JSON cannot hold.
    """
    fields = event.model_dump(mode="json", include=set(event.event_headers), exclude_none=True)
    for name, value in fields.items():
        if not isinstance(value, str | int | float):
            raise ValueError(
                f"{event.event_type}: header {name} is no text, number or truth but {type(value).__name__}"
            )
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError(f"{event.event_type}: header {name} is a number of more than 64 bits")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{event.event_type}: header {name} is {value}, no number")
    return fields


def fields_in(key: str) -> list[str]:
    """Return the names of the fields in a template of a routing key."""
    return [name for _, name, _, _ in Formatter().parse(key) if name is not None]


def _checked_exchange(event: type[Event], exchange: str | Exchange | None) -> Exchange | None:
    try:
        exchange = Exchange(exchange) if isinstance(exchange, str) and exchange else exchange or None
    except ValueError as error:
        raise ImproperlyConfigured(f"{_name(event)}: {error}") from None
    assert not isinstance(exchange, str)
    for other in _registry.values():
        theirs = other.event_exchange
        if exchange and theirs and theirs.name == exchange.name and theirs.type != exchange.type:
            raise ImproperlyConfigured(
                f"exchange {exchange.name!r} is {theirs.type} to {_name(other)} and {exchange.type} to {_name(event)}"
            )
    return exchange


def _checked_headers(event: type[Event], headers: Iterable[str]) -> tuple[str, ...]:
    headers = tuple(headers)
    for name in headers:
        if name not in event.model_fields:
            raise ImproperlyConfigured(f"{_name(event)}: headers names {name!r}, which is no field of it")
        if name.startswith("x-") or name in {"CC", "BCC"}:
            raise ImproperlyConfigured(f"{_name(event)}: a header {name!r} would mean something to the broker")
    return headers


def _check_key(event: type[Event]) -> None:
    try:
        unknown = [name for name in fields_in(event.event_key) if name not in event.model_fields]
    except ValueError as error:
        raise ImproperlyConfigured(f"{_name(event)}: key {event.event_key!r} cannot be read: {error}") from None
    if any("{" in (how or "") for _, _, how, _ in Formatter().parse(event.event_key)):
        raise ImproperlyConfigured(f"{_name(event)}: key {event.event_key!r} has braces inside of braces")
    if unknown:
        raise ImproperlyConfigured(f"{_name(event)}: key {event.event_key!r} names {unknown[0]!r}, no field of it")


def _may_be_json(content_type: str) -> bool:
    """Whether the body is worth reading: it is JSON, or its client says what it says of every body, or nothing."""
    plain = content_type.partition(";")[0].strip().lower()
    return plain in {"", "application/json", "text/json", "text/plain", "application/octet-stream"} or (
        plain.startswith("application/") and plain.endswith("+json")
    )


def _read_object(body: bytes) -> dict[str, Any]:
    try:
        payload = json.loads(body, parse_constant=_refuse_constant)
        if b"\\u" in body:
            # An escaped half of a surrogate pair is no character: no database and no other message could hold it.
            json.dumps(payload, ensure_ascii=False).encode()
    # Deep nesting ends in RecursionError; a bad byte in UnicodeDecodeError, a ValueError.
    except (ValueError, RecursionError) as error:
        raise Undecodable(f"the body is not JSON: {error}") from None
    if not isinstance(payload, dict):
        raise Undecodable(f"the body is JSON, but of type {type(payload).__name__}, not an object")
    return payload


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is Python's, not JSON's")


def _name(event: type[Event]) -> str:
    return f"{event.__module__}.{event.__qualname__}"


def _first_problem(error: ValidationError) -> str:
    # Says which field and why, never the value: a value may be somebody's phone number.
    problems = [f"{'.'.join(map(str, p['loc'])) or 'body'}: {p['msg']}" for p in error.errors(include_input=False)]
    return "; ".join(problems[:3]) + (f" (and {len(problems) - 3} more)" if len(problems) > 3 else "")

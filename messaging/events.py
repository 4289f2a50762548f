"""Events: facts that happened, with a stable type, a version and a schema."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, ClassVar, Self

from django.core.exceptions import ImproperlyConfigured
from pydantic import BaseModel, ConfigDict, ValidationError

from messaging.exceptions import Undecodable
from messaging.message import Message

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
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    event_type: ClassVar[str] = ""
    event_version: ClassVar[int] = 1
    event_exchange: ClassVar[str] = ""
    _upcasts: ClassVar[dict[int, Upcast]] = {}

    def __init_subclass__(cls, *, type: str = "", version: int = 1, exchange: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)

    @classmethod
    def __pydantic_init_subclass__(cls, *, type: str = "", version: int = 1, exchange: str = "", **kwargs: Any) -> None:
        """Register the event under `type`. `exchange` is empty for the project's own topic exchange."""
        super().__pydantic_init_subclass__(**kwargs)
        if not type:
            return  # an abstract parent of events
        if not 1 <= len(type.encode()) <= 255:
            raise ImproperlyConfigured(f"{cls.__qualname__}: an event's type is also a routing key, 255 bytes at most")
        if {"*", "#"} & set(type.split(".")):
            raise ImproperlyConfigured(f"{cls.__qualname__}: in a routing key '*' and '#' are wildcards: {type!r}")
        other = _registry.get(type)
        if other is not None and _name(other) != _name(cls):
            raise ImproperlyConfigured(f"two events have the type {type!r}: {_name(other)}, {_name(cls)}")
        cls.event_type, cls.event_version, cls.event_exchange = type, version, exchange
        cls._upcasts = {}
        _registry[type] = cls

    @classmethod
    def upcast(cls, *, from_version: int) -> Callable[[Upcast], Upcast]:
        """Register a function that turns a payload of `from_version` into one of the next version."""

        def register(function: Upcast) -> Upcast:
            cls._upcasts[from_version] = function
            return function

        return register

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


def decode(message: Message) -> Event:
    """Return the event of `message`.

    Raises Undecodable, saying why, for anything that is not a known event in JSON.
    """
    if not message.type:
        raise Undecodable("the message has no type property; it names the event, for instance order.placed")
    if message.type not in _registry:
        raise Undecodable(f"no event of type {message.type!r:.100} is known here")
    if message.content_encoding:
        raise Undecodable(f"content encoding {message.content_encoding!r:.50} is not understood")
    if message.content_type.partition(";")[0].strip().lower() not in {"", "application/json"}:
        raise Undecodable(f"content type {message.content_type!r:.50} is not application/json")
    return _registry[message.type].decode(message.body, message.version)


def registered() -> list[type[Event]]:
    """Return every event, by type."""
    return [_registry[name] for name in sorted(_registry)]


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

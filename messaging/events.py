"""Events: facts that happened, with a stable type, a version and a schema."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from string import Formatter
from typing import Any, ClassVar, Self

from django.core.exceptions import ImproperlyConfigured
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, to_json

from messaging.exceptions import NotRun, Undecodable
from messaging.message import Message
from messaging.routing import MAX_SHORT_STRING, Exchange
from messaging.validation import fields, functions, texts

type_name = str
Upcast = Callable[[dict[str, Any]], dict[str, Any]]

#: Options that a declaration leaves to its parent.
_INHERITED: Any = object()

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

    A class without a type is an abstract parent: its events are neither published nor consumed. Fields, `exchange`,
    `key` and `headers` are inherited; type, version and upcasts are not.

    All fields travel, under their aliases where they have any, and are read by alias or name. So do those with
    `exclude=True` and the values of `SecretStr`: the consumer gets what the publisher had. What shall not travel is a
    private attribute.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

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
        exchange: str | Exchange | None = _INHERITED,
        key: str = _INHERITED,
        headers: Iterable[str] = _INHERITED,
        **kwargs: Any,
    ) -> None:
        super().__init_subclass__(**kwargs)

    @classmethod
    def __pydantic_init_subclass__(
        cls,
        *,
        type: str = "",
        version: int = 1,
        exchange: str | Exchange | None = _INHERITED,
        key: str = _INHERITED,
        headers: Iterable[str] = _INHERITED,
        **kwargs: Any,
    ) -> None:
        """Register the event under `type`. A name alone for `exchange` is a topic exchange.

        Raises ImproperlyConfigured for a bad or taken type, an exchange that another event calls of another type, a
        key or headers of fields that are not there or are secret, a version without a type, and a field with a name
        that events need themselves.
        """
        super().__pydantic_init_subclass__(**kwargs)
        _check_fields(cls)
        cls.event_type, cls.event_version, cls._upcasts = type, version, {}
        if exchange is not _INHERITED:
            cls.event_exchange = _checked_exchange(cls, exchange)
        if key is not _INHERITED:
            cls.event_key = key
        if isinstance(headers, str):
            raise ImproperlyConfigured(f'{_name(cls)}: headers is a list of fields, such as ["{headers}"]')
        if headers is not _INHERITED:
            cls.event_headers = tuple(headers)
        if not type:
            # An abstract parent of events. A type is never inherited: a child would travel as its parent.
            if version != 1:
                raise ImproperlyConfigured(f"{_name(cls)} has a version, but no type: give it a type, or no version")
            return
        if not isinstance(type, str):
            raise ImproperlyConfigured(f'{_name(cls)}: type is a text such as "order.placed", not {type!r:.60}')
        if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version < 2**31:
            raise ImproperlyConfigured(f"{_name(cls)}: version is a whole number from 1, not {version!r:.60}")
        if not texts.is_short(type):
            raise ImproperlyConfigured(
                f"{cls.__qualname__}: an event's type is also a routing key, 255 bytes at most and without NUL"
            )
        if {"*", "#"} & set(type.split(".")):
            raise ImproperlyConfigured(f"{cls.__qualname__}: in a routing key '*' and '#' are wildcards: {type!r}")
        other = _registry.get(type)
        if other is not None and _name(other) != _name(cls):
            raise ImproperlyConfigured(f"two events have the type {type!r}: {_name(other)}, {_name(cls)}")
        _check_headers(cls)
        _check_key(cls)
        _registry[type] = cls

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler, /) -> CoreSchema:
        """Let every field travel: see the class."""
        schema = handler(source)
        found: Any = schema
        fields.let_travel(handler.resolve_ref_schema(found) if found.get("type") == "definition-ref" else found)
        return schema

    @classmethod
    def upcast(cls, *, from_version: int) -> Callable[[Upcast], Upcast]:
        """Register a function that turns a payload of `from_version` into one of the next version.

        It gets the payload as JSON says it and returns a dict. Raises ImproperlyConfigured for a version that is not
        older than the event's, and a function that cannot be called so or would not run (`async def`, a generator).
        """
        if not isinstance(from_version, int) or not 1 <= from_version < cls.event_version:
            raise ImproperlyConfigured(
                f"{_name(cls)} has version {cls.event_version}: an upcast is from an older one, "
                f"not from {from_version!r:.60}"
            )

        def register(function: Upcast) -> Upcast:
            functions.check(function, f"the upcast of {_name(cls)} from version {from_version}", takes="payload")
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
        """Return the JSON body (UTF-8). Raises ValueError where a field holds what JSON has no form for."""
        return self.model_dump_json(by_alias=True, warnings=False).encode()

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
            payload = cls._upcasted(payload, older)
        if not cls.__pydantic_complete__:
            cls.model_rebuild()  # its types name classes that were defined after it
        try:
            # As JSON, not as Python: a field may have one form for each, such as bytes in base64.
            event = cls.model_validate_json(_to_validate(cls, body, payload, version), **fields.BY_ALIAS_OR_NAME)
        except ValidationError as error:
            raise Undecodable(f"{cls.event_type} does not fit its schema: {_first_problem(error)}") from None
        except ValueError as error:
            raise Undecodable(f"{cls.event_type}: its payload has no JSON form: {functions.text_of(error)}") from None
        if fields.is_too_large(body, event):
            raise Undecodable(f"{cls.event_type} does not fit its schema: a number is too large")
        return event

    @classmethod
    def _upcasted(cls, payload: dict[str, Any], older: int) -> dict[str, Any]:
        said = f"{cls.event_type} version {older}"
        if older not in cls._upcasts:
            raise Undecodable(f"{said} has no upcast to version {older + 1}")
        try:
            found: object = cls._upcasts[older](payload)
        except Exception as error:
            # It reads a payload that no schema has checked.
            raise Undecodable(f"{said} does not fit its upcast: {type(error).__name__}") from error
        try:
            functions.require_run(found, "its upcast")
        except NotRun as error:
            raise Undecodable(f"{said}: {error}") from None
        if not isinstance(found, dict):
            raise Undecodable(
                f"{said}: its upcast returned {functions.kind_of(found)}; it returns the new payload, a dict"
            )
        return found


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


def secrets_of(type: str) -> frozenset[str]:
    """Return the names under which an event of this type may have secrets in its body; none where it is not known."""
    return fields.secrets(_registry[type]) if type in _registry else frozenset()


def typed_parent(event: type[Event]) -> type[Event] | None:
    """Return the next class above `event` that has a type, if there is one."""
    return next((each for each in event.__mro__[1:] if issubclass(each, Event) and each.event_type), None)


def untyped(event: type[Event]) -> str:
    """Return what is wrong with an event class that has no type of its own."""
    parent = typed_parent(event)
    below = f" It would travel as its parent {parent.__qualname__}, without what it adds." if parent else ""
    return (
        f"{event.__qualname__} has no type of its own.{below} Give it one: "
        f'class {event.__qualname__.partition("[")[0]}(…, type="noun.participle")'
    )


def checked_body(event: Event) -> bytes:
    """Return the JSON body of `event`, having read it as its consumers will.

    Raises ValueError, naming the field, for an event that would arrive as another one or not at all, and for one
    whose class has no type of its own.
    """
    if not event.event_type:
        raise ValueError(untyped(type(event)))
    try:
        body = event.encode()
    except Exception as error:
        where = fields.without_json(event)
        raise ValueError(f"{event.event_type}: field {where} has no JSON form: {functions.text_of(error)}") from error
    try:
        arrives = _read_back(event, body)
    except Exception as error:
        if (name := fields.without_number(event)) is not None:
            raise ValueError(f"{event.event_type}: field {name} holds NaN or infinity: no number to JSON") from None
        raise ValueError(
            f"{event.event_type} cannot be read again, so it is not published: {functions.text_of(error)}"
        ) from error
    if (name := fields.difference(event, arrives)) is not None:
        raise ValueError(
            f"{event.event_type}: field {name} would arrive with another value than it has now. Give it a "
            "type or value that JSON brings back: finite numbers, texts as keys, a list where no type says tuple, and "
            "within a model nothing secret or excluded"
        )
    return body


def routing_key_of(event: Event) -> str:
    """Return the routing key that `event` is published with; a field that is None is an empty text in it.

    Raises ValueError for one that AMQP or a database does not take, such as one of over 255 bytes.
    """
    if not event.event_key:
        return event.event_type
    found = event.model_dump(mode="json", by_alias=False, include=set(fields_in(event.event_key)))
    key = event.event_key.format_map({name: "" if value is None else value for name, value in found.items()})
    return texts.checked(f"{event.event_type}: its routing key", key, octets=MAX_SHORT_STRING)


def routing_headers_of(event: Event) -> dict[str, Any]:
    """Return the headers that `event` is published with: those of its fields that are not None.

    Raises ValueError for a field that is no text, number or truth, or a number that AMQP or JSON cannot hold.
    """
    found = event.model_dump(mode="json", by_alias=False, include=set(event.event_headers), exclude_none=True)
    for name, value in found.items():
        if not isinstance(value, str | int | float):
            raise ValueError(
                f"{event.event_type}: header {name} is no text, number or truth but {type(value).__name__}"
            )
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError(f"{event.event_type}: header {name} is a number of more than 64 bits")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{event.event_type}: header {name} is {value}, no number")
    return found


def fields_in(key: str) -> list[str]:
    """Return the names of the fields in a template of a routing key."""
    return [name for _, name, _, _ in Formatter().parse(key) if name is not None]


def _checked_exchange(event: type[Event], exchange: str | Exchange | None) -> Exchange | None:
    try:
        exchange = Exchange(exchange) if isinstance(exchange, str) and exchange else exchange or None
    except ValueError as error:
        raise ImproperlyConfigured(f"{_name(event)}: {error}") from None
    if exchange is not None and not isinstance(exchange, Exchange):
        raise ImproperlyConfigured(f"{_name(event)}: exchange is a name or an Exchange, not {exchange!r:.60}")
    for other in _registry.values():
        theirs = other.event_exchange
        if exchange and theirs and theirs.name == exchange.name and theirs.type != exchange.type:
            raise ImproperlyConfigured(
                f"exchange {exchange.name!r} is {theirs.type} to {_name(other)} and {exchange.type} to {_name(event)}"
            )
    return exchange


def _check_fields(event: type[Event]) -> None:
    """Raise ImproperlyConfigured for a field that hides what an event is published and read by."""
    needed = {name for name in vars(Event) if not name.startswith("__")} | {
        name for name in vars(BaseModel) if name.startswith("model_")
    }
    for name in [*event.model_fields, *event.__private_attributes__]:
        if name in needed:
            raise ImproperlyConfigured(
                f"{_name(event)}: a field {name!r} would hide what every event has by that name; give it "
                f"another name, and {name!r} as its alias if it shall travel as that"
            )


def _check_headers(event: type[Event]) -> None:
    for name in event.event_headers:
        if name not in event.model_fields:
            raise ImproperlyConfigured(f"{_name(event)}: headers names {name!r}, which is no field of it")
        if name.startswith("x-") or name in {"CC", "BCC"}:
            raise ImproperlyConfigured(f"{_name(event)}: a header {name!r} would mean something to the broker")
        _check_open(event, "headers", name)


def _check_open(event: type[Event], what: str, name: str) -> None:
    if fields.is_secret(event.model_fields[name].annotation):
        raise ImproperlyConfigured(f"{_name(event)}: {what} names {name!r}, a secret: logs and lists show {what}")


def _check_key(event: type[Event]) -> None:
    if not isinstance(event.event_key, str):
        raise ImproperlyConfigured(f"{_name(event)}: key is a text, such as '{{facility}}.error'")
    try:
        unknown = [name for name in fields_in(event.event_key) if name not in event.model_fields]
    except ValueError as error:
        raise ImproperlyConfigured(f"{_name(event)}: key {event.event_key!r} cannot be read: {error}") from None
    if any("{" in (how or "") for _, _, how, _ in Formatter().parse(event.event_key)):
        raise ImproperlyConfigured(f"{_name(event)}: key {event.event_key!r} has braces inside of braces")
    if unknown:
        raise ImproperlyConfigured(f"{_name(event)}: key {event.event_key!r} names {unknown[0]!r}, no field of it")
    for name in fields_in(event.event_key):
        _check_open(event, "key", name)


def _to_validate(event: type[Event], body: bytes, payload: dict[str, Any], version: int) -> bytes:
    """Return the JSON to validate: the body, if its payload is read as it came."""
    read = fields.to_read(event, payload)
    as_it_came = read is payload and version == event.event_version and json.detect_encoding(body) == "utf-8"
    return body if as_it_came else to_json(read)


def _read_back(event: Event, body: bytes) -> Event:
    """Return the event that consumers will make of `body`. Raises Undecodable."""
    here = type(event)
    is_ours = here.decode.__func__ is Event.decode.__func__  # type: ignore[attr-defined]
    if not (is_ours and fields.is_read_as_written(here)) or b"NaN" in body or b"Infinity" in body:
        return here.decode(body, here.event_version)
    try:
        # What pydantic wrote and reads itself is JSON: for that alone it need not be parsed twice.
        return here.model_validate_json(body, **fields.BY_ALIAS_OR_NAME)
    except ValidationError as error:
        raise Undecodable(f"it does not fit its schema: {_first_problem(error)}") from None


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

"""Events: facts that happened, with a stable type, a version and a schema."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Self

from django.core.exceptions import ImproperlyConfigured
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, PydanticSerializationError, to_json

from messaging.exceptions import NotRun, Undecodable
from messaging.registry import Registry
from messaging.routing import Exchange, fields_in
from messaging.validation import fields, functions, texts

Upcast = Callable[[dict[str, Any]], dict[str, Any]]


class Event(BaseModel):
    """Parent of every event. Declare one with its type, a noun and a past participle:

        class OrderPlaced(Event, type="order.placed"):
            order_number: str

    The type is the contract, and the routing key: the class can be renamed. An additional optional field keeps the
    version; any other change raises it and adds an upcast beside the schema. Fields that this code does not know are
    ignored, so that a newer publisher does not stop an older consumer.

    Events go to the project's own topic exchange, or to another, of any type:

        class LogLine(Event, type="log.line", exchange=Exchange("topic_logs"), key="{facility}.{severity}"):
            facility: str
            severity: str

        class Report(Event, type="report.made", exchange=Exchange("reports", "headers"), headers=("format",)):
            format: str

    The routing key is then made from the template `key`: text, and fields in braces. `headers` names the fields that
    also travel as headers, for a headers exchange to route by.

    A class without a type is an abstract parent: its events are neither published nor consumed. Fields, `exchange`,
    `key` and `headers` are inherited; type, version and upcasts are not.

    All fields travel, under their aliases if they have any, and are read by alias or name. So do fields with
    `exclude=True` and the values of `SecretStr`: the consumer receives what the publisher had. Put what must not travel
    into a private attribute.
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
        exchange: str | Exchange | None = None,
        key: str = "",
        headers: Iterable[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init_subclass__(**kwargs)

    @classmethod
    def __pydantic_init_subclass__(cls, *, type: str = "", version: int = 1, **options: Any) -> None:
        """Register the event under `type`. A name alone for `exchange` is a topic exchange.

        Raises ImproperlyConfigured for a bad or taken type, an exchange that another event declares with another type,
        a key or headers of fields that are missing or secret, a version without a type, and a field with a name that
        events need themselves.
        """
        super().__pydantic_init_subclass__(**options)
        try:
            _check_fields(cls)
            # A type is never inherited: a child would travel as its parent.
            cls.event_type, cls.event_version, cls._upcasts = type, version, {}
            if "exchange" in options:
                cls.event_exchange = _checked_exchange(options["exchange"])
            if "key" in options:
                cls.event_key = options["key"]
            if "headers" in options:
                cls.event_headers = _checked_headers(options["headers"])
            if type:
                _check_type(type, version)
                _check_routing(cls)
            elif version != 1:
                raise ValueError("it has a version, but no type: give it a type, or no version")
        except ValueError as error:
            raise ImproperlyConfigured(f"{functions.path(cls)}: {error}") from None
        if type:
            registry.add(cls)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler, /) -> CoreSchema:
        """Let every field travel: see the class."""
        schema = handler(source)
        fields.let_travel(handler.resolve_ref_schema(schema))
        return schema

    @classmethod
    def upcast(cls, *, from_version: int) -> Callable[[Upcast], Upcast]:
        """Register a function that turns a payload of `from_version` into one of the next version.

        It receives the payload as read from JSON and returns a dict. Raises ImproperlyConfigured for a version that is
        not older than the event's, and a function that cannot be called so or would not run (`async def`, a generator).
        """
        if not isinstance(from_version, int) or not 1 <= from_version < cls.event_version:
            raise ImproperlyConfigured(
                f"{functions.path(cls)} has version {cls.event_version}: an upcast is from an older one, "
                f"not from {from_version!r:.60}"
            )
        what = f"the upcast of {functions.path(cls)} from version {from_version}"

        def register(function: Upcast) -> Upcast:
            functions.check(function, what, takes="payload")
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
        """Return the JSON body (UTF-8). Raises ValueError for a field without a JSON form."""
        return self.model_dump_json(by_alias=True, warnings=False).encode()

    @classmethod
    def decode(cls, body: bytes, version: int) -> Self:
        """Return the event in `body`, upcast from `version` if that is older.

        Raises Undecodable if the body is not JSON, does not fit the schema, or is newer than this code.
        """
        if version > cls.event_version:
            raise Undecodable(
                f"{cls.event_type} version {version} is newer than this code's {cls.event_version}; "
                "replay it once the newer code runs"
            )
        if not cls.__pydantic_complete__:
            cls.model_rebuild()  # its types name classes that were defined after it
        written = body
        is_plain = version == cls.event_version and fields.is_read_as_written(cls)
        try:
            # As JSON, because a field may have another form in Python: bytes are base64 in JSON.
            if not is_plain or b"NaN" in body or b"Infinity" in body:
                written = to_json(fields.to_read(cls, cls._upcasted(fields.read_object(body), version)))
            event = cls.model_validate_json(written, **fields.BY_ALIAS_OR_NAME)
        except ValidationError as error:
            fields.read_object(body)  # raises a clearer error for what is no JSON object
            raise Undecodable(f"{cls.event_type} does not fit its schema: {fields.first_problems(error)}") from None
        except PydanticSerializationError as error:
            raise Undecodable(f"{cls.event_type}: its payload has no JSON form: {functions.text_of(error)}") from None
        if fields.is_too_large(body, event):
            raise Undecodable(f"{cls.event_type} does not fit its schema: a number is too large")
        return event

    @classmethod
    def _upcasted(cls, payload: dict[str, Any], version: int) -> dict[str, Any]:
        for older in range(version, cls.event_version):
            what = f"{cls.event_type} version {older}"
            if older not in cls._upcasts:
                raise Undecodable(f"{what} has no upcast to version {older + 1}")
            try:
                found: object = cls._upcasts[older](payload)
                functions.require_run(found, "its upcast")
            except NotRun as error:
                raise Undecodable(f"{what}: {error}") from None
            except Exception as error:
                # No schema has checked the payload that it reads.
                raise Undecodable(f"{what} does not fit its upcast: {type(error).__name__}") from error
            if not isinstance(found, dict):
                raise Undecodable(
                    f"{what}: its upcast returned {functions.kind_of(found)}; it returns the new payload, a dict"
                )
            payload = found
        return payload


registry: Registry[type[Event]] = Registry(
    "event", name_of=lambda event: event.event_type, defined_by=lambda event: event, unknown=Undecodable
)
registered = registry.all


def secrets_of(type: str) -> frozenset[str]:
    """Return the names of secrets in the body of an event of this type; none if it is not known."""
    event = registry.find(type)
    return fields.secrets(event) if event else frozenset()


def typed_parent(event: type[Event]) -> type[Event] | None:
    """Return the next class above `event` that has a type, if there is one."""
    return next((each for each in event.__mro__[1:] if issubclass(each, Event) and each.event_type), None)


def untyped(event: type[Event]) -> str:
    """Return what is wrong with an event class that has no type of its own."""
    parent = typed_parent(event)
    below = f" It would travel as its parent {parent.__qualname__}, without its own fields." if parent else ""
    return (
        f"{event.__qualname__} has no type of its own.{below} Give it one: "
        f'class {event.__qualname__.partition("[")[0]}(…, type="noun.participle")'
    )


def _check_type(type: object, version: object) -> None:
    if not isinstance(type, str):
        raise ValueError(f'type is a text such as "order.placed", not {type!r:.60}')
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version < 2**31:
        raise ValueError(f"version is a whole number from 1, not {version!r:.60}")
    if not texts.is_short(type):
        raise ValueError("an event's type is also a routing key, 255 bytes at most and without NUL")
    if {"*", "#"} & set(type.split(".")):
        raise ValueError(f"in a routing key '*' and '#' are wildcards: {type!r}")


def _checked_exchange(exchange: object) -> Exchange | None:
    if isinstance(exchange, str):
        exchange = Exchange(exchange) if exchange else None
    if exchange is not None and not isinstance(exchange, Exchange):
        raise ValueError(f"exchange is a name or an Exchange, not {exchange!r:.60}")
    for other in registered():
        theirs = other.event_exchange
        if exchange and theirs and theirs.name == exchange.name and theirs.type != exchange.type:
            raise ValueError(
                f"exchange {theirs.name!r} is {theirs.type} to {functions.path(other)}, not {exchange.type}"
            )
    return exchange


def _check_fields(event: type[Event]) -> None:
    """Raise ValueError for a field that hides an attribute which publishing and reading need."""
    needed = {name for name in vars(Event) if not name.startswith("__")} | {
        name for name in vars(BaseModel) if name.startswith("model_")
    }
    for name in [*event.model_fields, *event.__private_attributes__]:
        if name in needed:
            raise ValueError(
                f"a field {name!r} would hide an attribute of every event; give it another name, and {name!r} as its "
                "alias if it must travel under that name"
            )


def _checked_headers(headers: object) -> tuple[str, ...]:
    if isinstance(headers, str) or not isinstance(headers, Iterable):
        raise ValueError(f"headers is a list of fields, not {headers!r:.60}")
    return tuple(headers)


def _check_routing(event: type[Event]) -> None:
    """Raise ValueError for a key or headers of missing or secret fields, and for headers that RabbitMQ reads itself."""
    if not isinstance(event.event_key, str):
        raise ValueError("key is a text, such as '{facility}.error'")
    named = [("headers", name) for name in event.event_headers]
    for what, name in [*named, *((f"key {event.event_key!r}", name) for name in fields_in(event.event_key))]:
        if name not in event.model_fields:
            raise ValueError(f"{what} names {name!r}, which is no field of it")
        if fields.is_secret(event.model_fields[name].annotation):
            raise ValueError(f"{what} names {name!r}, a secret: logs and lists show it")
    for name in event.event_headers:
        if name.startswith("x-") or name in {"CC", "BCC"}:
            raise ValueError(f"a header {name!r} would mean something to the broker")

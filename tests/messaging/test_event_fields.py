"""An event comes back as it left, under the names in its document; one that would not is refused where it is added."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Generic, Literal, TypeVar

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from pydantic import (
    AliasChoices,
    AliasGenerator,
    AliasPath,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    PrivateAttr,
    Secret,
    SecretBytes,
    SecretStr,
    computed_field,
    field_serializer,
    model_serializer,
    model_validator,
)
from pydantic.alias_generators import to_camel

from messaging import consumers, events, outbox
from messaging.admin import payload
from messaging.consumers import consumer, exchange_of
from messaging.encoding import checked_body, routing_headers_of, routing_key_of
from messaging.events import Event
from messaging.exceptions import Undecodable
from messaging.routing import Exchange
from messaging.topology import asyncapi
from messaging.validation import fields

Value = TypeVar("Value")
NAN, INFINITE = float("nan"), float("inf")
NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


@pytest.fixture(autouse=True)
def forget_new_events(isolated: Any) -> None:
    isolated(events, consumers, keep=True)


class Colour(Enum):
    RED = "red"


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives_left: int = Field(alias="livesLeft")


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"


def an_event(annotation: Any, field: Any = ..., **config: Any) -> type[Event]:
    """An event with the one field `order`."""
    own = {"__module__": __name__, "__annotations__": {"order": annotation}, "model_config": ConfigDict(**config)}
    return type(Event)("OneField", (Event,), own if field is ... else {**own, "order": field}, type="test.one_field")


class Swapped(Event, type="test.swapped"):
    here: str = Field(alias="there")
    there: str = Field(alias="here")


class Hidden(Event, type="test.hidden"):
    hidden: str = Field(exclude=True)
    secret: SecretStr
    secrets: dict[str, list[SecretBytes | None]]
    number: Secret[int]

    @model_validator(mode="after")
    def _any(self) -> "Hidden":
        return self


class Computed(Event, type="test.computed"):
    model_config = ConfigDict(extra="forbid", alias_generator=to_camel)
    number: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def twice_that(self) -> int:
        return 2 * self.number


class Pet(Event, type="test.pet"):
    pet: Cat | Dog = Field(discriminator="kind")
    later: "Later"


class Later(BaseModel):
    number: int


class More(Event, type="test.more"):
    model_config = ConfigDict(extra="allow", frozen=False, use_enum_values=True)
    colour: Colour = Colour.RED
    tags: list[str] = ()  # type: ignore[assignment]
    _here: int = PrivateAttr(default=1)


class Hexadecimal(Event, type="test.hexadecimal"):
    field: int

    @field_serializer("field")
    def _written(self, field: int) -> str:
        return hex(field)


class Listed(Event, type="test.listed"):
    field: int

    @model_serializer
    def _written(self) -> list[int]:
        return [self.field]


class Within(BaseModel):
    excluded: str = Field(exclude=True)


class WithinToo(BaseModel):
    secret: SecretStr


class Holding(Event, type="test.holding"):
    field: Within | WithinToo | Later


class MoreThanLater(Later):
    more: int


class Wrapped(Event, Generic[Value]):
    field: Value


class WrappedTime(Wrapped[datetime], type="test.wrapped_time"):
    pass


class Typed(Event, Generic[Value], type="test.typed"):
    field: Value


@pytest.mark.parametrize(
    ("field", "config", "given", "written"),
    [
        (Field(alias="orderNumber"), {}, "orderNumber", "orderNumber"),
        (..., {"alias_generator": lambda name: f"the_{name}"}, "the_order", "the_order"),
        (..., {"alias_generator": AliasGenerator(validation_alias=to_camel, serialization_alias=str.upper)}, "order",
         "ORDER"),
        (Field(serialization_alias="orderNumber"), {}, "order", "orderNumber"),
        (Field(serialization_alias="orderNumber"), {"populate_by_name": False}, "order", "orderNumber"),
        (Field(validation_alias="orderNumber"), {}, "orderNumber", "order"),
        (Field(validation_alias=AliasChoices("order_no", AliasPath("order", "number"))), {}, "order_no", "order"),
        (Field(validation_alias="in", serialization_alias="out"), {}, "in", "out"),
    ],
)  # fmt: skip
def test_a_field_travels_and_is_documented_under_its_alias(
    field: Any, config: dict[str, Any], given: str, written: str
) -> None:
    event = an_event(str, field, **config)(**{given: "W"})

    body = checked_body(event)

    assert type(event).decode(body, 1) == event
    assert [*json.loads(body)] == [*documented(event)] == [written]


class Amount:
    """A type of a project's own, without equality."""

    def __init__(self, cents: int) -> None:
        self.cents = cents


AnAmount = Annotated[
    Amount, PlainValidator(lambda given: given if isinstance(given, Amount) else Amount(given)),
    PlainSerializer(lambda amount: amount.cents),
]  # fmt: skip


class Line(BaseModel):
    words: Sequence[str]


@pytest.mark.parametrize(
    ("annotation", "value", "body"),
    [
        (datetime, NOW, '"2026-03-04T05:06:07Z"'),
        (Decimal, Decimal("1.0"), '"1.0"'),
        (tuple[int, str], (1, "a"), '[1,"a"]'),
        (set[int], {1}, "[1]"),
        (Colour, Colour.RED, '"red"'),
        (dict[int, str], {1: "a"}, '{"1":"a"}'),
        (bytes, b"\xff\x00", '"_wA="'),
        (timedelta, timedelta(seconds=1.5), '"PT1.5S"'),
        (list[AnAmount], [Amount(5)], "[5]"),
        (Sequence[Line] | None, (Line(words=("a",)),), '[{"words":["a"]}]'),
    ],
)
def test_a_value_comes_back_as_it_left_also_in_strict_mode(annotation: Any, value: Any, body: str) -> None:
    event = an_event(annotation, strict=True, ser_json_bytes="base64", val_json_bytes="base64")
    assert checked_body(event(order=value)) == f'{{"order":{body}}}'.encode()


@pytest.mark.parametrize(
    "event",
    [
        Swapped(there="1", here="2"),
        Hidden(hidden="h", secret="hush", secrets={"a": [b"x", None]}, number=17),
        Pet(pet={"kind": "cat", "livesLeft": 7}, later={"number": 1}),
        WrappedTime(field=NOW),
        Typed(field="x"),
    ],
    ids=lambda event: type(event).__name__,
)
def test_an_event_comes_back_as_it_left_and_its_document_says_so(event: Event) -> None:
    body = checked_body(event)

    assert type(event).decode(body, 1) == event
    assert sorted(json.loads(body)) == sorted(documented(event)) == sorted(type(event).model_fields)


def test_a_computed_field_is_written_and_not_read() -> None:
    body = checked_body(Computed(number=2))

    assert Computed.decode(body, 1) == Computed(number=2)
    assert sorted(json.loads(body)) == sorted(documented(Computed(number=2))) == ["number", "twiceThat"]


def documented(event: Event) -> dict[str, Any]:
    found: dict[str, Any] = asyncapi.document(title="t", version="1")["components"]["schemas"]
    return found[type(event).__name__]["properties"]


def test_a_longer_sequence_is_another_one() -> None:
    here, there = (an_event(Line)(order=Line(words=words)) for words in (["a", "b"], ("a",)))
    assert fields.difference(here, there) == "order"


def test_what_no_schema_says_comes_back_too() -> None:
    event = More(more=[1])
    event._here = 5

    assert More.decode(checked_body(event), 1).model_extra == {"more": [1]}


def test_an_event_is_read_by_its_fields_names_as_well_as_by_their_aliases() -> None:
    aliased = an_event(str, Field(alias="orderNumber"))
    assert aliased.decode(b'{"order": "W"}', 1) == aliased.decode(b'{"orderNumber": "W"}', 1) == aliased(order="W")


def test_secrets_stay_hidden_on_pages_and_in_print_whatever_their_fields_are_called() -> None:
    class Pin(Event, type="test.pin"):
        pin: SecretStr | None = Field(alias="thePin")
        text: str

    event = Pin(pin="hush", text="open")
    body = checked_body(event)

    assert "hush" not in f"{event!r} {event.model_dump()}"
    shown = payload.written(body, unmasked=False, secrets=events.secrets_of("test.pin"))
    assert "hush" not in shown
    assert "open" in shown
    assert "hush" in payload.written(body, unmasked=True, secrets=events.secrets_of("test.pin"))


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (an_event(float)(order=NAN), "field order holds NaN or infinity"),
        (an_event(float)(order=INFINITE), "no number"),
        (an_event(float | None)(order=NAN), "order"),
        (an_event(float, ser_json_inf_nan="constants")(order=INFINITE), "JSON"),
        (an_event(bytes)(order=b"\xff"), "order"),
        (an_event(float).model_construct(order="nope"), "order"),
        *((an_event(Any)(order=value), "order") for value in (NAN, {1: "a"}, (1,), object(), "\ud800", NOW)),
        (an_event(Any)(order=10**5000), "JSON"),
        (Hexadecimal(field=16), "field"), (Listed(field=1), "list"),
        *((Holding(field=value), "field") for value in (
            Within(excluded="x"), WithinToo(secret="x"), MoreThanLater(number=1, more=2))),
        (Typed[datetime](field=NOW), "has no type of its own"), (Wrapped[int](field=1), "has no type of its own"),
        (More(more=(1,)), "more"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_an_event_that_would_arrive_as_another_is_refused(event: Event, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        checked_body(event)


@pytest.mark.django_db
def test_it_is_refused_where_it_is_added() -> None:
    with pytest.raises(ValueError, match="field order"), transaction.atomic():
        outbox.add(an_event(Any)(order=(1,)))


def test_a_number_that_no_float_can_hold_is_undecodable() -> None:
    with pytest.raises(Undecodable, match="too large"):
        an_event(Any).decode(b'{"order": [1e999]}', 1)


# --- Declarations --------------------------------------------------------------------------------------------


class Changed(Event, type="test.changed", version=2, exchange="orders", key="order.{number}", headers=("number",)):
    number: str


@Changed.upcast(from_version=1)
def _numbered(payload: dict[str, Any]) -> dict[str, Any]:
    return {"number": payload["no"]}


class Untyped(Changed):
    amount: int


class Paid(Changed, type="test.paid"):
    amount: int


def test_a_child_without_a_type_is_neither_added_nor_consumed() -> None:
    with pytest.raises(ValueError, match="travel as its parent Changed"):
        checked_body(Untyped(number="W", amount=5))
    with pytest.raises(ImproperlyConfigured, match="travel as its parent Changed"):
        consumer("paid", Untyped)(lambda event, delivery: None)
    assert Changed.decode(b'{"number": "W"}', 2) == Changed(number="W")


def test_a_child_inherits_where_its_parent_goes_and_not_what_it_was_unless_it_says_otherwise() -> None:
    class Refunded(Changed, type="test.refunded", exchange=None, key="", headers=()):
        pass

    paid, refunded = Paid(number="W", amount=5), Refunded(number="W")
    assert exchange_of(Paid) == Exchange("orders") != exchange_of(Refunded)
    assert (routing_key_of(paid), routing_headers_of(paid)) == ("order.W", {"number": "W"})
    assert (routing_key_of(refunded), routing_headers_of(refunded)) == ("test.refunded", {})
    assert (Paid.event_version, Paid.versions()) == (1, [1])


def test_keys_and_headers_are_made_of_fields_whatever_their_aliases() -> None:
    class Line(Event, type="test.line", key="log.{facility_name}", headers=("facility_name",)):
        model_config = ConfigDict(alias_generator=to_camel)
        facility_name: str

    line = Line(facility_name="kern")
    assert (routing_key_of(line), routing_headers_of(line)) == ("log.kern", {"facility_name": "kern"})
    channel = asyncapi.document(title="t", version="1")["channels"]["event.test.line"]
    assert channel["parameters"] == {"facility_name": {"location": "$message.payload#/facilityName"}}


@pytest.mark.parametrize("name", ["decode", "event_type", "_upcasts"])
@pytest.mark.filterwarnings("ignore:Field name")
def test_a_field_may_not_hide_what_every_event_has(name: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=name):
        type(Event)("Hiding", (Event,), {"__module__": __name__, name: "x", "__annotations__": {name: str}}, type="x")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"version": 2}, "no type"), ({"type": "test.odd", "version": 0}, "version"),
        ({"type": "test.odd", "version": "2"}, "version"), ({"type": 5}, "type"), ({"type": "é" * 128}, "255"),
        ({"type": "test.odd", "headers": "format"}, "list of fields"),
        ({"type": "test.odd", "headers": ("secret",)}, "secret"), ({"type": "test.odd", "key": "{secret}"}, "secret"),
        ({"type": "order.*"}, "wildcard"), ({"type": "#"}, "wildcard"), ({"type": "order.#.placed"}, "wildcard"),
    ],
)  # fmt: skip
def test_a_declaration_that_means_nothing_or_tells_a_secret_is_refused(options: dict[str, Any], said: str) -> None:
    own = {"__module__": __name__, "__annotations__": {"secret": SecretStr | None}}
    with pytest.raises(ImproperlyConfigured, match=said):
        type(Event)("Odd", (Event,), own, **options)


@pytest.mark.parametrize("version", [0, 2, "1"])
def test_an_upcast_is_from_an_older_version(version: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="an upcast is from an older one"):
        Changed.upcast(from_version=version)


@pytest.mark.parametrize("event", ["Changed", Changed(number="W"), BaseModel])
def test_a_consumer_names_classes_of_events(event: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="is no event"):
        consumer("changed", event)

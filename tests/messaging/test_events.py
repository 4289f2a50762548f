"""Decoding: which messages become events, and that every other one raises `Undecodable`, whatever is in it."""

import json
from contextlib import suppress
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from messaging import encoding, events
from messaging.events import Event
from messaging.exceptions import Undecodable
from messaging.message import Message


class Measured(Event, type="test.gauged", version=3):
    """One field of each kind that people use."""

    name: str
    count: int = 0
    ratio: float = 0.0
    price: Decimal = Decimal(0)
    at: datetime | None = None
    took: timedelta | None = None
    key: UUID | None = None
    tags: tuple[str, ...] = ()
    more: dict[str, Any] = {}


@Measured.upcast(from_version=1)
def _named(payload: dict[str, Any]) -> dict[str, Any]:
    return {"title": payload["label"]}


@Measured.upcast(from_version=2)
def _renamed(payload: dict[str, Any]) -> dict[str, Any]:
    return {"name": payload["title"]}


@pytest.fixture(autouse=True)
def forget_new_events(isolated: Any) -> None:
    isolated(events, keep=True)


def message(body: bytes | str | dict[str, Any] = b'{"name": "x"}', *, version: Any = 3, **changes: Any) -> Message:
    if isinstance(body, dict):
        body = json.dumps(body)
    body = body.encode() if isinstance(body, str) else body
    return Message(**{"body": body, "type": "test.gauged", "headers": {"x-event-version": version}, **changes})


def reason(broken: Message) -> str:
    with pytest.raises(Undecodable) as refused:
        encoding.decode(broken)
    return str(refused.value)


def test_an_event_comes_back_as_it_was() -> None:
    event = Measured(
        name="a\u0000b ✓ \U0001f9e7", count=2**80, price=Decimal("0.10"), at=datetime(2026, 1, 2), took=timedelta(1),
        key=UUID(int=7), tags=("a",), more={"b": [1]},
    )  # fmt: skip
    assert encoding.decode(message(event.encode())) == event


def test_fields_unknown_here_are_ignored() -> None:
    assert encoding.decode(message({"name": "x", "added later": 1})) == Measured(name="x")


def test_an_older_version_is_upcast_step_by_step_and_no_version_means_the_first() -> None:
    assert encoding.decode(message({"label": "old"}, version=1)) == Measured(name="old")
    assert encoding.decode(message({"title": "old"}, version=2)) == Measured(name="old")
    assert encoding.decode(message({"label": "old"}, headers={})) == Measured(name="old")


def test_the_error_names_a_version_that_this_code_cannot_read() -> None:
    class Gap(Event, type="test.gap", version=3):
        pass

    assert "newer" in reason(message(version=4))
    assert "no upcast" in reason(message(type="test.gap", version=1))
    assert "version 1" in reason(message({"neither": 1}, version=1))


@pytest.mark.parametrize("version", [0, 1.5, True, None, 2**31, [1]])
def test_a_version_that_is_no_number_is_undecodable(version: Any) -> None:
    assert "x-event-version" in reason(message(version=version))


@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"{", b"nonsense", b"null", b"1", b'"text"', b"[]", b"\x00", b"\xff\xfe\x00\xd8",
        b'{"name": "\xff"}',
        b"[" * 200_000, b'{"name":' * 200_000, b'{"name": "\\ud800"}', b'{"name": "x", "ratio": NaN}',
        b'{"name": "x", "ratio": Infinity}', b'{"name": "x", "more": {"y": -Infinity}}',
        b'{"name": "x", "count": ' + b"9" * 5000 + b"}", b'{"name": "x", "ratio": ' + b"9" * 400 + b"}",
        b'{"name": "x", "took": 1e300}', b'{"name": "x", "at": 1e300}', b'{"name": "x", "price": "NaN"}',
    ],
)  # fmt: skip
def test_a_body_that_is_no_such_object_is_undecodable(body: bytes) -> None:
    reason(message(body))


def test_the_reason_says_which_field_but_never_its_value() -> None:
    said = reason(message({"name": 13800138000, "count": "secret", "price": "secret"}))
    assert "name" in said
    assert "count" in said
    assert "138" not in said
    assert "secret" not in said


def test_json_is_read_under_its_usual_names_and_nothing_else_is() -> None:
    for content_type in ("", "application/json", "Application/JSON; charset=utf-8"):
        assert encoding.decode(message(content_type=content_type)) == Measured(name="x")
    for wrong in ({"content_type": "application/xml"}, {"content_encoding": "gzip"}, {"type": ""}, {"type": "unheard"}):
        reason(message(**wrong))


@settings(max_examples=50)
@given(st.binary() | st.text().map(str.encode))
def test_any_bytes_are_read_or_undecodable(body: bytes) -> None:
    read_or_refuse(message(body))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100)
@given(st.dictionaries(st.sampled_from(sorted(Measured.model_fields)), anything), st.integers(1, 3))
def test_any_json_object_is_read_or_undecodable(payload: dict[str, Any], version: int) -> None:
    read_or_refuse(message(payload, version=version))


header_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.decimals() | st.datetimes(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
header_names = st.text() | st.sampled_from(["x-event-version", "x-attempt", "x-subject", "x-request-id"])


@settings(max_examples=50)
@given(st.dictionaries(header_names, header_values))
def test_any_headers_are_read_or_undecodable(headers: dict[str, Any]) -> None:
    strange = message(headers=headers)
    read_or_refuse(strange)
    for number in ("version", "attempt"):
        with suppress(Undecodable):
            assert 1 <= getattr(strange, number) < 2**31
    for text in (strange.subject, strange.request_id):
        assert "\x00" not in text
        assert len(text) <= 255


def read_or_refuse(strange: Message) -> None:
    try:
        assert isinstance(encoding.decode(strange), Measured)
    except Undecodable as refused:
        str(refused).encode()  # it can be stored and printed

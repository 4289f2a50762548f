"""Messages as they arrive: every database can store them, and they can be sent again."""

import json
import struct
from datetime import UTC, datetime
from typing import Any

import pika
import pytest
from hypothesis import given
from hypothesis import strategies as st

from messaging.broker.properties import from_pika, to_pika
from messaging.broker.wire import Properties, read_table, write_table
from messaging.exceptions import Undecodable
from messaging.headers import headers_to_pass_on, storable_headers
from messaging.message import Message, identity, new_id

short = st.binary(max_size=255) | st.text(max_size=60)


def arrived(**properties: Any) -> Message:
    return from_pika(pika.BasicProperties(**properties), b"")


def over_the_wire(properties: pika.BasicProperties) -> pika.BasicProperties:
    return Properties().decode(b"".join(properties.encode()))


@given(st.tuples(short, short, short, short))
def test_any_text_property_can_be_stored_and_sent_again(texts: tuple[Any, ...]) -> None:
    message = arrived(message_id=texts[0], type=texts[1], correlation_id=texts[2], app_id=texts[3])
    for text in (message.id, message.type, message.correlation_id, message.app_id):
        assert "\x00" not in text
        assert len(text.encode()) <= 255
    assert from_pika(over_the_wire(to_pika(message)), b"") == message


@given(st.binary(min_size=1, max_size=255), st.binary(min_size=1, max_size=255))
def test_different_ids_and_names_stay_different(one: bytes, other: bytes) -> None:
    same = _as_pika(one) == _as_pika(other)
    assert (arrived(message_id=one).id == arrived(message_id=other).id) is same
    assert (arrived(app_id=one).app_id == arrived(app_id=other).app_id) is same


def _as_pika(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def test_an_id_of_raw_bytes_is_kept_apart_from_another() -> None:
    assert arrived(message_id=b"\xfe\x01").id != arrived(message_id=b"\xff\x01").id
    assert arrived(message_id="a\x00").id != arrived(message_id="a\ufffd").id


#: Names and ids that contain the separator between them, or look like a hash.
odd = st.text("a/%2F:é", max_size=6) | st.sampled_from(["", "sha256:", "sha256:" + "0" * 64, "x" * 255, "é" * 127])


@given(odd, odd, odd, odd)
def test_two_clients_never_share_an_identity_whatever_their_names_and_ids(
    one: str, its: str, two: str, other: str
) -> None:
    known = [identity(its, one, own_app_id="warren"), identity(other, two, own_app_id="warren")]
    if its and other:
        assert (known[0] == known[1]) == ((one, its) == (two, other))
    assert all(len(each.encode()) <= 255 for each in known)


def test_only_foreign_ids_get_their_app_id_as_a_prefix() -> None:
    def known(message_id: str, app_id: str) -> str:
        return identity(message_id, app_id, own_app_id="warren")

    assert known("17", "warren") == known("17", "") == "17"
    assert known("17", "billing") == "billing/17"
    assert known("billing/17", "warren") == "billing/17", "a retry by our relay is the same message"
    assert known("billing/17", "") == "/billing/17"
    assert known("17", "a/b") == "a%2Fb/17"
    assert known("", "billing") == ""


nested = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text() | st.binary() | st.datetimes(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=20), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(max_size=60), nested))
def test_any_headers_become_json_without_nul(headers: dict[str, Any]) -> None:
    stored = json.dumps(storable_headers(headers))
    assert "\\u0000" not in stored
    assert json.loads(stored) == storable_headers(headers)


def test_the_next_attempt_keeps_the_senders_headers_and_drops_ours_and_the_brokers() -> None:
    headers = {
        "tenant": "t1", "x-request-id": "r", "x-attempt": 3, "x-death": [{"count": 9}], "x-outbox-id": "5",
        "CC": ["orders.sms"], "BCC": ["orders.sms"], "weight": 1.5,
    }  # fmt: skip
    assert headers_to_pass_on(headers) == {"tenant": "t1", "x-request-id": "r", "weight": 1.5}


def test_absent_properties_arrive_as_empty_texts() -> None:
    message = arrived()
    assert (message.id, message.type, message.content_type, message.headers) == ("", "", "", {})
    assert message.timestamp is None
    assert (message.version, message.attempt) == (1, 1)


def test_a_number_in_a_header_may_arrive_as_text_or_as_a_float() -> None:
    message = arrived(headers={"x-event-version": "2", "x-attempt": 3.0, "x-position": "9000000000000000000"})
    assert (message.version, message.attempt, message.position) == (2, 3, 9 * 10**18)


@pytest.mark.parametrize("value", ["", "0", "-1", "1.0", " 1", "٣", "9" * 20, "two", 1.5, True, 1e300])
def test_other_values_are_no_numbers(value: Any) -> None:
    with pytest.raises(Undecodable):
        arrived(headers={"x-event-version": value}).version  # noqa: B018


def test_a_time_outside_the_calendar_is_no_time() -> None:
    assert arrived(timestamp=2**62).timestamp is None
    assert arrived(timestamp=0).timestamp == datetime(1970, 1, 1, tzinfo=UTC)


def test_ids_sort_by_the_time_they_were_made() -> None:
    ids = [new_id() for _ in range(100)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 100


def encoded_table(*fields: bytes) -> bytes:
    table = b"".join(bytes([1]) + b"abcdefgh"[place : place + 1] + field for place, field in enumerate(fields))
    return struct.pack(">I", len(table)) + table


def test_header_values_beyond_the_range_of_python_are_read() -> None:
    milliseconds = b"T" + struct.pack(">Q", 1_700_000_000_000)
    not_a_number = b"d" + struct.pack(">d", float("nan"))
    endless = b"f" + struct.pack(">f", float("inf"))
    inside = b"F" + encoded_table(milliseconds, b"t\x01")
    table = encoded_table(milliseconds, not_a_number, endless, inside, b"t\x01")
    headers, read = read_table(table)
    assert read == len(table)
    assert headers == {
        "a": 1_700_000_000_000, "b": "nan", "c": "inf", "d": {"a": 1_700_000_000_000, "b": True}, "e": True,
    }  # fmt: skip
    assert storable_headers(headers) == headers


def test_floats_are_sent_at_any_depth_of_the_headers() -> None:
    headers = {"weight": 1.5, "inside": {"ratios": [0.25, -1e300, 3]}, "count": 2}
    encoded = write_table(headers)
    assert read_table(encoded) == (headers, len(encoded))
    short = encoded_table(b"f" + struct.pack(">f", 1.5), b"t\x01")
    assert read_table(short) == ({"a": 1.5, "b": True}, len(short))


def test_deeply_nested_headers_are_cut_off_and_the_rest_is_read() -> None:
    nested = b"t\x01"
    for _ in range(5000):
        nested = b"F" + encoded_table(nested)
    headers, _ = read_table(encoded_table(nested, b"t\x01"))
    assert headers["b"] is True


def test_a_large_number_in_a_header_is_read_as_a_plain_one() -> None:
    """pika's own type writes itself as 5L."""
    read = over_the_wire(Properties(headers={"sent": [9 * 10**18]}))
    assert repr(read.headers) == "{'sent': [9000000000000000000]}"


ANY_PROPERTIES = {
    "content_type": "text/plain", "content_encoding": "gzip", "delivery_mode": 2, "priority": 3, "correlation_id": "c",
    "reply_to": "r", "expiration": "1000", "message_id": "m", "timestamp": 1_700_000_000, "type": "t", "app_id": "a",
}  # fmt: skip


@given(st.sets(st.sampled_from(sorted(ANY_PROPERTIES))), st.dictionaries(st.text(max_size=20), nested, max_size=3))
def test_properties_are_written_as_pika_writes_them_and_read_back(names: set[str], headers: dict[str, Any]) -> None:
    properties = {name: ANY_PROPERTIES[name] for name in names}
    ours, theirs = Properties(**properties), pika.BasicProperties(**properties)
    assert b"".join(ours.encode()) == b"".join(theirs.encode())
    ours.headers = headers
    read = over_the_wire(ours)
    assert {name: getattr(read, name) for name in names} == properties
    assert write_table(read.headers) == write_table(headers)


def test_pika_itself_is_not_patched() -> None:
    """The host project may use pika, too."""
    with pytest.raises(pika.exceptions.UnsupportedAMQPFieldException):
        pika.BasicProperties(headers={"weight": 1.5}).encode()

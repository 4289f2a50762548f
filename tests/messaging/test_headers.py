"""Headers are made to fit before they are passed on; a retry that cannot be sent makes its message dead."""

import struct
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pika
import pytest
from django.db import transaction

from messaging import consumers, outbox
from messaging import headers as sizes
from messaging.actions.publish_now import publish_now
from messaging.actions.selection import Selection
from messaging.broker.arrival import Arrival
from messaging.broker.connection import Connection
from messaging.broker.properties import check_size, fitted, from_pika, to_pika
from messaging.broker.publisher import Outcome, Status
from messaging.broker.request_queue import Request
from messaging.broker.wire import read_table, write_table
from messaging.events import Event
from messaging.exceptions import PreconditionFailed
from messaging.headers import headers_to_pass_on, storable_headers
from messaging.message import Delivery, Message
from messaging.models import InboxMessage, OutboxMessage
from messaging.relay import destinations, leases
from messaging.relay.leases import Mark
from messaging.rpc import server
from messaging.worker import handling, inbox
from tests.support.consuming import Noted, registered

pytestmark = pytest.mark.django_db
Origin = OutboxMessage.Origin
ZERO = b"T" + struct.pack(">q", -62_135_596_800)  # the year 1, as the zero times of Go and .NET


def long(raw: bytes) -> bytes:
    return struct.pack(">I", len(raw)) + raw


def field(name: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + value


def nested(kind: bytes, levels: int) -> bytes:
    value = b"V"
    for _ in range(levels):
        value = kind + long(value if kind == b"A" else field(b"t", value))
    return field(b"t", value)


ODD = {
    "arrays in arrays": nested(b"A", 2000),
    "tables in tables": nested(b"F", 400),
    "a time before 1970": field(b"born", ZERO),
    "a time beyond the calendar": field(b"born", b"T" + struct.pack(">q", 2**62)),
    "the longest name that is not UTF-8, in a table": field(b"t", b"F" + long(field(b"\xff" * 255, b"V"))),
    "a name of NULs": field(b"\0" * 255, b"V"),
    "a text of NULs": field(b"t", b"S" + long(b"\0" * 1000)),
    "a text that is not UTF-8": field(b"t", b"S" + long(b"\xff" * 1000)),
    "bytes": field(b"t", b"x" + long(b"\0\xff")),
    "a decimal": field(b"d", b"D" + struct.pack(">Bi", 255, -1)),
    "the largest numbers": field(b"l", b"l" + struct.pack(">q", -(2**63))) + field(b"i", b"i" + b"\xff" * 4),
    "no number": field(b"d", b"d" + struct.pack(">d", float("nan"))),
}


def arrived(**properties: Any) -> Message:
    return from_pika(pika.BasicProperties(**properties), b"{}")


def is_sendable(message: Message) -> bool:
    properties = to_pika(message)
    check_size(properties)
    return bool(properties.encode())


@pytest.mark.parametrize("raw", ODD.values(), ids=ODD)
def test_whatever_header_arrived_can_be_passed_on(raw: bytes) -> None:
    headers, _ = read_table(long(raw))
    message = arrived(headers=headers)
    assert is_sendable(message), "as a request that goes back to its queue"
    assert is_sendable(Message(body=b"{}", headers=headers_to_pass_on(message.headers))), "as a retry"
    again = headers_to_pass_on(storable_headers(message.headers))
    assert again == headers_to_pass_on(message.headers), "as a replay"
    assert fitted(message).encode(), "as a request that goes back or is dead-lettered"


def test_a_float_beyond_64_bits_is_passed_on_as_text_for_postgresql_returns_it_as_a_whole_number() -> None:
    assert headers_to_pass_on({"far": 1e22, "in": [-1e19, 1e18]}) == {"far": "1e+22", "in": ["-1e+19", 1e18]}


def test_a_time_before_1970_is_read_and_sent_as_it_is() -> None:
    headers, _ = read_table(long(ODD["a time before 1970"]))
    assert headers == {"born": datetime(1, 1, 1, tzinfo=UTC)}
    assert write_table(headers) == long(ODD["a time before 1970"])


def test_different_names_that_cannot_be_sent_stay_different() -> None:
    passed_on = headers_to_pass_on({b"\xff": 1, b"\xfe": 2, "?": 3, b"\xff" * 255: 4, b"\xfe" * 255: 5})
    assert sorted(passed_on.values()) == [1, 2, 3, 4, 5]
    assert all(len(name.encode()) <= 255 for name in passed_on)


def test_the_computed_size_is_the_size_that_is_sent() -> None:
    headers = {"text": "ü", "n": 1, "f": 1.5, "t": True, "v": None, "b": b"xy", "d": Decimal("1.5"), b"\xff": 2**40}
    headers |= {"when": datetime(2026, 1, 1, tzinfo=UTC), "table": {"a": [1, "x", {"b": None}]}}  # type: ignore[dict-item]
    size = len(write_table(headers))
    assert 0 <= sizes.size_of(headers) - size <= 30, "never less; pika writes small numbers in fewer bytes"


LARGE = {
    "one long text": {"trace": "s" * 130_500},
    "one that JSON makes longer": {"raw": b"\xff" * 40_000},
    "many": {f"name-{number}" * 10: number for number in range(2000)},
    "a large table": {"a": "b", "t": {f"k{number}": ["v" * 100] for number in range(1300)}},
}


@pytest.mark.parametrize("frame", [sizes.USUAL_FRAME, 4096])
@pytest.mark.parametrize("headers", LARGE.values(), ids=LARGE)
def test_the_largest_headers_are_left_out_if_they_do_not_fit_and_another_says_so(
    headers: dict[str, Any], frame: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizes, "_smallest_frame", frame)
    row = OutboxMessage(
        message_id="m" * 255, correlation_id="c" * 255, type="t" * 255, consumer="notes", routing_key="q", attempt=2,
        subject="s" * 255, ordering_key="k" * 255, headers=headers_to_pass_on({"small": 1, **headers}),
    )  # fmt: skip
    row.headers = sizes.fit_headers(row.headers, destinations.room_for_headers(row))
    row.pk, row.created_at = 2**63 - 1, datetime.now(UTC)
    properties = to_pika(destinations.publishing_of(row).message)
    assert len(b"".join(properties.encode())) <= sizes.room_in_frame()
    assert sizes.fit_headers(row.headers, destinations.room_for_headers(row)) == row.headers, "no fewer the next time"
    assert "fit into AMQP's frame" in row.headers["headers-left-out"]
    assert row.headers["small"] == 1


def test_the_frame_is_the_one_that_was_agreed_on_or_asked_for(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "_smallest_frame", sizes.USUAL_FRAME)
    sizes.note_frame_max(0)
    assert sizes.room_in_frame() == sizes.USUAL_FRAME - sizes.MARGIN
    sizes.note_frame_max(16_384)
    assert sizes.room_in_frame() == 16_384 - sizes.MARGIN
    settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": ["amqp://127.0.0.1/?frame_max=8192"]}
    assert sizes.room_in_frame() == 8192 - sizes.MARGIN


def test_a_connection_takes_note_of_its_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "_smallest_frame", sizes.USUAL_FRAME)
    connection, opened = Connection("test"), pika.ConnectionParameters(frame_max=9000)
    agreed: Any = type(
        "", (), {"params": opened, "server_properties": {}, "add_on_connection_blocked_callback": lambda *_: None,
                 "add_on_connection_unblocked_callback": lambda *_: None},
    )()  # fmt: skip
    connection._pika = agreed
    connection._opened_now(agreed)
    assert sizes.room_in_frame() == 9000 - sizes.MARGIN


def request(**properties: Any) -> Request:
    message = arrived(**properties)
    return Request(Arrival("rpc.ask", message, 1, 1, False, "", "rpc.ask"), properties.get("correlation_id"), 0.0)


def test_a_request_whose_headers_just_fit_can_be_dead_lettered_and_put_back() -> None:
    odd = {"correlation_id": b"\xff" * 255, "reply_to": "r" * 255, "type": "t" * 255, "message_id": "m" * 255}
    for headers in LARGE.values():
        came = request(headers={**headers, b"\xff" * 255: 1}, **odd)
        letter = server._dead_letter(came, "its reply_to is a queue of ours")
        assert len(b"".join(fitted(letter).encode())) <= sizes.room_in_frame()
        assert letter.headers["x-death"][0]["queue"] == "rpc.ask"
        back = fitted(came.arrival.message)
        assert len(b"".join(back.encode())) <= sizes.room_in_frame()


# --- In the database -----------------------------------------------------------------------------------------


def test_an_event_whose_headers_do_not_fit_is_refused_at_the_call() -> None:
    class Odd(Event, type="test.large", headers=["text"]):
        text: str

    with transaction.atomic():
        with pytest.raises(ValueError, match=r"test\.large: its headers take 140\d+ bytes"):
            outbox.add(Odd(text="x" * 140_000))
        outbox.add(Odd(text="x" * 100_000))


def test_an_event_whose_headers_just_fit_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fitting(Event, type="test.fitting", headers=["text"]):
        text: str

    monkeypatch.setattr(destinations, "room_for_headers", lambda row: sizes.size_of(row.headers))
    with transaction.atomic():
        assert outbox.add(Fitting(text="x"))


def retrying(**columns: Any) -> InboxMessage:
    return InboxMessage.objects.create(
        consumer="notes", message_id="m-1", type="test.noted", state="retrying", attempt=2, body=b"{}", **columns
    )


def carrier(origin: str, **columns: Any) -> OutboxMessage:
    return OutboxMessage.objects.create(
        message_id="m-1", type="test.noted", routing_key="tests.notes", consumer="notes", body=b"{}", origin=origin,
        **{"attempt": 2, **columns},
    )  # fmt: skip


FAILURES = [
    Outcome(Status.UNSENDABLE, "too long"),
    Outcome(Status.REFUSED, "406 too large", PreconditionFailed("too large", 406)),
]


@pytest.mark.parametrize(
    ("origin", "outcome"),
    [
        (Origin.RETRY, FAILURES[0]),
        (Origin.TURN, FAILURES[1]),
        (Origin.REPLAY, FAILURES[0]),
        (Origin.RECONCILE, FAILURES[1]),
    ],
    ids=str,
)
def test_a_message_whose_next_attempt_cannot_be_sent_is_dead_with_that_reason(origin: str, outcome: Outcome) -> None:
    waiting = retrying(reason="an earlier failure")
    leases.write([Mark(carrier(origin), outcome, ())])
    waiting.refresh_from_db()
    assert (waiting.state, waiting.reason) == ("dead", f"its attempt 2 cannot be sent: {outcome.reason}")
    assert waiting.failure_group
    assert waiting.body == b"{}"
    assert OutboxMessage.objects.get().state == "failed"


@pytest.mark.parametrize(
    "outcome",
    [Outcome(Status.RETURNED, "no queue"), Outcome(Status.NACKED, "full"), Outcome(Status.UNKNOWN, "no confirm")],
    ids=str,
)
def test_a_message_whose_next_attempt_is_not_sent_yet_waits_for_it(outcome: Outcome) -> None:
    waiting = retrying()
    leases.write([Mark(carrier(Origin.RETRY), outcome, ())])
    waiting.refresh_from_db()
    assert waiting.state == "retrying"


def test_a_lost_message_that_cannot_be_sent_again_is_dead() -> None:
    leases.write([Mark(carrier(Origin.RECONCILE, attempt=1, headers={"a": 1}), FAILURES[0], ())])
    row = InboxMessage.objects.get()
    assert (row.state, row.attempt, row.body, row.headers) == ("dead", 1, b"{}", {"a": 1})


@pytest.mark.parametrize(
    ("change", "token"), [({"attempt": 3}, None), ({"state": "handled"}, None), ({}, UUID(int=1))], ids=str
)
def test_an_attempt_that_cannot_be_sent_kills_no_message_that_has_moved_on_and_none_without_its_lease(
    change: dict[str, Any], token: UUID | None
) -> None:
    there, row = retrying(), carrier(Origin.RECONCILE)
    row.lease_token = token
    InboxMessage.objects.update(**change)
    leases.write([Mark(row, FAILURES[0], ())])
    there.refresh_from_db()
    assert there.state != "dead"


@pytest.mark.parametrize("pass_on", ["retry", "replay"])
def test_a_message_with_headers_that_just_fit_gets_its_next_attempt(pass_on: str) -> None:
    def fails(event: Event, delivery: Delivery) -> None:
        raise ZeroDivisionError

    with registered(_consumer(fails)):
        message = Message(
            body=Noted(text="x").encode(), id="m" * 200, type="test.noted", app_id="elsewhere",
            correlation_id="c" * 255, headers=LARGE["one long text"],
        )  # fmt: skip
        delivery = Delivery(consumer="fails", queue="tests.fails", message=message, message_id="m" * 255)
        handling.handle(consumers.get("fails"), delivery)
    if pass_on == "replay":
        OutboxMessage.objects.all().delete()
        with transaction.atomic():
            outbox.resend(InboxMessage.objects.get(), consumer="fails", queue="tests.fails", origin=Origin.REPLAY)
    row = OutboxMessage.objects.get()
    assert is_sendable(destinations.publishing_of(row).message)
    assert "headers-left-out" in row.headers
    assert inbox.InboxMessage.objects.get().headers["trace"] == "s" * 130_500, "kept whole as it came"


def _consumer(handler: Callable[..., None]) -> consumers.Consumer:
    return consumers.Consumer(name="fails", queue="tests.fails", events=(Noted,), handler=handler)


def test_a_retry_that_could_not_be_sent_is_replayed_and_not_published_by_hand() -> None:
    there, row = retrying(), carrier(Origin.RETRY, state="failed")
    assert list(publish_now.rows(OutboxMessage, Selection())) == [row]
    there.state = "dead"
    there.save()
    assert not publish_now.rows(OutboxMessage, Selection()).exists()

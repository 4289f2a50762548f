"""Whatever a request holds, it gets an answer; and nothing is ever written to a queue of ours."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import Annotated, Any

import pytest
from pydantic import AfterValidator, BaseModel, Field, SecretStr
from pydantic_core import from_json

from messaging import procedures
from messaging.broker.arrival import Arrival
from messaging.broker.request_queue import RETURNS_HEADER, Request
from messaging.message import Message
from messaging.rpc import RemoteError, procedure
from messaging.rpc.answering import Answer, answer, seconds_late, why_unanswerable
from messaging.topology import asyncapi


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


def ask(function: Callable[..., Any], body: bytes, **properties: Any) -> Answer:
    procedure("asked", queue="asked")(function)
    return answer(procedures.get("asked"), Message(body=body, **properties))


def error_of(found: Answer) -> tuple[str, str]:
    with pytest.raises(RemoteError) as caught:
        procedures.result_of(Message(body=found.body, headers={procedures.STATUS_HEADER: procedures.ERROR}))
    assert caught.value.type == found.error
    return caught.value.type, caught.value.message


def double(number: int) -> int:
    return 2 * number


@pytest.fixture(autouse=True)
def _only_what_the_test_declares(isolated: Any) -> None:
    isolated(procedures)


class Quote(BaseModel):
    price: float = 1
    token: SecretStr = SecretStr("hush")


class Parcel(BaseModel):
    fragile: bool = Field(default=False, exclude=True)


async def asynchronous() -> int:
    return 1


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (float("nan"), "NaN"), ([Decimal(1), float("inf")], "NaN"), (Quote(price=float("nan")), "NaN"),
        (Quote(), "secret"),
        ([Parcel(fragile=True)], "field fragile in it has exclude=True"),
        ({"a": [SecretStr("hush")]}, "secret"), (b"\xff", "utf-8"), ("\ud800", "surrogates"), (object(), "object"),
    ],
)  # fmt: skip
def test_a_result_that_json_would_change_is_a_bad_result(result: Any, said: str) -> None:
    found = error_of(ask(lambda: result, b"{}"))

    assert found[0] == "BadResult"
    assert said in found[1]
    with pytest.raises(ValueError, match=said):
        procedures.encode({"argument": result})


def test_a_coroutine_is_a_bad_result_and_is_closed() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        kind, said = error_of(ask(lambda: asynchronous(), b"{}"))

    assert kind == "BadResult"
    assert "not awaited" in said


class Area:
    def __call__(self, width: int, height: int = 2) -> int:
        return width * height


@dataclass(slots=True)
class Slotted:
    found: int | None


def numbers(up_to: int) -> Iterator[int]:
    yield from range(up_to)


def echo(order: Annotated[str, Field(alias="orderNumber")]) -> str:
    return order


@pytest.mark.parametrize(
    ("function", "body", "result"),
    [
        (lambda: {"amount": Decimal("8.50"), "nothing": None}, b"{}", b'{"amount":"8.50","nothing":null}'),
        (lambda: [Slotted(None)], b"{}", b'[{"found":null}]'),
        (numbers, b"3", b"[0,1,2]"),
        (double, b" 30 ", b"60"),
        (Area(), b'"3"', b"6"),
        (partial(double), b'"3"', b"6"),
        (partial(Area(), height=2), b'"3"', b"6"),
        (echo, b'{"orderNumber": "W"}', b'"W"'),
        (echo, b'{"order": "W"}', b'"W"'),
    ],
)
def test_a_result_is_json_and_any_callable_a_procedure(
    function: Callable[..., Any], body: bytes, result: bytes
) -> None:
    assert ask(function, body).body == result
    assert asyncapi.document(title="t", version="1")["operations"]["answer.asked"]


@pytest.mark.parametrize(
    "body", [b"", b"abc", b"\xff\xfe", b"[" * 100_000, b'{"number": NaN}', b"[-1e999]", b"{", b"\x00"]
)
def test_a_body_that_is_not_json_is_a_bad_request(body: bytes) -> None:
    assert error_of(ask(double, body))[0] == "BadRequest"


def test_a_compressed_request_is_a_bad_request() -> None:
    assert error_of(ask(double, b"1", content_encoding="gzip"))[0] == "BadRequest"


def test_a_procedure_that_never_ends_times_out_even_in_its_result() -> None:
    def endless() -> Iterator[int]:
        while True:
            time.sleep(0.01)
            yield 1

    procedure("asked", timeout=timedelta(seconds=0.2))(endless)
    assert error_of(answer(procedures.get("asked"), Message(body=b"{}")))[0] == "HandlerTimeout"


def test_bad_arguments_are_named_and_their_values_kept_private() -> None:
    assert error_of(ask(double, b'{"number": "13800138000x"}')) == (
        "BadArguments",
        "number: Input should be a valid integer, unable to parse string as an integer",
    )


def pack(parcels: list[int]) -> int:
    return len(parcels)


@pytest.mark.parametrize(
    ("function", "body", "said"),
    [
        (double, b'"many"', "number: Input should be a valid integer"),
        (pack, b'[1, "two"]', "parcels.1: Input should be a valid integer"),
        (lambda: 1, b"30", "arguments: Unexpected positional argument"),
    ],
)
def test_a_bare_value_that_does_not_fit_is_named_by_its_parameter(
    function: Callable[..., Any], body: bytes, said: str
) -> None:
    assert error_of(ask(function, body))[1].startswith(said)


def test_an_oversized_request_or_result_is_an_error(settings: Any) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "MAX_BODY_BYTES": 1024}

    def repeat(text: str) -> str:
        return 1000 * text

    assert error_of(ask(repeat, b'"xy"'))[0] == "TooLarge"
    assert error_of(ask(repeat, b" " * 1024 + b'"x"'))[0] == "TooLarge"


def test_an_unreadable_count_of_returns_is_zero() -> None:
    returns = {2: 2, 0: 0, -5: 0, 2**62: 2**62}
    assert {each: arrived(0, headers={RETURNS_HEADER: each}).returns for each in returns} == returns
    assert [arrived(0, headers={RETURNS_HEADER: each}).returns for each in ("2", None, 1.5, [3])] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (ValueError("no such country"), "no such country"),
        (SystemExit(3), "3"),
        (KeyError(), "KeyError()"),
        (Unspeakable(), "Unspeakable()"),
        (RuntimeError("\ud800"), "?"),
        (ValueError("x" * 5_000_000), "x" * procedures.MAX_ERROR_TEXT),
    ],
)
def test_an_exception_of_a_procedure_is_its_answer(raised: BaseException, message: str) -> None:
    def fail() -> None:
        raise raised

    assert error_of(ask(fail, b"{}")) == (type(raised).__name__, message)


def test_a_reply_is_an_error_by_its_header_alone() -> None:
    body = procedures.encode_error("ValueError", "not at all")
    ok = {procedures.STATUS_HEADER: procedures.OK}

    assert procedures.result_of(Message(body=body, headers=ok)) == from_json(body)
    assert procedures.result_of(Message(body=b"832040")) == 832040


def test_nothing_is_sent_to_a_queue_of_ours() -> None:
    procedure("asked", queue="asked")(double)

    ours = ("orders.sms", "warren.dead_letters", "warren.celery", "rpc.shipping.quote", "rpc.of.another.server")
    for reply_to in ("", "asked", *ours):
        assert why_unanswerable(reply_to)


def test_a_queue_of_replies_is_sent_to() -> None:
    for reply_to in ("rpc.reply.1", "amq.gen-xyz", "amq.rabbitmq.reply-to.g1", "my-answers"):
        assert why_unanswerable(reply_to) == ""


def arrived(seconds_ago: float, **properties: Any) -> Request:
    message = Message(body=b"", **properties)
    arrival = Arrival(
        queue="asked", message=message, tag=1, channel=1, redelivered=False, exchange="", routing_key="asked"
    )
    return Request(arrival, None, time.monotonic() - seconds_ago)


def test_a_request_past_its_deadline_is_late() -> None:
    for said in (int, str, float):  # as clients write a number
        past, future = said(procedures.now_ms() - 1000), said(procedures.now_ms() + 60_000)
        assert seconds_late(arrived(0, headers={procedures.DEADLINE_HEADER: past}))
        assert not seconds_late(arrived(0, headers={procedures.DEADLINE_HEADER: future}))
    # Without our header the expiration counts, from the arrival on; without either no request is late.
    assert seconds_late(arrived(2, expiration="1000"))
    assert not seconds_late(arrived(0, expiration="60000"))
    for deadline in ({}, {procedures.DEADLINE_HEADER: "soon"}, {procedures.DEADLINE_HEADER: True}):
        assert seconds_late(arrived(3600, headers=deadline)) is None


def test_arguments_whose_check_would_end_the_servers_thread_are_an_error() -> None:
    def leave(number: int) -> int:
        raise SystemExit(number)

    def quoted(number: Annotated[int, AfterValidator(leave)]) -> int:
        return number

    quoted.__annotations__["number"] = Annotated[int, AfterValidator(leave)]
    assert error_of(ask(quoted, b"1")) == ("SystemExit", "1")

"""The meaning of a gateway's answers, and of missing ones. Real sockets, no database."""

import gzip
import socket
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from messaging.exceptions import NotDone, Reject, RetryLater
from orders.sms_gateway import MaybeSent, SmsGateway
from script.services.sms_gateway import SmsGateway as Stub
from script.services.sms_gateway_ledger import Fault
from tests.orders.any_answer import PHONE, TEXT, answering, http, read_request, result_of

#: The error of a send, by the gateway's fault.
MEANINGS: dict[Fault, type[Exception]] = dict.fromkeys(Fault, MaybeSent) | {
    Fault.TOO_MANY: RetryLater,
    Fault.BAD_REQUEST: Reject,
    Fault.REFUSED: Reject,
    Fault.UNAUTHORISED: NotDone,
}
#: Faults of gateways that send the text all the same.
SENDS = {Fault.ANSWER_LATE, Fault.SEND_AND_FAIL, Fault.CUT_AFTER, Fault.GARBAGE, Fault.HALF_AN_ANSWER, Fault.SLOW_BODY}


# --- A good gateway ----------------------------------------------------------------------------------------


def test_a_text_arrives_with_its_key_and_the_gateways_id_comes_back(gateway: SmsGateway, stub: Stub) -> None:
    reference = gateway.send(PHONE, TEXT, key="0190-a:sms:text_message", timeout=5)

    (sent,) = stub.ledger.texts("0190-a:sms:text_message")
    assert (sent.id, sent.recipient, sent.text) == (reference, PHONE, TEXT)


def test_a_key_of_any_characters_can_be_sent_and_asked_for(gateway: SmsGateway) -> None:
    key = "a b\r\nX-Evil: 1\x00 é &key=other/宝:sms"

    assert gateway.ask(key, timeout=5) is None
    reference = gateway.send(PHONE, TEXT, key=key, timeout=5)
    assert gateway.ask(key, timeout=5) == reference


def test_the_header_of_the_key_can_be_named() -> None:
    seen: list[bytes] = []

    def remember(line: socket.socket) -> None:
        seen.append(read_request(line))
        line.sendall(http(201, {"id": 7}))

    with answering(remember) as url:
        named = SmsGateway(url=f"{url}?from=shop", token="t", key_header="X-Key")
        assert named.send(PHONE, TEXT, key="k", timeout=5) == "7"
    assert b"X-Key: k\r\n" in seen[0]
    assert seen[0].startswith(b"POST /messages?from=shop HTTP/1.1\r\n")


# --- Each misbehaviour -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", MEANINGS)
def test_a_text_that_surely_was_not_sent_differs_from_one_in_doubt(
    gateway: SmsGateway, stub: Stub, fault: Fault
) -> None:
    expected = MEANINGS[fault]
    stub.misbehave(fault, seconds=3)

    with pytest.raises(expected) as raised:
        gateway.send(PHONE, TEXT, key=f"fault-{fault}", timeout=1)

    assert raised.type is expected  # not merely a kind of it
    assert len(stub.ledger.texts(f"fault-{fault}")) == (fault in SENDS)
    # A redirect is not followed, and nothing is repeated.
    assert [each.path for each in stub.ledger.requests() if each.key == f"fault-{fault}"] == ["/messages"]


def test_a_good_answer_that_is_merely_late_is_one(gateway: SmsGateway, stub: Stub) -> None:
    stub.misbehave(Fault.SLOW_BODY, seconds=0.3)

    assert gateway.send(PHONE, TEXT, key="dripping", timeout=10)


@pytest.mark.parametrize("drop", [b"HTTP/1.1 200 OK\r\nX-Slow: ", b"HTTP/1.1 ", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_an_answer_that_drips_in_for_ever_takes_no_longer_than_the_timeout(drop: bytes) -> None:
    """Each byte in time, the whole never: also of the head, and of answers that announce another."""
    over = threading.Event()

    def drip(line: socket.socket) -> None:
        read_request(line)
        line.sendall(drop)
        while not over.wait(0.05):
            line.sendall(drop if b"100" in drop else b"x")

    told: list[BaseException] = []

    def send(url: str) -> None:
        try:
            SmsGateway(url=url, token="t").send(PHONE, TEXT, key="k", timeout=0.5)
        except BaseException as error:
            told.append(error)

    with answering(drip) as url:
        sending = threading.Thread(target=send, args=[url], daemon=True)
        sending.start()
        sending.join(10)
        in_time = list(told)
        over.set()
    assert [type(error) for error in in_time] == [MaybeSent]


# --- Each answer -------------------------------------------------------------------------------------------

INTERIM = b"HTTP/1.1 %d Interim\r\nLink: </a.css>; rel=preload\r\nContent-Length: 3\r\n\r\n"
#: What no text is given up for, and what leaves no doubt.
REFUSALS = (400, 406, 409, 411, 413, 414, 415, 418, 422, 431, 451)
CURABLE = (301, 307, 308, 401, 402, 403, 404, 405, 407, 408, 410, 421, 423, 425, 426, 429)
DOUBTFUL = (302, 303, 304, 500, 501, 502, 503, 504, 599)
#: Answers that tell of no result, whole or cut.
NO_RESULT = [
    *(
        http(200, body)
        for body in (b"", b"OK", b"[]", b'{"id": ""}', b'{"id": null}', b'{"id": true}', b'{"error": "no credit"}',
                     b'{"id": {}}', b"\xff\xfe", b"[" * 60_000, b'{"id": "x", "more": "' + b"y" * 70_000 + b'"}')
    ),
    INTERIM % 103,
    (INTERIM % 103)[:30],
    INTERIM % 101 + http(201, {"id": "x"}),
    http(202),
    http(300, {"id": "x"}),
    b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{"id": 1}',
    b'HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{"id": "x"',
    b"",
    b"\x00\xff" * 50,
    b"HTTP/1.1 abc\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.2\r\n",
]  # fmt: skip


@pytest.mark.parametrize(("statuses", "meaning"), [(REFUSALS, Reject), (CURABLE, NotDone), (DOUBTFUL, MaybeSent)])
def test_a_status_gives_up_the_text_or_retries_it_or_leaves_a_doubt(
    statuses: tuple[int, ...], meaning: type[Exception]
) -> None:
    for status in statuses:
        answer = http(status, {"error": TEXT}, Location="http://127.0.0.1:1/")
        assert type(result_of(answer, honours_keys=False)) is meaning, status


def test_a_conflict_leaves_a_doubt_if_keys_are_honoured() -> None:
    # The first request with this key is still under way.
    assert type(result_of(http(409), honours_keys=True)) is MaybeSent


@pytest.mark.parametrize("answer", NO_RESULT, ids=range(len(NO_RESULT)))
def test_an_answer_without_a_result_is_doubtful(answer: bytes) -> None:
    assert type(result_of(answer)) is MaybeSent


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7), ("0", 1), ("86400", 3600), ("9" * 30, 3600), ("Thu, 01 Jan 1970 00:00:00 GMT", 1)],
)
def test_the_rest_that_a_gateway_asks_for_is_kept_within_reason(status: int, header: str, seconds: float) -> None:
    error = result_of(http(status, Retry_After=header))

    assert type(error) is RetryLater
    assert error.after == timedelta(seconds=seconds)


def test_the_rest_may_be_given_as_a_date() -> None:
    error = result_of(http(429, Retry_After=format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)))

    assert timedelta(seconds=60) < error.after <= timedelta(seconds=90)


@pytest.mark.parametrize("header", ["", "soon", "-5", "1.5", "Thu, 99 Jan 1970"])
def test_a_rest_that_makes_no_sense_is_none(header: str) -> None:
    assert type(result_of(http(429, Retry_After=header))) is NotDone
    assert type(result_of(http(503, Retry_After=header))) is MaybeSent


@pytest.mark.parametrize("statuses", [[100], [103, 100, 103], [199] * 20])
def test_interim_answers_are_skipped(statuses: list[int]) -> None:
    interim = b"".join(INTERIM % status for status in statuses)
    assert result_of(interim + http(201, {"id": "x"})) == "x"
    assert isinstance(result_of(interim + http(400)), Reject)
    assert isinstance(result_of(interim + http(429, Retry_After="7")), RetryLater)


def test_a_compressed_answer_is_understood_though_none_is_asked_for() -> None:
    asked: list[bytes] = []

    def compress(line: socket.socket) -> None:
        asked.append(read_request(line))
        line.sendall(http(201, gzip.compress(b'{"id": "x"}'), Content_Encoding="gzip"))

    assert result_of(compress) == "x"
    assert b"\r\nAccept-Encoding: identity\r\n" in asked[0]


# --- To be asked -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [Fault.SERVER_ERROR, Fault.UNAUTHORISED, Fault.CUT_BEFORE, Fault.NEVER_ANSWER])
def test_a_question_without_an_answer_leaves_the_doubt(gateway: SmsGateway, stub: Stub, fault: Fault) -> None:
    stub.misbehave(fault, method="GET", seconds=3)

    with pytest.raises(MaybeSent):
        gateway.ask("key", timeout=0.5)


def test_a_page_not_found_is_no_answer(gateway: SmsGateway) -> None:
    with answering(http(404, b"<h1>Not Found</h1>")) as url, pytest.raises(MaybeSent):
        replace(gateway, ask_url=f"{url}/{{key}}").ask("key", timeout=5)


# --- Secrets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        http(400, {"error": f"cannot send {TEXT!r} to {PHONE} with t0ken"}),
        http(500, TEXT.encode()),
        f"HTTP/1.1 {PHONE} {TEXT}\r\n\r\n".encode(),
        f"{PHONE} {TEXT} t0ken\r\n".encode(),
        http(200, {"sent": TEXT, "to": PHONE}),
    ],
    ids=["refused", "broken", "status", "no http", "no id"],
)
def test_no_reason_repeats_the_token_the_number_or_the_text(answer: bytes) -> None:
    error = result_of(answer)

    assert isinstance(error, Exception)
    for secret in ("t0ken", PHONE, "13800138000", "W-234567"):
        assert secret not in str(error)


@pytest.mark.parametrize(
    ("change", "which"),
    [
        ({"url": "sms.example/messages"}, "URL"),
        ({"url": "ftp://sms.example/"}, "URL"),
        ({"url": "https://sms.example:port/"}, "URL"),
        ({"url": "https://ann:secret@sms.example/"}, "URL"),
        ({"url": "https://sms.example/a b"}, "URL"),
        ({"token": ""}, "TOKEN"),
        ({"token": "secret\r\nX-Evil: 1"}, "TOKEN"),
        ({"token": "sécret"}, "TOKEN"),
        ({"key_header": "Idempotency Key"}, "KEY_HEADER"),
        ({"key_header": "authorization"}, "KEY_HEADER"),
        ({"ask_url": "https://sms.example/messages"}, "ASK_URL"),
        ({"ask_url": "/messages/{key}"}, "ASK_URL"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named_and_nothing_is_sent(
    gateway: SmsGateway, change: dict[str, str], which: str
) -> None:
    wrong = replace(gateway, **change)

    with pytest.raises(NotDone, match=f"^SMS_GATEWAY_{which} ") as raised:
        wrong.send(PHONE, TEXT, key="k", timeout=5)

    assert "ecret" not in str(raised.value)

"""The SMS gateway of the tests: what it sends, what it answers, and that each misbehaviour is what its name says."""

import http.client
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from script.services.owned import owned_pids
from script.services.sms_gateway import SmsGateway
from script.services.sms_gateway_ledger import PASSING, Fault, SmsLedger
from tests.support.waiting import eventually

PHONE = "+8613800138000"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmsGateway]:
    with SmsGateway(tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway


@pytest.fixture
def gateway(running: SmsGateway) -> SmsGateway:
    """One that honours keys, well-behaved."""
    running.behave()
    return running


@pytest.fixture(scope="module")
def careless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmsGateway]:
    """One that ignores keys and cannot be asked."""
    with SmsGateway(tmp_path_factory.mktemp("careless"), honours_keys=False, can_be_asked=False) as gateway:
        yield gateway


def send(gateway: SmsGateway, key: str, text: str = "hello", *, timeout: float = 10, **changes: Any) -> tuple[int, Any]:
    """Post one text and return status and decoded body."""
    body = changes.pop("body", json.dumps({"to": changes.pop("to", PHONE), "text": text}))
    headers = {"Authorization": f"Bearer {gateway.token}", "Idempotency-Key": key, **changes.pop("headers", {})}
    answer = ask(gateway, "POST", changes.pop("path", "/messages"), body, headers, timeout=timeout)
    content = answer.read()
    return answer.status, json.loads(content)


def ask(
    gateway: SmsGateway,
    method: str,
    path: str,
    body: str | None = None,
    headers: dict[str, str] | None = None,
    *,
    timeout: float = 10,
) -> http.client.HTTPResponse:
    client = http.client.HTTPConnection("127.0.0.1", urlsplit(gateway.address).port, timeout=timeout)
    client.request(method, path, body, headers or {"Authorization": f"Bearer {gateway.token}"})
    return client.getresponse()


def sent(gateway: SmsGateway, key: str) -> int:
    return len(gateway.ledger.texts(key))


# --- Well-behaved ------------------------------------------------------------------------------------------


def test_a_text_is_in_the_ledger_with_key_recipient_and_time_before_its_answer(gateway: SmsGateway) -> None:
    status, answer = send(gateway, "first", "your order")

    (text,) = gateway.ledger.texts("first")
    assert (status, answer["id"]) == (201, text.id)
    assert (text.key, text.recipient, text.text) == ("first", PHONE, "your order")
    assert abs(text.at - time.time()) < 60
    request = gateway.ledger.requests()[text.request - 1]
    assert (request.method, request.path, request.key, request.fault, request.status) == (
        "POST", "/messages", "first", "", 201,
    )  # fmt: skip


def test_a_gateway_that_honours_keys_sends_one_text_per_key(gateway: SmsGateway) -> None:
    first = send(gateway, "again")
    second = send(gateway, "again")

    assert first[0] == 201
    assert second == (200, first[1])
    assert sent(gateway, "again") == 1


def test_a_key_used_for_another_text_is_refused(gateway: SmsGateway) -> None:
    send(gateway, "mixed", "one")

    assert send(gateway, "mixed", "other")[0] == 422
    assert send(gateway, "mixed", "one", to="+8613900139000")[0] == 422
    assert [text.text for text in gateway.ledger.texts("mixed")] == ["one"]


def test_a_gateway_that_ignores_keys_sends_each_request_that_it_accepts(careless: SmsGateway) -> None:
    statuses = [send(careless, "again")[0] for _ in range(3)]

    assert statuses == [201, 201, 201]
    assert sent(careless, "again") == 3


def test_it_says_whether_a_key_was_sent(gateway: SmsGateway) -> None:
    _, answer = send(gateway, "asked")

    found = ask(gateway, "GET", "/messages?key=asked")
    assert (found.status, json.loads(found.read())) == (200, answer)
    assert ask(gateway, "GET", f"/messages?key={quote('never seen')}").status == 404


def test_one_that_cannot_be_asked_does_not_pretend_that_nothing_was_sent(careless: SmsGateway) -> None:
    send(careless, "asked")

    assert ask(careless, "GET", "/messages?key=asked").status == 405


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"headers": {"Authorization": "Bearer wrong"}}, 401),
        ({"headers": {"Authorization": ""}}, 401),
        ({"body": "not JSON"}, 400),
        ({"body": "[]"}, 400),
        ({"body": "x" * 100_000}, 400),
        ({"to": "13800138000"}, 400),
        ({"text": ""}, 400),
        ({"path": "/elsewhere"}, 404),
    ],
)
def test_a_malformed_request_is_refused_and_sends_nothing(
    gateway: SmsGateway, changes: dict[str, Any], status: int
) -> None:
    assert send(gateway, "nonsense", **changes)[0] == status
    assert sent(gateway, "nonsense") == 0
    assert gateway.ledger.requests()[-1].status == status


def test_killed_and_started_again_it_knows_its_address_its_ledger_and_its_keys(tmp_path: Path) -> None:
    gateway = SmsGateway(tmp_path)
    with gateway:
        gateway.misbehave(Fault.REFUSED, times=None)
        address, token = gateway.url, gateway.token
        gateway.kill()
        assert gateway.pid is None
        gateway.start()
        assert (gateway.url, gateway.token) == (address, token)
        _, first = send(gateway, "before")
        gateway.kill()
        gateway.start()
        assert send(gateway, "before") == (200, first)
    assert owned_pids(tmp_path) == []
    assert [text.key for text in gateway.ledger.texts()] == ["before"]


def test_frozen_it_takes_connections_and_says_nothing_until_it_thaws(tmp_path: Path) -> None:
    with SmsGateway(tmp_path) as gateway:
        gateway.pause()
        with pytest.raises(TimeoutError):
            send(gateway, "frozen", timeout=0.3)
        gateway.resume()
        assert send(gateway, "thawed")[0] == 201


# --- Misbehaving -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (Fault.SERVER_ERROR, 500),
        (Fault.UNAVAILABLE, 503),
        (Fault.TOO_MANY, 429),
        (Fault.BAD_REQUEST, 400),
        (Fault.REFUSED, 422),
        (Fault.UNAUTHORISED, 401),
        (Fault.REDIRECT, 302),
    ],
)
def test_a_refusal_sends_nothing_and_the_next_request_is_served(gateway: SmsGateway, fault: Fault, status: int) -> None:
    gateway.misbehave(fault)

    assert send(gateway, fault)[0] == status
    assert sent(gateway, fault) == 0
    assert gateway.ledger.requests()[-1].fault == fault
    assert send(gateway, fault)[0] == 201


def test_too_many_has_a_retry_after_and_a_redirect_a_location(gateway: SmsGateway) -> None:
    gateway.misbehave(Fault.TOO_MANY, seconds=7)
    gateway.misbehave(Fault.REDIRECT)

    assert ask(gateway, "POST", "/messages", "{}").headers["Retry-After"] == "7"
    assert ask(gateway, "POST", "/messages", "{}").headers["Location"] == "/elsewhere"


@pytest.mark.parametrize(
    ("fault", "error", "texts"),
    [
        (Fault.CUT_BEFORE, ConnectionError, 0),
        (Fault.CUT_AFTER, ConnectionError, 1),
        (Fault.NEVER_ANSWER, TimeoutError, 0),
        (Fault.ANSWER_LATE, TimeoutError, 1),
        (Fault.HALF_AN_ANSWER, http.client.IncompleteRead, 1),
        (Fault.GARBAGE, ValueError, 1),
    ],
)
def test_a_fault_without_a_whole_answer_sends_or_does_not_send_as_it_says(
    gateway: SmsGateway, fault: Fault, error: type[Exception], texts: int
) -> None:
    gateway.misbehave(fault, seconds=60)

    with pytest.raises(error):
        send(gateway, fault, timeout=0.5)

    assert sent(gateway, fault) == texts
    assert gateway.ledger.requests()[-1].fault == fault


def test_a_patient_client_gets_the_late_answer(gateway: SmsGateway) -> None:
    gateway.misbehave(Fault.ANSWER_LATE, seconds=0.3)

    assert send(gateway, "patience")[0] == 201


def test_a_text_can_go_out_long_after_its_client_gave_up_and_was_told_that_it_had_not(gateway: SmsGateway) -> None:
    gateway.misbehave(Fault.SEND_LATE, seconds=1.5)

    with pytest.raises(TimeoutError):
        send(gateway, "afterwards", timeout=0.2)
    assert ask(gateway, "GET", "/messages?key=afterwards").status == 404
    eventually(lambda: sent(gateway, "afterwards") == 1)


def test_an_error_is_no_proof_that_nothing_was_sent(gateway: SmsGateway) -> None:
    gateway.misbehave(Fault.SEND_AND_FAIL)

    assert send(gateway, "failed")[0] == 500
    assert sent(gateway, "failed") == 1


def test_of_a_slow_body_no_single_byte_is_late(gateway: SmsGateway) -> None:
    gateway.misbehave(Fault.SLOW_BODY, seconds=2)
    began = time.monotonic()

    # A timeout for each byte, as sockets have it, never strikes.
    status, _ = send(gateway, "slow", timeout=1)

    assert status == 201
    assert time.monotonic() - began > 1.5


def test_a_question_can_go_wrong_as_well(gateway: SmsGateway) -> None:
    send(gateway, "question")
    gateway.misbehave(Fault.UNAVAILABLE, method="GET")

    assert ask(gateway, "GET", "/messages?key=question").status == 503
    assert ask(gateway, "GET", "/messages?key=question").status == 200


def test_misbehaviours_come_in_the_order_they_were_asked_for_until_behave(gateway: SmsGateway) -> None:
    gateway.misbehave(Fault.UNAVAILABLE, times=2)
    gateway.misbehave(Fault.REFUSED, times=None)

    assert [send(gateway, "order")[0] for _ in range(4)] == [503, 503, 422, 422]
    gateway.behave()
    assert send(gateway, "order")[0] == 201


def test_at_random_some_requests_fail_and_one_seed_means_one_sequence(tmp_path: Path) -> None:
    def sequence(seed: int) -> list[Fault | None]:
        ledger = SmsLedger(tmp_path / f"{len(list(tmp_path.iterdir()))}.sqlite3")
        ledger.create()
        ledger.misbehave(PASSING, method="POST", times=None, seconds=1, chance=0.4, seed=seed)
        return [ledger.note("POST", "/messages", key="")[1] for _ in range(60)]

    first = sequence(3)

    assert {None, *PASSING} >= set(first) > {None}
    assert sequence(3) == first
    assert sequence(4) != first


def test_a_connection_may_carry_many_requests(gateway: SmsGateway) -> None:
    client = http.client.HTTPConnection("127.0.0.1", urlsplit(gateway.address).port, timeout=10)
    headers = {"Authorization": f"Bearer {gateway.token}"}
    sockets: set[socket.socket | None] = set()
    for number in range(3):
        client.request("POST", "/messages", json.dumps({"to": PHONE, "text": f"{number}"}), headers)
        assert client.getresponse().read()
        sockets.add(client.sock)

    assert len(sockets) == 1

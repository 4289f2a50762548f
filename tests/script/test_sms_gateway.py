"""The SMS gateway of the tests: what it sends and answers. tests/orders/test_sms_gateway.py meets each misbehaviour."""

import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

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


def send(gateway: SmsGateway, key: str, text: str = "hello", *, timeout: float = 10, **changes: Any) -> tuple[int, Any]:
    """Post one text and return status and decoded body."""
    body = changes.pop("body", json.dumps({"to": changes.pop("to", PHONE), "text": text}))
    headers = {"Authorization": f"Bearer {gateway.token}", "Idempotency-Key": key, **changes.pop("headers", {})}
    answer = ask(gateway, "POST", changes.pop("path", "/messages"), body, headers, timeout=timeout)
    return answer.status, json.loads(answer.read())


def ask(
    gateway: SmsGateway, method: str, path: str, body: Any = None, headers: Any = None, *, timeout: float = 10
) -> Any:
    client = http.client.HTTPConnection("127.0.0.1", urlsplit(gateway.address).port, timeout=timeout)
    client.request(method, path, body, headers or {"Authorization": f"Bearer {gateway.token}"})
    return client.getresponse()


def sent(gateway: SmsGateway, key: str) -> int:
    return len(gateway.ledger.texts(key))


# --- Well-behaved ------------------------------------------------------------------------------------------


def test_a_text_is_in_the_ledger_before_its_answer_and_goes_out_once_per_key(gateway: SmsGateway) -> None:
    status, answer = send(gateway, "first", "your order")

    (text,) = gateway.ledger.texts("first")
    assert (status, answer["id"]) == (201, text.id)
    assert (text.key, text.recipient, text.text) == ("first", PHONE, "your order")
    assert abs(text.at - time.time()) < 60
    request = gateway.ledger.requests()[text.request - 1]
    assert (request.method, request.path, request.key, request.fault) == ("POST", "/messages", "first", "")
    assert request.status == 201

    assert send(gateway, "first", "your order") == (200, answer)
    assert send(gateway, "first", "another text")[0] == 422
    assert send(gateway, "first", "your order", to="+8613900139000")[0] == 422
    assert gateway.ledger.texts("first") == [text]
    assert ask(gateway, "GET", "/messages?key=first").status == 200
    assert ask(gateway, "GET", "/messages?key=never+seen").status == 404


def test_a_gateway_that_ignores_keys_and_cannot_be_asked_sends_each_request(tmp_path: Path) -> None:
    with SmsGateway(tmp_path, honours_keys=False, can_be_asked=False) as careless:
        assert [send(careless, "again")[0] for _ in range(3)] == [201, 201, 201]
        assert sent(careless, "again") == 3
        assert ask(careless, "GET", "/messages?key=again").status == 405


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"headers": {"Authorization": "Bearer wrong"}}, 401),
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
        gateway.start()
        assert (gateway.url, gateway.token) == (address, token)
        assert send(gateway, "before")[0] == 201
        gateway.kill()
        gateway.start()
        assert send(gateway, "before")[0] == 200
    assert owned_pids(tmp_path) == []


# --- Misbehaving -------------------------------------------------------------------------------------------


def test_a_text_can_go_out_after_its_client_was_told_that_it_had_not(gateway: SmsGateway) -> None:
    gateway.misbehave(Fault.SEND_LATE, seconds=2)

    with pytest.raises(TimeoutError):
        send(gateway, "afterwards", timeout=0.1)
    assert ask(gateway, "GET", "/messages?key=afterwards").status == 404
    eventually(lambda: sent(gateway, "afterwards") == 1)


def test_misbehaviours_come_by_method_in_the_order_they_were_asked_for_until_behave(gateway: SmsGateway) -> None:
    gateway.misbehave(Fault.UNAVAILABLE, times=2)
    gateway.misbehave(Fault.REFUSED, times=None)
    gateway.misbehave(Fault.SERVER_ERROR, method="GET")

    assert [send(gateway, "order")[0] for _ in range(4)] == [503, 503, 422, 422]
    assert [ask(gateway, "GET", "/messages?key=order").status for _ in range(2)] == [500, 404]
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

"""Before the first byte of a request has left, nothing was sent; after it, the outcome may be in doubt."""

import socket
import ssl
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from messaging.exceptions import NotDone
from orders.sms_gateway import MaybeSent, SmsGateway
from script.services.ports import free_port
from script.services.sms_gateway import SmsGateway as Stub
from tests.orders.any_answer import PHONE, TEXT, answering


def not_done(url: str, timeout: float = 5) -> str:
    with pytest.raises(NotDone) as raised:
        SmsGateway(url=url, token="t").send(PHONE, TEXT, key="k", timeout=timeout)
    return str(raised.value)


def test_a_gateway_that_cannot_be_reached_was_sent_nothing(stub: Stub) -> None:
    requests = len(stub.ledger.requests())

    assert "Connection refused" in not_done(f"http://127.0.0.1:{free_port()}/")
    assert "cannot be resolved" in not_done("http://no-such-host.invalid/")
    assert "cannot be reached" in not_done(stub.url.replace("http:", "https:"))
    assert len(stub.ledger.requests()) == requests


def test_an_untrusted_certificate_gets_nothing(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
         "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    got: list[bytes] = []

    def serve(line: socket.socket) -> None:
        with suppress(ssl.SSLError), context.wrap_socket(line, server_side=True) as secured:
            got.append(secured.recv(1000))

    with answering(serve) as url:
        assert "certificate is not trusted" in not_done(url.replace("http:", "https:"))
    assert got == []


def test_a_gateway_that_accepts_no_connection_was_sent_nothing_within_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        port = listener.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:  # the queue of connections that nobody accepts is full
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", port))
        assert "took too long" in not_done(f"http://127.0.0.1:{port}/", timeout=1)
        for each in waiting:
            each.close()


def test_a_name_server_that_never_answers_was_sent_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait(20) or [])

    assert "took too long" in not_done("http://sms.example/", timeout=0.4)
    released.set()


def test_nothing_is_begun_once_the_time_is_over(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was frozen while it connected: another one may have taken its text over."""
    requests = len(stub.ledger.requests())
    now, connect = time.monotonic, socket.create_connection

    def connect_late(*arguments: Any, **options: Any) -> socket.socket:
        connection = connect(*arguments, **options)
        monkeypatch.setattr(time, "monotonic", lambda: now() + 100)
        return connection

    monkeypatch.setattr(socket, "create_connection", connect_late)
    with pytest.raises(NotDone, match="took too long"):
        SmsGateway(url=stub.url, token=stub.token).send(PHONE, TEXT, key="frozen", timeout=5)
    assert len(stub.ledger.requests()) == requests


def test_a_frozen_gateway_leaves_a_doubt(gateway: SmsGateway, stub: Stub) -> None:
    stub.pause()
    try:
        with pytest.raises(MaybeSent, match="took too long"):
            gateway.send(PHONE, TEXT, key="frozen-gateway", timeout=0.5)
    finally:
        stub.resume()

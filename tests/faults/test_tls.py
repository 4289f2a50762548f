"""F32: a broker that cannot prove its identity gets neither a password nor a message, and the reason is named."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import kombu
import pytest

from messaging import conf
from messaging.broker.connection import Connection
from project.celery_tls import celery_tls
from script.services.rabbitmq import RabbitMQNode
from tests.support.certificates import Certificates
from tests.support.processes import ProcessStarter
from tests.support.waiting import eventually

EXPIRED = "TLS: the broker's certificate has expired"
ANOTHER_HOST = "TLS: the broker's certificate is another host's"
UNTRUSTED = "TLS: the broker's certificate is signed by no CA that is trusted here"
NO_CLIENT_CERTIFICATE = "TLS: the broker refused our certificate, or wants one"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def node(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQNode]:
    with RabbitMQNode(tmp_path_factory.mktemp("rabbitmq"), throwaway=True, tls=certificates.broker) as node:
        yield node


@pytest.fixture
def good(
    certificates: Certificates, node: RabbitMQNode, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """Settings with which everything works; a test spoils one thing."""
    present_to(node, certificates, "localhost", "127.0.0.1")
    monkeypatch.setattr(conf, "RECONNECT_MAX", 0.3)
    monkeypatch.setattr(conf, "RECONNECT_REFUSED", 0.3)
    settings.MESSAGING = {
        **settings.MESSAGING,
        **certificates.settings,
        "AMQP_URLS": [node.tls_url()],
        "CONNECT_TIMEOUT": 3.0,
    }
    return settings.MESSAGING


def present_to(node: RabbitMQNode, certificates: Certificates, *names: str, expired: bool = False) -> None:
    if certificates.issued_for != (names, expired):
        certificates.issue(*names, expired=expired)
        node.read_certificates_again()


def wrong_ca(good: dict[str, Any], node: RabbitMQNode, certificates: Certificates) -> None:
    good["TLS_CA_FILE"] = str(certificates.other_ca)


def only_the_cas_of_this_machine(good: dict[str, Any], node: RabbitMQNode, certificates: Certificates) -> None:
    good["TLS_CA_FILE"] = ""


def expired(good: dict[str, Any], node: RabbitMQNode, certificates: Certificates) -> None:
    present_to(node, certificates, "localhost", "127.0.0.1", expired=True)


def wrong_host(good: dict[str, Any], node: RabbitMQNode, certificates: Certificates) -> None:
    present_to(node, certificates, "broker.example")


def wrong_address(good: dict[str, Any], node: RabbitMQNode, certificates: Certificates) -> None:
    present_to(node, certificates, "localhost")
    good["AMQP_URLS"] = [node.tls_url(host="127.0.0.1")]


def no_client_certificate(good: dict[str, Any], node: RabbitMQNode, certificates: Certificates) -> None:
    good["TLS_CERT_FILE"] = ""


Spoil = Callable[[dict[str, Any], RabbitMQNode, Certificates], None]
FAULTS = [
    (wrong_ca, UNTRUSTED),
    (only_the_cas_of_this_machine, UNTRUSTED),
    (expired, EXPIRED),
    (wrong_host, ANOTHER_HOST),
    (wrong_address, ANOTHER_HOST),
    (no_client_certificate, NO_CLIENT_CERTIFICATE),
]


@contextmanager
def connecting() -> Iterator[Connection]:
    connection = Connection("test").start()
    try:
        yield connection
    finally:
        connection.stop()


def celery_connects(good: dict[str, Any]) -> bool:
    files = [good.get(name, "") for name in ("TLS_CA_FILE", "TLS_CERT_FILE", "TLS_KEY_FILE")]
    urls = good["AMQP_URLS"]
    with kombu.Connection(urls, ssl=celery_tls(urls, *files), connect_timeout=3) as connection:
        return bool(connection.ensure_connection(max_retries=2, interval_start=0, interval_step=0).connected)


def test_a_broker_that_proves_its_identity_is_used(good: dict[str, Any], node: RabbitMQNode) -> None:
    with connecting() as connection:
        assert connection.wait_until_open(10), connection.last_error
        assert node.ctl("list_connections", "--no-table-headers", "ssl").split() == ["true"]
    assert celery_connects(good)
    # Each broker is held to its own name.
    good["AMQP_URLS"] = [node.tls_url(host="127.0.0.2"), node.tls_url(host="127.0.0.1")]
    assert celery_connects(good)


@pytest.mark.parametrize(("spoil", "name"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broker_that_does_not_is_refused_by_name(
    good: dict[str, Any], node: RabbitMQNode, certificates: Certificates, spoil: Spoil, name: str
) -> None:
    spoil(good, node, certificates)
    with connecting() as connection:
        eventually(lambda: connection.refused, report=lambda: connection.last_error)
        assert connection.last_error.startswith(name)
        assert connection.generation == 0
    # Without a client certificate the broker may hang up before its reason is read.
    with pytest.raises((ssl.SSLError, kombu.exceptions.OperationalError), match=r"(?i)certificate|EOF|reset"):
        celery_connects(good)


def test_a_command_ends_with_one_line_that_names_it(
    good: dict[str, Any], node: RabbitMQNode, certificates: Certificates, run_process: ProcessStarter
) -> None:
    expired(good, node, certificates)
    files = {f"AMQP_{key}": good[key] for key in ("TLS_CA_FILE", "TLS_CERT_FILE")}

    process = run_process("run_consumer", "sms", AMQP_URL=good["AMQP_URLS"][0], **files)

    assert process.wait() == 3
    assert process.lines[-1].removeprefix("CommandError: ").startswith(f"RabbitMQ: {EXPIRED}")
    assert "Traceback" not in process.output
    assert node.password not in process.output


def test_a_certificate_that_expires_while_running_is_named_and_its_renewal_noticed(
    good: dict[str, Any], node: RabbitMQNode, certificates: Certificates
) -> None:
    with connecting() as connection:
        assert connection.wait_until_open(10), connection.last_error
        expired(good, node, certificates)
        node.ctl("close_all_connections", "closed by a test")
        eventually(lambda: connection.last_error.startswith(EXPIRED), report=lambda: connection.last_error)
        present_to(node, certificates, "localhost")
        eventually(lambda: connection.generation == 2, report=lambda: connection.last_error)


@contextmanager
def first_bytes() -> Iterator[tuple[int, list[bytes]]]:
    """A port that speaks no TLS, and the first bytes of each client."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        heard: list[bytes] = []

        def listen() -> None:
            while True:
                try:
                    peer, _ = server.accept()
                except OSError:
                    return
                with peer:
                    heard.append(peer.recv(8))
                    peer.sendall(b"AMQP\x00\x00\x09\x01")

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        yield server.getsockname()[1], heard
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def test_nothing_is_sent_in_plain_where_no_tls_is_spoken(good: dict[str, Any]) -> None:
    with first_bytes() as (port, heard):
        good["AMQP_URLS"] = [f"amqps://user:secret@localhost:{port}/"]
        with connecting() as connection:
            eventually(lambda: len(heard) >= 3)
            said = "TLS: the server there speaks no TLS: amqps:// has a port of its own"
            assert connection.last_error == f"{said} (localhost:{port})"
    client_hello = b"\x16\x03"
    assert {words[:2] for words in heard} == {client_hello}

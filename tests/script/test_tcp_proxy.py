"""The TCP proxy: what a cut, a stall and a missing server do. tests/faults/test_network.py meets the rest."""

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import pytest

from script.services.ports import free_port
from script.services.tcp_proxy import TcpProxy


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that says everything back; its port."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:

        def serve(peer: socket.socket) -> None:
            with peer, suppress(OSError):
                while content := peer.recv(65536):
                    peer.sendall(content)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=serve, args=[server.accept()[0]], daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy(echo: int) -> Iterator[TcpProxy]:
    with TcpProxy(lambda: echo) as proxy:
        yield proxy


def connected(proxy: TcpProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5)


def says_back(client: socket.socket, content: bytes) -> bytes:
    client.sendall(content)
    return hear(client, len(content))


def hear(client: socket.socket, length: int) -> bytes:
    with client.makefile("rb") as stream:
        return stream.read(length)


@pytest.mark.parametrize("stalled", [False, True])
def test_cut_resets_open_connections_only(proxy: TcpProxy, stalled: bool) -> None:
    with connected(proxy) as client:
        assert says_back(client, b"a") == b"a"
        if stalled:
            proxy.stall()
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    proxy.heal()
    with connected(proxy) as another:
        assert says_back(another, b"b") == b"b"


def test_refusing_lasts_until_it_is_healed(proxy: TcpProxy) -> None:
    proxy.refuse()
    with pytest.raises(ConnectionResetError), connected(proxy) as client:
        client.recv(1)
    proxy.heal()
    with connected(proxy) as client:
        assert says_back(client, b"a") == b"a"


@pytest.mark.parametrize("towards", [(), ("client",), ("server",)])
def test_stalled_nothing_passes_and_nothing_is_lost(proxy: TcpProxy, towards: Any) -> None:
    with connected(proxy) as client:
        assert says_back(client, b"a") == b"a"
        proxy.stall(*towards)
        client.sendall(b"b")
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(5)
        proxy.heal()
        assert client.recv(1) == b"b"


def test_a_missing_server_is_a_reset_and_a_restarted_one_is_found_on_any_port(echo: int) -> None:
    port = free_port()
    with TcpProxy(lambda: port) as proxy:
        with pytest.raises(ConnectionResetError), connected(proxy) as client:
            client.recv(1)
        port = echo
        with connected(proxy) as client:
            assert says_back(client, b"a") == b"a"

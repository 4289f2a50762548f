"""Ports for private servers: two servers never get the same one."""

import random
import socket
import subprocess
import sys
import threading

import pytest

from script.services import ports
from tests.support.environment import ROOT


def unused(count: int) -> list[int]:
    """So many ports on which nobody listens, below those that are given out."""
    return random.sample([port for port in range(5000, ports.LOWEST) if ports.is_free(port)], count)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers that are drawn next, in that order."""
    numbers: list[int] = []
    monkeypatch.setattr("random.randrange", lambda *_: numbers.pop(0))
    return numbers


def test_a_port_is_given_to_one_server_though_that_does_not_listen_yet(drawn: list[int]) -> None:
    one, another = unused(2)
    drawn += [one, one, another]

    assert ports.free_port() == one
    assert ports.free_port() == another
    assert ports.is_free(one)


def test_a_port_that_another_process_was_given_is_not_given_here_until_that_ends(drawn: list[int]) -> None:
    program = "from script.services.ports import free_port; print(free_port(), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout
        theirs = int(other.stdout.readline())
        [mine] = unused(1)
        drawn += [theirs, mine, theirs]

        assert ports.free_port() == mine

        other.kill()
        other.wait()
        assert ports.free_port() == theirs


def test_a_server_that_starts_again_waits_for_its_old_port() -> None:
    [port] = unused(1)
    with socket.create_server(("127.0.0.1", port)) as dying:
        assert not ports.free_again(port, patience=0)
        threading.Timer(0.2, dying.close).start()
        assert ports.free_again(port, patience=60)


def test_without_any_free_port_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "is_free", lambda port: False)

    with pytest.raises(OSError, match="No free port between 10000 and"):
        ports.free_port()

"""What the private servers of script/ share: processes, ports, packages and the supervisor."""

import random
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from script.programs import demo
from script.programs.demo import HOPELESS, still_starting
from script.services import owned, packages, ports
from script.services.owned import ServiceError
from script.services.service import Service
from script.services.supervision import Supervisor
from tests.support.environment import ROOT
from tests.support.waiting import eventually

#: Its first thread ends and another one lives on, as in a large process that is being killed.
FIRST_THREAD_ENDS = """
import ctypes, platform, sys, threading
threading.Thread(target=sys.stdin.read).start()
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[platform.machine()], 0)
"""


def test_a_process_lives_until_its_last_thread_has_ended(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FIRST_THREAD_ENDS], stdin=subprocess.PIPE, env={owned.OWNER: str(tmp_path)}
    ) as process:
        eventually(lambda: owned._run_state(str(process.pid)) == "Z")

        assert owned.belongs(process.pid, tmp_path)
        assert owned.owned_pids(tmp_path) == [process.pid]

        owned.end(process.pid, tmp_path, how=owned.signal.SIGKILL)
        assert owned.owned_pids(tmp_path) == []


class Sleeper(Service):
    """A server that only lives."""

    title = "The sleeper"
    state_file = "sleeper.json"

    def start(self) -> None:
        """Start it beside a helper of its own, which is a server of its directory too."""
        for _ in range(2):
            self._state.save(pid=self._start_process([sys.executable, "-c", "import time; time.sleep(600)"]).pid)


def test_a_kill_spares_what_a_supervisor_starts_again_meanwhile(tmp_path: Path) -> None:
    server = Sleeper(tmp_path)
    with server:
        before = owned.owned_pids(tmp_path)
        killer = threading.Thread(target=server.kill)
        killer.start()
        eventually(lambda: server.pid is None, every=0.001)
        server.start()  # by this thread: what a thread starts is ended with it
        killer.join()

        eventually(lambda: len(owned.owned_pids(tmp_path)) == 2)
        assert not set(before) & set(owned.owned_pids(tmp_path))
    assert owned.owned_pids(tmp_path) == []


def test_a_program_that_keeps_ending_is_given_up_with_its_last_line(tmp_path: Path) -> None:
    code = "import sys; print('Starting', flush=True); sys.exit('Configuration: X is wrong')"
    programs = {
        "consumer": (sys.executable, "-c", code),
        "web": (sys.executable, "-c", "import time; time.sleep(600)"),
    }
    supervisor = Supervisor(tmp_path / "demo", tmp_path, programs, {})
    consumer, web = supervisor.programs.values()
    try:
        eventually(lambda: supervisor.tend() or consumer.own_ends[1] >= HOPELESS, 60)
        assert not web.own_ends
        with pytest.raises(ServiceError, match=r"consumer ended \d+ times\. It says: Configuration: X is wrong\."):
            still_starting(supervisor, None)
    finally:
        supervisor.stop(10)
    assert owned.owned_pids(tmp_path / "demo") == []


def test_a_demo_whose_program_ends_again_and_again_ends_with_that_programs_last_line_alone(tmp_path, monkeypatch):
    (tmp_path / "var").mkdir()
    failing = "import sys; sys.exit('a traceback\\nConfiguration: X is wrong')"
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    monkeypatch.setattr(demo, "programs", lambda port: {"consumer": (sys.executable, "-c", failing)})

    with pytest.raises(ServiceError) as ended:
        demo.run(ports.free_port(), None, None, 0.0)

    assert re.fullmatch(r"consumer ended \d times\. It says: Configuration: X is wrong\.", str(ended.value))
    assert owned.owned_pids(tmp_path / "var" / "demo") == []


# --- Ports ------------------------------------------------------------------------------------------------


def unused(count: int) -> list[int]:
    """Return ports without a listener, below those that are given out."""
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


# --- Debian packages ---------------------------------------------------------------------------------------


@pytest.fixture
def policy(tmp_path, monkeypatch):
    path = tmp_path / "policy-rc.d"
    monkeypatch.setattr(packages, "POLICY", path)
    return path


def test_services_stay_down_while_packages_are_installed(policy):
    with packages.services_stay_down():
        assert "exit 101" in policy.read_text()
        assert policy.stat().st_mode & 0o111
    assert not policy.exists()


def test_the_machine_s_own_policy_is_put_back_even_after_a_failure(policy):
    policy.write_text("own")
    policy.chmod(0o744)
    with pytest.raises(RuntimeError), packages.services_stay_down():
        raise RuntimeError
    assert policy.read_text() == "own"
    assert policy.stat().st_mode & 0o777 == 0o744


@pytest.mark.parametrize("code", [0, 100])
def test_a_terminal_shows_what_is_being_installed_and_all_of_it_after_a_failure(
    policy, tmp_path, monkeypatch, capsys, code
):
    fake = tmp_path / "apt-get"
    fake.write_text(f"#!/bin/sh\necho Fetching $5 ...\nexit {code}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(packages, "may_install", lambda: True)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)

    if code:
        with pytest.raises(ServiceError, match="failed with 100; its output is above"):
            packages.install("rabbitmq-server")
    else:
        packages.install("rabbitmq-server")

    said = capsys.readouterr()
    assert "\r\x1b[KFetching" in said.out
    assert said.out.endswith("\r\x1b[K")
    assert ("Fetching" in said.err) is bool(code)


def test_without_root_the_error_says_what_to_type(monkeypatch):
    monkeypatch.setattr(packages, "may_install", lambda: False)
    with pytest.raises(ServiceError, match="apt-get install rabbitmq-server"):
        packages.install("rabbitmq-server")

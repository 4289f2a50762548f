"""script/demo, for real, in copies of the checkout: from nothing to an order, through breakdowns, to nothing left."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from script.programs.demo import chosen_port, refuse_taken
from script.services import amqp
from script.services.amqp import connect
from script.services.owned import OWNER, ServiceError, end_all, owned_pids
from script.services.ports import free_port
from script.services.rabbitmq import RabbitMQNode
from tests.support.environment import ROOT
from tests.support.listeners import something_that_answers
from tests.support.processes import RunningProcess
from tests.support.waiting import eventually

#: A busy machine takes long; 8 s on an idle one.
READY = 150


class Checkout:
    """A copy of the project with its own var/, and demos run in it."""

    def __init__(self, directory):
        self.directory = directory
        self.port = free_port()
        self.home = directory.with_name("home of the person")
        self.home.mkdir()
        self.temporary = directory.with_name("tmp")
        self.temporary.mkdir()
        self.services = [directory / "var" / name for name in ("rabbitmq", "demo")]
        shutil.copytree(ROOT, directory, ignore=shutil.ignore_patterns(".*", "var", "tests", "__pycache__"))
        (directory / ".venv").symlink_to(ROOT / ".venv")

    def demo(self, **environment):
        return self._python("-m", "script.programs.demo", **environment)

    def manage(self, *arguments, **environment):
        return self._python("manage.py", *arguments, DEBUG="1", **environment)

    def _python(self, *arguments, **environment):
        kept = {name: value for name, value in os.environ.items() if name not in {"AMQP_URL", "DATABASE_URL"}}
        settings = {"WARREN_PORT": str(self.port), "DJANGO_SETTINGS_MODULE": "project.settings", "RELAY_THREAD": "1"}
        mark = {OWNER: str(self.directory), "PYTHONUNBUFFERED": "1", "HOME": str(self.home)}
        own = {**settings, **mark, "TMPDIR": str(self.temporary), **environment}
        return RunningProcess([sys.executable, *arguments], {**kept, **own}, self.directory)

    def running(self):
        return [pid for directory in self.services for pid in owned_pids(directory)]

    def supervised(self, part_of_command):
        commands = {pid: command_of(pid) for pid in owned_pids(self.services[1])}
        return [pid for pid, command in commands.items() if part_of_command in command]


def command_of(pid):
    shown = subprocess.run(["ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return shown.stdout


@pytest.fixture
def checkout(tmp_path):
    checkout = Checkout(tmp_path / "a checkout, 100% new")
    yield checkout
    for directory in (checkout.directory, *checkout.services):
        end_all(directory, how=signal.SIGKILL)


def test_from_nothing_to_ready_through_breakdowns_to_nothing_left(checkout):
    demo = checkout.demo()
    url = demo.wait_for_line(r"^Ready: (http://127\.0\.0\.1:\d+/)$", READY)[1]
    assert url == f"http://127.0.0.1:{checkout.port}/"
    assert urllib.request.urlopen(url).status == 200
    demo.wait_for_line(rf"Text messages +{re.escape(url)}dev/sms/")
    demo.wait_for_line(r"user admin, password \S{12,}")
    steps = ("Starting a private RabbitMQ", "Preparing the database", "Waiting for RabbitMQ", "Starting web, consumer")
    assert [line for line in demo.lines if line.startswith(steps)] == demo.lines[:4]
    broker = demo.wait_for_line(r"export AMQP_URL=(amqp://\S+)")[1]
    assert checkout.manage("run_consumer", "sms", "--burst", AMQP_URL=broker).wait(60) == 0
    assert not list(checkout.home.rglob("*"))  # whatever it writes is in the checkout

    assert checkout.demo().wait(60) == 1  # a second one in the same checkout

    (consumer,) = checkout.supervised("run_consumer")
    os.kill(consumer, signal.SIGKILL)
    RabbitMQNode(checkout.services[0]).kill()
    demo.wait_for_line("RabbitMQ died; starting it again")
    eventually(lambda: checkout.supervised("run_consumer") not in ([], [consumer]), 30, report=lambda: demo.output)
    eventually(lambda: RabbitMQNode(checkout.services[0]).pid, 60, report=lambda: demo.output)
    demo.send(signal.SIGKILL)

    at_once = checkout.demo()  # while the processes of the killed one are still stopping
    at_once.wait_for_line(f"^Ready: {re.escape(url)}$", READY)
    at_once.wait_for_line("password as before")
    assert at_once.stop(90) == 0
    assert checkout.running() == []


def test_stopped_or_killed_during_the_start_it_leaves_nothing(checkout):
    for end, exit_code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 0)):
        demo = checkout.demo()
        eventually(lambda: RabbitMQNode(checkout.services[0]).pid, 60)
        demo.send(end)
        assert demo.wait(90) == exit_code
        eventually(lambda: checkout.running() == [], 60)


@pytest.mark.parametrize(
    ("environment", "exit_code", "line"),
    [
        (
            {"AMQP_URL": "amqp://127.0.0.1:1/", "SMS_BACKEND": "orders.sms.GatewayBackend"},
            2,
            "SMS_GATEWAY_TOKEN is missing.*SMS_GATEWAY_URL is missing",
        ),
        ({"AMQP_URL": "amqp://127.0.0.1:1/"}, 3, "nothing listens at 127.0.0.1:1"),
    ],
)
def test_wrong_settings_are_reported_in_one_line(checkout, environment, exit_code, line):
    demo = checkout.demo(**environment)
    assert demo.wait(60) == exit_code
    assert re.search(line, demo.output)
    assert len(demo.lines) == 1
    assert not (checkout.directory / "var" / "db.sqlite3").exists()  # it was checked first


def test_a_database_that_cannot_be_reached_is_the_last_line(checkout, broker):
    demo = checkout.demo(AMQP_URL=broker.url(), DATABASE_URL="postgres://u@127.0.0.1:1/x")
    assert demo.wait(60) == 3
    assert demo.lines[0] == "Preparing the database ..."
    assert "the database cannot be used" in demo.lines[1]
    assert len(demo.lines) == 2


@pytest.mark.parametrize(
    ("addresses", "exit_code", "reason"),
    [
        ("amqp://127.0.0.1:1/", 3, "AMQP_URL cannot be reached. amqp://127.0.0.1:1/: .*refused.*Unset AMQP_URL"),
        (
            "amqp://u:secret@127.0.0.1:1/,amqp://127.0.0.1:2/",
            3,
            r"amqp://u:\*\*\*@127.0.0.1:1/: .*; amqp://127.0.0.1:2/",
        ),
        ("http://127.0.0.1/", 2, "AMQP_URL has the form amqp://user:password@host"),
    ],
)
def test_a_broker_that_cannot_be_reached_is_named_without_its_password(addresses, exit_code, reason):
    with pytest.raises(ServiceError, match=reason) as refused:
        connect(addresses)
    assert refused.value.exit_code == exit_code


def test_a_broker_that_accepts_and_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr(amqp, "CONNECT_TIMEOUT", 0.2)
    with something_that_answers(None) as port, pytest.raises(ServiceError, match=f"127.0.0.1:{port}"):
        connect(f"amqp://guest:secret@127.0.0.1:{port}/")


@pytest.mark.parametrize("port", ["eighty", "0", "65536", "-1", "٨٠"])
def test_a_wrong_port_is_a_usage_error(monkeypatch, port):
    monkeypatch.setenv("WARREN_PORT", port)
    with pytest.raises(ServiceError, match=f"WARREN_PORT is '{port}'; it must be a number from 1 to 65535") as refused:
        chosen_port()
    assert refused.value.exit_code == 2


def test_a_taken_port_is_named_with_the_way_out():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ServiceError, match=rf"port {port} is taken .* WARREN_PORT=\d+ script/demo"):
            refuse_taken(port)

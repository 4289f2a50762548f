"""Ctrl-C in commands that hold nothing: one line that claims no more than is known, and what shells call that end."""

import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import closing
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from script.services.ports import free_port
from tests.support.amqp import queue_length
from tests.support.command_line import ctrl_c, manage, mq


@pytest.fixture(autouse=True)
def default_handler() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, whatever the test's process has it do."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("mq peek q", "Interrupted."),
        ("mq purge q --yes", "Interrupted."),
        ("mq queues", "Interrupted."),
        ("mq topology diff", "Interrupted."),
        ("tutorial --check", "Interrupted."),
        ("tutorial --cleanup", "Interrupted."),
        # It never left this process.
        ("mq call fib 30 40 --timeout 600", "Interrupted; 2 of 2 not sent."),
    ],
)
def test_ctrl_c_at_a_silent_broker_is_one_line(settings: Any, command: str, said: str) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        settings.MESSAGING = {
            **settings.MESSAGING,
            "AMQP_URLS": [f"amqp://127.0.0.1:{server.getsockname()[1]}/"],
            "MANAGEMENT_URL": f"http://127.0.0.1:{free_port()}",
        }
        with ctrl_c(server.accept):  # the peer never answers
            ended = manage(*command.split())
    assert (ended.code, ended.err) == (130, said)


def test_ctrl_c_at_the_question_deletes_nothing(vhost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def press(question: str) -> str:
        assert question.startswith("Delete the 1 messages that wait in q?")
        raise KeyboardInterrupt

    assert mq("publish", "x", "--queue", "q", "--declare").code == 0
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("builtins.input", press)
    out = StringIO()
    with pytest.raises(CommandError, match="Nothing was deleted"):
        call_command("mq", "purge", "q", stdout=out)
    assert out.getvalue() == "\n"  # the error is not behind the question
    assert queue_length(vhost, "q") == 1

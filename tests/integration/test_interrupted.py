"""Ctrl-C in commands that hold nothing: one line that claims no more than is known, and what shells call that end."""

import signal
import socket
from contextlib import closing

import pytest

from script.services.ports import free_port
from tests.support.amqp import queue_length
from tests.support.command_line import mq
from tests.support.processes import ProcessStarter
from tests.support.terminal import on_terminal
from tests.support.waiting import eventually


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("mq peek q", "Interrupted."),
        ("mq purge q --yes", "Interrupted."),
        ("mq queues", "Interrupted."),
        ("mq topology diff", "Interrupted."),
        ("tutorial --cleanup", "Interrupted."),
        # It never left this process.
        ("mq call fib 30 40 --timeout 600", "Interrupted; 2 of 2 not sent."),
    ],
)
def test_ctrl_c_at_a_silent_broker_is_one_line(run_process: ProcessStarter, command: str, said: str) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        process = run_process(
            *command.split(),
            AMQP_URL=f"amqp://127.0.0.1:{server.getsockname()[1]}/",
            AMQP_MANAGEMENT_URL=f"http://127.0.0.1:{free_port()}",
        )
        server.settimeout(20)
        peer, _ = server.accept()  # and never a word
        process.send(signal.SIGINT)
        assert (process.wait(), process.lines) == (130, [f"CommandError: {said}"])
        peer.close()


def test_ctrl_c_at_the_question_deletes_nothing(vhost: str) -> None:
    assert mq("publish", "x", "--queue", "q", "--declare").code == 0
    with on_terminal("mq", "purge", "q") as terminal:
        eventually(lambda: "[y/N]" in terminal.seen)
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.wait() == 1
    [told] = [line for line in terminal.seen.splitlines() if "Nothing was deleted." in line]
    assert "[y/N]" not in told
    assert queue_length(vhost, "q") == 1

"""`mq listen`, `mq peek`, `mq purge`: what they mean by a name, what they print, and how they end."""

import json
import re
import socket
import sys
from collections.abc import Callable
from contextlib import closing
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from pika.adapters.blocking_connection import BlockingChannel

from messaging import routing
from messaging.mq import listen
from messaging.mq.management.commands import mq as mq_command
from tests.support.amqp import plain_channel, queue_length
from tests.support.command_line import ctrl_c, mq, publish
from tests.support.listening import Listen
from tests.support.network import BrokerNetwork
from tests.support.processes import ProcessStarter
from tests.support.waiting import eventually


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


# --- what a name means -------------------------------------------------------------------------------------


@pytest.fixture
def existing(vhost: str) -> None:
    """A vhost in which a queue and an exchange share a name."""
    with plain_channel(vhost) as channel:
        for queue in ("both", "q"):
            channel.queue_declare(queue)
        for exchange, type_ in {"both": "topic", "logs": "fanout"}.items():
            channel.exchange_declare(exchange, type_)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [(["both"], "queue both"), (["both", "a", "b.#"], "exchange both for a, b.#"), (["logs"], "exchange logs"),
     (["new", "--declare"], "queue new"), (["new", "--declare", "--type", "direct"], "exchange new")],
)  # fmt: skip
def test_a_name_is_a_queue_unless_something_says_that_an_exchange_is_meant(
    existing: None, listen: Listen, arguments: list[str], what: str
) -> None:
    assert listen(*arguments).err.getvalue() == f"Listening on {what}. Press CTRL+C to stop.\n"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nix"], 1, "There is no queue and no exchange nix."),
        (["nix", "key"], 1, "There is no exchange nix."),
        (["logs", "--type", "topic"], 2, "--type, --queue-type, --transient and --argument go with --declare."),
        (["q", "key", "--header", "a=b"], 2, "Give keys or --header"),
        (["q", "k" * 256], 2, "A key has 256 bytes; AMQP has room for 255."),
        (["new", "key", "--declare"], 2, "To declare an exchange say its type"),
        (["new", "--type", "topic", "--queue-type", "quorum", "--declare"], 2, "--queue-type goes with a queue."),
        (["q", "--transient"], 2, "go with --declare"),
        (
            ["q", "--declare", "--transient", "--argument", "x-max-priority=5"],
            1,
            "queue q exists without x-max-priority, you asked",
        ),
        (["logs", "--type", "topic", "--declare", "--transient"], 1, "exists with type=fanout, you asked for it with"),
    ],
)
def test_what_cannot_be_listened_to_is_one_line(existing: None, arguments: list[str], code: int, said: str) -> None:
    told = mq("listen", *arguments)
    assert (told.code, told.out) == (code, "")
    assert said in told.err
    assert len(told.err.splitlines()) == 1


def test_the_helps_teach_a_pattern_that_takes_the_errors_of_every_logger() -> None:
    for examples in (mq_command.EXAMPLES, listen.EXAMPLES):
        [taught] = re.findall(r'mq listen warren.logs "orders.#" "(\S+)"', examples)
        assert all(routing.matches(taught, key) for key in ("warren.error", "django.request.error"))


def test_an_exclusive_queue_of_another_connection_is_refused(vhost: str) -> None:
    with plain_channel(vhost) as channel:
        channel.queue_declare("mine", exclusive=True)
        said = mq("listen", "mine")
    assert said.code == 1
    assert said.err.endswith("It is another connection's own (exclusive).")


def test_an_absent_broker_is_exit_code_3() -> None:
    for command in (["listen", "q"], ["peek", "q"], ["purge", "q", "--yes"]):
        said = mq(*command)
        assert (said.code, said.err) == (
            3,
            "RabbitMQ: connection refused: nothing listens at 127.0.0.1:1. Check AMQP_URL.",
        )


# --- what is printed ---------------------------------------------------------------------------------------


def put(channel: BlockingChannel, *bodies: bytes) -> None:
    channel.queue_declare("q", durable=True)
    for body in bodies:
        channel.basic_publish("", "q", body)


def test_nothing_in_a_message_moves_the_cursor(vhost: str) -> None:
    with plain_channel(vhost) as channel:
        put(channel, b"one\ntwo\x1b[2J\x7f", "\u009b2J ü 你".encode(), b"\xff\x9b")
        assert mq("peek", "q").lines == ["q\tone two [2J ", "q\t 2J ü 你", "q\t\\xff\\x9b"]
        lines = mq("peek", "q", "--json").lines
    assert all(line.isprintable() for line in lines)
    assert [json.loads(line)["body"] for line in lines] == ["one\ntwo\x1b[2J\x7f", "\u009b2J ü 你", "/5s="]
    assert [json.loads(line)["base64"] for line in lines] == [False, False, True]


def test_a_routing_key_that_is_no_text_is_shown_as_one(vhost: str) -> None:
    with plain_channel(vhost) as channel:
        put(channel)
        channel.queue_bind("q", "amq.topic", "#")
        channel.basic_publish("amq.topic", b"caf\xe9", b"x")
        assert mq("peek", "q").lines == ["caf?\tx"]
        assert json.loads(mq("peek", "q", "--json").lines[0])["routing_key"] == "caf?"


def test_a_terminal_shows_what_is_redelivered(vhost: str) -> None:
    with plain_channel(vhost) as channel:
        put(channel, b"x")
        first, again = Terminal(), Terminal()
        call_command("mq", "peek", "q", no_color=True, stdout=first)
        call_command("mq", "peek", "q", no_color=True, stdout=again)
    assert (first.getvalue(), again.getvalue()) == ("q  x\n", "q  x (redelivered)\n")


# --- what goes back ----------------------------------------------------------------------------------------


def test_looking_takes_nothing_away(vhost: str) -> None:
    with plain_channel(vhost) as channel:
        put(channel, *[b"%d" % number for number in range(12)])
        assert mq("peek", "q").lines == [f"q\t{number}" for number in range(10)]
        assert mq("peek", "q", "--count", "100").lines == [f"q\t{number}" for number in range(12)]
    assert queue_length(vhost, "q") == 12


def test_no_more_than_max_messages_are_taken(vhost: str) -> None:
    with plain_channel(vhost) as channel:
        put(channel, *[b"%d" % number for number in range(200)])
    assert mq("listen", "q", "--max-messages", "2").lines == ["q\t0", "q\t1"]
    eventually(lambda: queue_length(vhost, "q") == 198)


@pytest.mark.parametrize("kind", ["classic", "quorum"])
@pytest.mark.parametrize("wanted", [1, 3])
def test_the_message_after_max_messages_is_not_redelivered_to_others(vhost: str, kind: str, wanted: int) -> None:
    with plain_channel(vhost) as channel:
        channel.queue_declare("q", durable=True, arguments={"x-queue-type": kind})
        channel.confirm_delivery()
        for number in range(5):
            channel.basic_publish("", "q", b"%d" % number)
        taken = mq("listen", "q", "--max-messages", str(wanted), "--json").lines
        eventually(lambda: queue_length(vhost, "q") == 5 - wanted)
        left = [channel.basic_get("q") for _ in range(5 - wanted)]

    assert [json.loads(line)["body"] for line in taken] == [str(number) for number in range(wanted)]
    assert [body for _, _, body in left] == [b"%d" % number for number in range(wanted, 5)]
    assert [method.redelivered for method, _, _ in left] == [False] * (5 - wanted)


def test_messages_prefetched_beyond_max_messages_are_requeued(vhost: str) -> None:
    with plain_channel(vhost) as channel:
        put(channel, *[b"%d" % number for number in range(50)])
        assert mq("listen", "q", "--max-messages", "2", "--prefetch", "20").lines == ["q\t0", "q\t1"]
        eventually(lambda: queue_length(vhost, "q") == 48)
        assert mq("peek", "q", "--count", "2").lines == ["q\t2", "q\t3"]


def test_max_messages_of_an_exchange_end_it_well(listen: Listen) -> None:
    listener = listen("amq.fanout", "--max-messages", "2")
    mq("publish", "x", "--exchange", "amq.fanout", "--count", "3")  # the third may be returned
    listener.join()
    assert listener.lines == ["\tx", "\tx"]
    assert listener.err.getvalue().endswith("Stopped after 2 messages.\n")


def test_a_reader_that_leaves_ends_it_and_takes_nothing_more(
    vhost: str, run_process: ProcessStarter, tmp_path: Path
) -> None:
    publish("first", "--queue", "q", "--declare")
    line = f'("$0" manage.py mq listen q; echo $? > {tmp_path / "code"}) | head -1'
    process = run_process.program("sh", "-c", line, sys.executable)
    assert process.wait() == 0
    assert (tmp_path / "code").read_text() == "0\n"
    assert "q\tfirst" in process.lines
    assert "Traceback" not in process.output
    assert queue_length(vhost, "q") == 0

    publish("second", "--queue", "q")
    line = '"$0" manage.py mq listen q | true'
    assert run_process.program("sh", "-c", line, sys.executable).wait() == 0
    eventually(lambda: queue_length(vhost, "q") == 1)


# --- how it ends -------------------------------------------------------------------------------------------


def listen_until(when: Callable[[StringIO, StringIO], object], *arguments: str) -> tuple[str, str]:
    """Listen until Ctrl-C, which is pressed when `when` holds of what was printed and said; both at the end."""
    out, err = StringIO(), StringIO()
    with ctrl_c(lambda: when(out, err)):
        call_command("mq", "listen", *arguments, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


def test_ctrl_c_ends_it_well_while_it_works(vhost: str) -> None:
    publish("work.", "--queue", "q", "--declare")
    out, err = listen_until(lambda out, err: out.getvalue(), "q", "--dots", "3600")
    assert (out, err.splitlines()[-1]) == ("q\twork.\n", "Stopped after 1 message.")
    eventually(lambda: queue_length(vhost, "q") == 1)  # its work was not done


def test_ctrl_c_ends_it_well_while_the_broker_is_frozen(network: BrokerNetwork) -> None:
    def frozen(out: StringIO, err: StringIO) -> bool:
        assert "Listening on" in err.getvalue()
        network.pause()
        return True

    assert listen_until(frozen, "amq.fanout")[1].splitlines()[-1] == "Stopped after 0 messages."


def test_ctrl_c_ends_it_well_while_it_connects(settings: Any) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": [f"amqp://127.0.0.1:{server.getsockname()[1]}/"]}
        # The peer never answers.
        assert listen_until(lambda out, err: server.accept(), "q") == ("", "")


def test_a_queue_that_is_deleted_ends_it(vhost: str, listen: Listen) -> None:
    publish("x", "--queue", "q", "--declare")
    listener = listen("q")
    eventually(lambda: listener.lines == ["q\tx"])
    delete_queue(vhost, "q")
    with pytest.raises(CommandError, match="Queue q is gone") as ended:
        listener.join()
    assert ended.value.returncode == 1


def test_it_outlives_the_broker(network: BrokerNetwork, vhost: str, listen: Listen) -> None:
    subscribed = listen("logs", "--type", "fanout", "--declare")
    declaring = listen("gone", "--declare", "--transient")
    publish("x", "--queue", "transient", "--declare", "--transient")
    ending = listen("transient")

    network.kill()
    for each in (subscribed, declaring, ending):
        each.wait_for("Connecting again…")
    for queue in ("gone", "transient"):  # as a restart does
        delete_queue(vhost, queue)
    network.start()

    subscribed.wait_for("Listening again on exchange logs. What was published since ")
    declaring.wait_for("Listening again on queue gone.")
    publish("new", "--exchange", "logs")
    publish("new", "--queue", "gone")
    eventually(lambda: (subscribed.lines, declaring.lines) == (["\tnew"], ["gone\tnew"]))
    with pytest.raises(CommandError, match="Queue transient is gone"):
        ending.join()


def delete_queue(url: str, name: str) -> None:
    with plain_channel(url) as channel:
        channel.queue_delete(name)


# --- purge -------------------------------------------------------------------------------------------------


def test_purge_deletes_what_waits_and_says_how_much(vhost: str) -> None:
    publish("x", "--queue", "q", "--declare", "--count", "3")
    said = mq("purge", "q", "--yes")
    assert (said.code, said.out) == (0, "3 deleted from q.\n")
    assert queue_length(vhost, "q") == 0
    assert "no queue 'nix'" in mq("purge", "nix", "--yes").err


def test_purge_asks_first(vhost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    publish("x", "--queue", "q", "--declare", "--count", "3")
    assert (mq("purge", "q").code, mq("purge", "q").err) == (2, "There is no terminal to ask at: say --yes.")
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    with pytest.raises(CommandError, match="Nothing was deleted"):
        call_command("mq", "purge", "q")
    assert queue_length(vhost, "q") == 3
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    call_command("mq", "purge", "q", stdout=StringIO())
    assert queue_length(vhost, "q") == 0

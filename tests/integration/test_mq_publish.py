"""`mq publish`: what was asked for arrives, and what did not arrive is said."""

import json
import os
import signal
import socket
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from messaging.broker.connection import opened
from messaging.broker.declaring import queue_exists
from messaging.broker.properties import from_pika
from script.services.rabbitmq import RabbitMQNode
from tests.support.amqp import plain_channel, queue_length
from tests.support.command_line import mq
from tests.support.processes import ProcessStarter
from tests.support.running import take_all
from tests.support.waiting import eventually

FULL = "The output cannot be written: No space left on device."
QUICK = {"CONNECT_TIMEOUT": 1.0, "PUBLISH_TIMEOUT": 1.0}


def piped(run_process: ProcessStarter, source: str, *arguments: str) -> Any:
    """Run `source | manage.py mq publish …` by a shell."""
    line = f'{source} | "$0" manage.py mq publish "$@"'
    return run_process.program("sh", "-c", line, sys.executable, *arguments)


def stands(vhost: str, queue: str) -> bool:
    with opened("test") as connection:
        return queue_exists(connection, queue)


# --- what arrives ------------------------------------------------------------------------------------------


def test_a_text_arrives_as_it_was_given(vhost: str) -> None:
    said = mq("publish", "你好 World!", "--queue", "hello", "--declare")
    assert (said.code, said.out) == (0, "Sent and confirmed.\n")
    [(properties, body)] = take_all(vhost, "hello")
    assert (body.decode(), properties.content_type, properties.delivery_mode) == ("你好 World!", "text/plain", 2)


def test_every_property_arrives(vhost: str) -> None:
    said = mq(
        "publish", '{"a": 1}', "--json", "--queue", "q", "--declare", "--transient", "--transient-message",
        "--priority", "7", "--expiration", "60000", "--message-id", "m1", "--correlation-id", "c1",
        "--reply-to", "answers", "--type", "greeting", "--app-id", "by-hand", "--content-encoding", "identity",
        "--header", "format=pdf", "--header", "pages=12", "--header", 'year="2026"', "--header", "empty=",
    )  # fmt: skip
    assert said.code == 0, said.err
    [(properties, body)] = take_all(vhost, "q")
    message = from_pika(properties, body)
    assert message.headers == {"format": "pdf", "pages": 12, "year": "2026", "empty": ""}
    assert (message.id, message.correlation_id, message.reply_to, message.type) == ("m1", "c1", "answers", "greeting")
    assert (message.app_id, message.content_encoding, message.content_type) == (
        "by-hand",
        "identity",
        "application/json",
    )
    assert (message.priority, message.expiration, message.persistent) == (7, "60000", False)
    assert json.loads(body) == {"a": 1}


def test_a_file_arrives_byte_for_byte(vhost: str, tmp_path: Path) -> None:
    (tmp_path / "picture").write_bytes(bytes(range(256)) * 2000)
    assert mq("publish", "--file", str(tmp_path / "picture"), "--queue", "q", "--declare").code == 0
    [(properties, body)] = take_all(vhost, "q")
    assert body == bytes(range(256)) * 2000
    assert properties.content_type == "application/octet-stream"


def test_standard_input_is_one_message_or_one_a_line(vhost: str, run_process: ProcessStarter) -> None:
    assert mq("publish", "first", "--queue", "q", "--declare").code == 0
    assert piped(run_process, r"printf 'a\nb\0\377'", "--queue", "q").wait() == 0
    lines = piped(run_process, r"printf 'a\r\nb\n\nc'", "--queue", "q", "--lines")
    assert lines.wait() == 0
    assert "Sent 4: 4 confirmed, 0 returned." in lines.output
    assert [body for _, body in take_all(vhost, "q")] == [b"first", b"a\nb\0\xff", b"a", b"b", b"", b"c"]


def test_a_line_goes_at_once_although_more_may_come(vhost: str, run_process: ProcessStarter, tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"")
    assert mq("publish", "0", "--queue", "q", "--declare").code == 0
    endless = piped(run_process, "(echo 1; exec sleep 60)", "--queue", "q", "--lines")
    assert mq("listen", "q", "--max-messages", "2").lines == ["q\t0", "q\t1"]
    assert endless.is_alive


def test_a_thousand_are_sent_and_counted(vhost: str) -> None:
    said = mq("publish", "x", "--queue", "q", "--declare", "--count", "1000")
    assert (said.code, said.out) == (0, "Sent 1000: 1000 confirmed, 0 returned.\n")
    # A quorum queue counts what the broker has read once it is written.
    eventually(lambda: queue_length(vhost, "q") == 1000)


def test_without_confirms_all_is_read_before_it_ends(vhost: str) -> None:
    said = mq("publish", "x", "--queue", "q", "--declare", "--count", "1000", "--no-confirm")
    assert (said.code, said.out) == (0, "Sent 1000: 0 returned.\n")
    # A quorum queue counts what the broker has read once it is written.
    eventually(lambda: queue_length(vhost, "q") == 1000)


def test_the_rate_is_a_limit(vhost: str) -> None:
    started = time.monotonic()
    assert mq("publish", "x", "--queue", "q", "--declare", "--count", "11", "--rate", "10").code == 0
    # The eleventh is not due before a second has passed. How much later it goes is not asked.
    assert time.monotonic() - started >= 1


# --- what does not -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [[], ["--no-confirm"]])
def test_what_nobody_takes_is_told_as_returned(vhost: str, how: list[str]) -> None:
    said = mq("publish", "x", "--exchange", "amq.topic", "--key", "kern.critical", *how)
    assert (said.code, said.out) == (1, "")
    assert said.err == (
        "returned: no queue is bound to exchange amq.topic for key 'kern.critical': nobody listens; "
        "the message is gone."
    )
    several = mq("publish", "x", "--exchange", "amq.topic", "--count", "600", *how)
    assert several.code == 1
    assert "600 returned" in several.out
    assert several.err.endswith("600 messages are gone.")


def test_a_key_that_looks_like_a_pattern_is_told(vhost: str) -> None:
    said = mq("publish", "x", "--exchange", "amq.topic", "--key", "kern.*")
    assert said.code == 1
    assert said.err.startswith("Key 'kern.*' is sent as it is: * and # are patterns only where a queue is bound.\n")
    assert "patterns" not in mq("publish", "x", "--exchange", "amq.topic", "--key", "lang.c#").err


def test_a_queue_that_is_not_there_is_told(vhost: str) -> None:
    said = mq("publish", "x", "--queue", "nix")
    assert (said.code, said.err) == (1, "returned: there is no queue nix; the message is gone. --declare makes it.")


def test_an_exchange_that_is_not_there_is_told(vhost: str) -> None:
    said = mq("publish", "x", "--exchange", "nix", "--count", "3")
    assert said.code == 1
    assert "no exchange 'nix'" in said.err
    assert said.out.startswith("Sent 3: 0 confirmed")


def test_a_full_queue_is_told(vhost: str) -> None:
    limits = ["--argument", "x-max-length=1", "--argument", "x-overflow=reject-publish"]
    said = mq("publish", "x", "--queue", "small", "--declare", *limits, "--count", "3")
    assert said.code == 1
    assert (said.out, said.err.split(":")[0]) == ("Sent 3: 1 confirmed, 0 returned, 2 nacked.\n", "Not taken")


def test_what_stands_otherwise_is_told_with_both_sides(vhost: str) -> None:
    assert mq("publish", "x", "--queue", "hello", "--declare", "--transient").code == 0
    said = mq("publish", "x", "--queue", "hello", "--declare", "--argument", "x-max-length=5")
    assert said.code == 1
    assert "queue hello exists with durable=false, you asked for it with durable=true." in said.err
    assert said.err.endswith("delete it first: its messages go with it.")
    assert mq("publish", "x", "--exchange", "logs", "--declare", "--exchange-type", "fanout").code == 1  # returned
    said = mq("publish", "x", "--exchange", "logs", "--declare", "--exchange-type", "topic")
    assert "exchange logs exists with type=fanout, you asked for it with type=topic." in said.err
    assert said.err.endswith("delete it first: its bindings go with it.")


@pytest.mark.parametrize(
    "target", [["--queue", "amq.mine"], ["--exchange", "amq.mine", "--exchange-type", "topic"],
               ["--exchange", "", "--exchange-type", "direct"]],
)  # fmt: skip
def test_nobody_is_sent_for_an_account_that_may_what_none_may(vhost: str, target: list[str]) -> None:
    said = mq("publish", "x", *target, "--declare")
    assert said.code == 1
    assert said.err.endswith("No account may: take a name of your own, that does not begin with amq.")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["x", "--exchange", "e", "--key", "ü" * 128], "The routing key has 256 bytes; AMQP has room for 255."),
        (["x", "--queue", "q" * 256], "The name has 256 bytes; AMQP has room for 255."),
        (["x", "--queue", "q", "--message-id", "m" * 256], "--message-id has 256 bytes"),
        (["x", "--queue", "q", "--header", "format"], "--header 'format': write NAME=VALUE, such as format=pdf."),
        (["x", "--queue", "q", "--header", "=pdf"], "--header '=pdf': write NAME=VALUE"),
        (["x", "--queue", "q", "--argument", "n", "--declare"], "--argument 'n': write NAME=VALUE"),
        (["{'a': 1}", "--queue", "q", "--json"], "The body is not JSON: "),
        (["x", "--queue", "q", "--key", "k"], "--key goes with --exchange"),
        (["x", "--queue", "q", "--file", "f"], "Give a BODY or --file, not both."),
        (["x", "--queue", "q", "--lines"], "--lines reads a file or standard input"),
        (["x", "--exchange", "e", "--declare"], "To declare an exchange say its type"),
        (["x", "--queue", "q", "--transient"], "go with --declare"),
        (["x", "--queue", "q", "--expiration", "soon"], "'soon' is not a number of milliseconds"),
        (["x", "--queue", "q", "--priority", "999"], "'999' is not a priority from 0 to 255"),
        (["x", "--queue", "q", "--count", "0"], "'0' is not a whole number from 1"),
        (["x", "--queue", "q", "--rate", "nan"], "'nan' is not a number above 0"),
        (["x"], "one of the arguments --queue --exchange is required"),
    ],
)
def test_wrong_arguments_are_one_line_before_anything_is_sent(arguments: list[str], said: str) -> None:
    told = mq("publish", *arguments)
    assert said in told.err
    assert len(told.err.splitlines()) == 1
    assert told.code in {1, 2}


def test_a_file_that_cannot_be_read_is_told(vhost: str, tmp_path: Path) -> None:
    said = mq("publish", "--file", str(tmp_path / "nix"), "--queue", "q")
    assert (said.code, said.err) == (1, f"{tmp_path / 'nix'} cannot be read: No such file or directory.")
    assert mq("publish", "--file", str(tmp_path), "--queue", "q").err.endswith("cannot be read: Is a directory.")


def test_a_line_that_is_no_json_stops_behind_those_before_it(vhost: str, tmp_path: Path) -> None:
    (tmp_path / "lines").write_text('{"a": 1}\n[]\n{"a"\n{}\n')
    said = mq("publish", "--file", str(tmp_path / "lines"), "--lines", "--json", "--queue", "q", "--declare")
    assert (said.code, said.out) == (2, "Sent 2: 2 confirmed, 0 returned.\n")
    assert said.err.startswith("Line 3 is not JSON: ")
    assert [body for _, body in take_all(vhost, "q")] == [b'{"a": 1}', b"[]"]


def test_a_header_that_amqp_cannot_carry_is_told(vhost: str) -> None:
    said = mq("publish", "x", "--queue", "q", "--declare", "--header", f"n={10**30}")
    assert said.code == 1
    assert said.err.startswith("It cannot be sent: ")


# --- without a broker --------------------------------------------------------------------------------------


def test_an_absent_broker_is_one_line_and_exit_code_3() -> None:
    said = mq("publish", "x", "--queue", "q")
    assert (said.code, said.err) == (3, "RabbitMQ: connection refused: nothing listens at 127.0.0.1:1. Check AMQP_URL.")


def test_a_frozen_broker_is_exit_code_7(breakable_broker: RabbitMQNode, settings: Any) -> None:
    settings.MESSAGING = {**settings.MESSAGING, **QUICK}
    assert mq("publish", "x", "--queue", "q", "--declare").code == 0
    breakable_broker.pause()
    said = mq("publish", "x", "--queue", "q")
    assert said.code == 7
    assert said.err.startswith("RabbitMQ: the broker did not answer in time (127.0.0.1:")
    breakable_broker.resume()
    assert mq("publish", "y", "--queue", "q").code == 0


def test_an_alarmed_broker_is_exit_code_7(breakable_broker: RabbitMQNode, settings: Any) -> None:
    settings.MESSAGING = {**settings.MESSAGING, **QUICK}
    assert mq("publish", "x", "--queue", "q", "--declare").code == 0
    with breakable_broker.memory_alarm():
        said = mq("publish", "x", "--queue", "q", "--count", "2")
    assert said.code == 7
    assert "alarm blocks the broker" in said.err
    assert said.out == "Sent 2: 0 confirmed, 0 returned, 2 unknown.\n"


@pytest.mark.parametrize(
    ("target", "code", "said"),
    [
        (["--queue", "q"], 0, [f"Sent 3: 3 confirmed, 0 returned. {FULL}"]),
        (
            ["--exchange", "amq.topic"], 1,
            [
                f"Sent 3: 0 confirmed, 3 returned. {FULL}",
                "CommandError: returned: no queue is bound to exchange amq.topic for key '': nobody listens; "
                "3 messages are gone.",
            ],
        ),
    ],
)  # fmt: skip
def test_what_was_sent_is_told_although_the_output_is_full(
    vhost: str, run_process: ProcessStarter, target: list[str], code: int, said: list[str]
) -> None:
    assert mq("publish", "x", "--queue", "q", "--declare").code == 0
    line = '"$0" manage.py mq publish x --count 3 "$@" > /dev/full'
    sender = run_process.program("sh", "-c", line, sys.executable, *target)
    assert (sender.wait(), sender.lines) == (code, said)


def test_what_was_returned_is_told_although_nobody_reads_the_output(vhost: str, run_process: ProcessStarter) -> None:
    # The shell's own pipeline would end with the reader's exit code.
    line = '("$0" manage.py mq publish x --count 3 --exchange amq.topic; echo "ended with $?" >&2) | true'
    sender = run_process.program("sh", "-c", line, sys.executable)
    sender.wait_for_line("^ended with 1$")
    assert "3 messages are gone." in sender.output


def test_stopped_before_anything_was_sent_is_no_success(run_process: ProcessStarter) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        url = f"amqp://127.0.0.1:{server.getsockname()[1]}/"
        sender = run_process("mq", "publish", "x", "--queue", "q", AMQP_URL=url)
        server.settimeout(20)
        peer, _ = server.accept()  # and never a word
        sender.send(signal.SIGINT)
        assert (sender.wait(), sender.output.strip()) == (1, "CommandError: Stopped before anything was sent.")
        peer.close()


@pytest.mark.parametrize(
    ("there", "code", "said"),
    [
        ("", 1, ["Sent 0: 0 confirmed, 0 returned.", "CommandError: Stopped before anything was sent."]),
        ("a\nb\n", 0, ["Sent 2: 2 confirmed, 0 returned."]),
        (
            "a\nhalf a l", 1,
            [
                "Sent 1: 1 confirmed, 0 returned.",
                "CommandError: Stopped before all were sent: 8 bytes of a line without its end are dropped.",
            ],
        ),
    ],
)  # fmt: skip
def test_stopped_in_a_stream_of_lines_it_says_what_was_not_sent(
    vhost: str, run_process: ProcessStarter, tmp_path: Path, there: str, code: int, said: list[str]
) -> None:
    os.mkfifo(tmp_path / "lines")
    line = 'exec "$0" manage.py mq publish --queue q --declare --lines < "$1"'
    sender = run_process.program("sh", "-c", line, sys.executable, str(tmp_path / "lines"))
    with (tmp_path / "lines").open("w") as writer:
        writer.write(there)
        writer.flush()
        eventually(lambda: stands(vhost, "q") and queue_length(vhost, "q") == there.count("\n"))
        sender.send(signal.SIGINT)
        assert (sender.wait(), sender.lines) == (code, said)


@pytest.mark.parametrize(
    ("closed", "code", "said"),
    [
        ("x >&-", 1, "CommandError: Standard output is closed: there is nowhere to write to."),
        ("<&-", 2, "CommandError: There is nothing to send"),
        ("- <&-", 1, "CommandError: Standard input cannot be read: it is closed."),
    ],
)
def test_a_closed_descriptor_is_one_line(run_process: ProcessStarter, closed: str, code: int, said: str) -> None:
    sender = run_process.program("sh", "-c", f'"$0" manage.py mq publish --queue q {closed}', sys.executable)
    assert sender.wait() == code
    assert len(sender.lines) == 1
    assert sender.lines[0].startswith(said)


def test_a_vhost_that_is_not_there_is_exit_code_3(broker: RabbitMQNode, settings: Any) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": [broker.url("nix")]}
    assert mq("publish", "x", "--queue", "q").code == 3


def test_plain_clients_get_what_was_published(vhost: str) -> None:
    with plain_channel(vhost) as channel:
        queue = channel.queue_declare("", exclusive=True).method.queue
        channel.queue_bind(queue, "amq.headers", arguments={"x-match": "any", "pages": 12, "format": "pdf"})
        assert mq("publish", "x", "--exchange", "amq.headers", "--header", "pages=12").code == 0
        assert channel.basic_get(queue)[2] == b"x"
        assert mq("publish", "x", "--exchange", "amq.headers", "--header", "pages=13").code == 1

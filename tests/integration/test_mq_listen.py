"""`mq listen`, `mq peek`, `mq purge`: what they mean by a name, what they print, and how they end."""

import json
import re
import signal
import socket
import sys
from contextlib import closing
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker

from messaging import routing
from messaging.broker.connection import opened
from messaging.mq import listen
from messaging.mq.management.commands import mq as mq_command
from messaging.mq.sources import Source, Wish, find
from script.services.rabbitmq import RabbitMQNode
from tests.support.amqp import plain_channel, queue_length, unacknowledged
from tests.support.command_line import mq
from tests.support.processes import ProcessStarter, RunningProcess
from tests.support.waiting import eventually


def publish(*arguments: str) -> None:
    said = mq("publish", *arguments)
    assert said.code == 0, said.err


def listening(run_process: ProcessStarter, *arguments: str) -> RunningProcess:
    process = run_process("mq", "listen", *arguments)
    process.wait_for_line("^Listening on")
    return process


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


# --- what a name means -------------------------------------------------------------------------------------


@pytest.fixture
def stands(vhost: str, settings: Any) -> None:
    """A world in which names are taken twice; ours is called `app`."""
    settings.MESSAGING = {**settings.MESSAGING, "APP_ID": "app"}
    with plain_channel(vhost) as channel:
        for queue in ("both", "q", "app.dead_letters"):
            channel.queue_declare(queue)
        for exchange, type_ in {
            "both": "topic", "logs": "fanout", "app.logs": "topic", "alone": "fanout", "app.events": "topic",
            "levels": "direct", "offers": "headers",
        }.items():  # fmt: skip
            channel.exchange_declare(exchange, type_)


def found(name: str, **wish: Any) -> Source:
    with opened("test") as connection:
        return find(connection, Wish(name, **wish))


def meant(name: str, **wish: Any) -> tuple[str, str, list[str]]:
    source = found(name, **wish)
    return source.kind, source.name, [binding.key for binding in source.bindings]


def test_a_name_is_the_queue_or_the_exchange_that_there_is(stands: None) -> None:
    assert meant("q") == ("queue", "q", [])
    assert meant("dead_letters") == ("queue", "app.dead_letters", [])
    assert meant("events") == ("exchange", "app.events", ["#"])
    assert meant("logs") == ("exchange", "logs", [""])
    assert meant("amq.topic", keys=["a", "b.#"]) == ("exchange", "amq.topic", ["a", "b.#"])


def test_keys_mean_nothing_to_a_fanout_exchange_so_another_is_meant(stands: None) -> None:
    assert meant("logs", keys=["orders.#", "*.error"]) == ("exchange", "app.logs", ["orders.#", "*.error"])
    alone = found("alone", keys=["orders.#"])
    assert (alone.name, alone.note) == (
        "alone",
        "alone is a fanout exchange: it passes on everything, whatever the key.",
    )


@pytest.mark.parametrize(
    ("keys", "note"),
    [
        (["app.logs", "a.#", "*.b"], ""),
        (["app.logs", "a.#", "a.**"], "In key 'a.**' the word '**' stands for itself: patterns are * and # alone, "
                                      "between dots."),
        (["levels", "info"], ""),
        (["levels", "info.*"], "levels is a direct exchange, without patterns: 'info.*' takes that very key alone."),
    ],
)  # fmt: skip
def test_a_key_that_is_less_of_a_pattern_than_it_looks_is_told(stands: None, keys: list[str], note: str) -> None:
    assert found(keys[0], keys=keys[1:]).note == note


def test_one_that_is_both_has_to_be_told_apart(stands: None) -> None:
    assert mq("listen", "both").err == "both is a queue and an exchange: say --queue or --exchange."
    assert meant("both", kind="queue") == ("queue", "both", [])
    assert meant("both", kind="exchange") == ("exchange", "both", ["#"])
    assert meant("both", keys=["a"]) == ("exchange", "both", ["a"])


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nix"], 1, "There is no queue and no exchange nix, nor app.nix."),
        (["nix", "key"], 1, "There is no exchange nix, nor app.nix."),
        (["nix", "--queue"], 1, "There is no queue nix, nor app.nix."),
        (["logs", "--type", "topic"], 1, "exchange logs exists with type=fanout, you asked for it with type=topic."),
        (["levels"], 2, "levels is a direct exchange: it goes by equal keys: say which"),
        (["offers", "key"], 2, "offers is a headers exchange: it goes by headers, not by keys"),
        (["app.logs", "--header", "a=b"], 2, "app.logs is a topic exchange: it does not go by headers"),
        (["q", "key", "--queue"], 2, "Keys, --header and --type are an exchange's"),
        (["q", "k" * 256], 2, "A key has 256 bytes; AMQP has room for 255."),
        (["new", "--exchange", "--declare"], 2, "To declare an exchange say its type"),
        (["q", "--transient"], 2, "go with --declare"),
        (["alone", "--declare"], 2, "There is an exchange alone: leave --declare out to listen to it, or say --queue"),
        (["both", "--declare", "--transient"], 2, "There is an exchange both: leave --declare out"),
        (
            ["q", "--declare", "--transient", "--argument", "x-max-priority=5"],
            1,
            "queue q exists without x-max-priority, you asked",
        ),
        (["logs", "--type", "topic", "--declare", "--transient"], 1, "exists with type=fanout, you asked for it with"),
    ],
)
def test_what_cannot_be_listened_to_is_one_line(stands: None, arguments: list[str], code: int, said: str) -> None:
    told = mq("listen", *arguments)
    assert (told.code, told.out) == (code, "")
    assert said in told.err
    assert len(told.err.splitlines()) == 1


def test_no_queue_is_made_of_an_exchanges_name_unless_somebody_says_queue(stands: None, vhost: str) -> None:
    assert mq("listen", "alone", "--declare").code == 2
    with plain_channel(vhost) as channel, pytest.raises(ChannelClosedByBroker, match="NOT_FOUND"):
        channel.queue_declare("alone", passive=True)
    assert meant("alone", kind="queue", declare=True) == ("queue", "alone", [])
    assert meant("alone", type="fanout", declare=True, durable=False) == ("exchange", "alone", [""])


def test_the_logs_can_be_listened_to_before_anybody_has_logged(vhost: str, settings: Any) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "APP_ID": "app"}
    told = mq("listen", "logs", "#.error")
    assert (told.code, told.err) == (
        1,
        "There is no exchange app.logs yet: processes write to it with LOG_TO_BROKER=1.",
    )

    settings.MESSAGING = {**settings.MESSAGING, "LOG_TO_BROKER": True}
    assert meant("logs", keys=["#.error"]) == ("exchange", "app.logs", ["#.error"])


def test_keys_may_follow_options(vhost: str, run_process: ProcessStarter) -> None:
    publish("x", "--queue", "q", "--declare")
    listener = run_process("mq", "listen", "amq.direct", "--json", "info", "--prefetch", "5", "error")
    listener.wait_for_line("^Listening on exchange amq.direct for info, error. Press CTRL")


def test_the_helps_teach_a_pattern_that_takes_the_errors_of_every_logger() -> None:
    for examples in (mq_command.EXAMPLES, listen.EXAMPLES):
        [taught] = re.findall(r'mq listen logs "orders.#" "(\S+)"', examples)
        assert all(routing.matches(taught, key) for key in ("warren.error", "django.request.error"))


def test_an_exclusive_queue_of_another_is_told(vhost: str) -> None:
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


def test_a_terminal_is_told_what_comes_again(vhost: str) -> None:
    with plain_channel(vhost) as channel:
        put(channel, b"x")
        first, again = Terminal(), Terminal()
        call_command("mq", "peek", "q", no_color=True, stdout=first)
        call_command("mq", "peek", "q", no_color=True, stdout=again)
    assert (first.getvalue(), again.getvalue()) == ("q  x\n", "q  x (delivered again)\n")


def test_a_file_gets_each_line_at_once(vhost: str, run_process: ProcessStarter, tmp_path: Path) -> None:
    publish("first", "--queue", "q", "--declare")
    log = tmp_path / "log"
    process = run_process.program("sh", "-c", f'"$0" manage.py mq listen q > {log}', sys.executable)
    eventually(lambda: log.exists() and log.read_text() == "q\tfirst\n")
    assert process.is_alive


# --- what goes back ----------------------------------------------------------------------------------------


def test_what_is_kept_goes_back_in_its_order(vhost: str) -> None:
    publish("x", "--queue", "q", "--declare", "--count", "3")
    said = mq("listen", "q", "--keep", "--max-messages", "2")
    assert (len(said.lines), said.err.splitlines()[-1]) == (2, "Stopped after 2 messages; all went back.")
    eventually(lambda: queue_length(vhost, "q") == 3)


def test_looking_takes_nothing_away(vhost: str) -> None:
    with plain_channel(vhost) as channel:
        put(channel, *[b"%d" % number for number in range(12)])
        assert mq("peek", "q").lines == [f"q\t{number}" for number in range(10)]
        assert mq("peek", "q", "--count", "100").lines == [f"q\t{number}" for number in range(12)]
    assert queue_length(vhost, "q") == 12


@pytest.mark.parametrize("how", ["--ack", "--auto-ack"])
def test_no_more_is_taken_than_is_wanted(vhost: str, how: str) -> None:
    with plain_channel(vhost) as channel:
        put(channel, *[b"%d" % number for number in range(200)])
    assert mq("listen", "q", how, "--max-messages", "2").lines == ["q\t0", "q\t1"]
    eventually(lambda: queue_length(vhost, "q") == 198)


@pytest.mark.parametrize("kind", ["classic", "quorum"])
@pytest.mark.parametrize("how", ["--ack", "--auto-ack"])
@pytest.mark.parametrize("wanted", [1, 3])
def test_the_message_after_the_last_one_wanted_is_not_touched(vhost: str, kind: str, how: str, wanted: int) -> None:
    with plain_channel(vhost) as channel:
        channel.queue_declare("q", durable=True, arguments={"x-queue-type": kind})
        channel.confirm_delivery()
        for number in range(5):
            channel.basic_publish("", "q", b"%d" % number)
        taken = mq("listen", "q", how, "--max-messages", str(wanted), "--json").lines
        eventually(lambda: queue_length(vhost, "q") == 5 - wanted)
        left = [channel.basic_get("q") for _ in range(5 - wanted)]

    assert [json.loads(line)["body"] for line in taken] == [str(number) for number in range(wanted)]
    assert [body for _, _, body in left] == [b"%d" % number for number in range(wanted, 5)]
    assert [method.redelivered for method, _, _ in left] == [False] * (5 - wanted)


def test_what_came_before_the_last_one_wanted_was_done_goes_back(vhost: str) -> None:
    with plain_channel(vhost) as channel:
        put(channel, *[b"%d" % number for number in range(50)])
        assert mq("listen", "q", "--max-messages", "2", "--prefetch", "20").lines == ["q\t0", "q\t1"]
        eventually(lambda: queue_length(vhost, "q") == 48)
        assert mq("peek", "q", "--count", "2").lines == ["q\t2", "q\t3"]


def test_the_last_one_wanted_of_an_exchange_ends_it_well(vhost: str, run_process: ProcessStarter) -> None:
    listener = listening(run_process, "amq.fanout", "--max-messages", "2")
    mq("publish", "x", "--exchange", "amq.fanout", "--count", "3")  # the third may find nobody any more
    assert listener.wait() == 0
    assert listener.lines[1:] == ["\tx", "\tx", "Stopped after 2 messages."]


def test_with_auto_ack_the_broker_forgets_what_it_sent(
    vhost: str, broker: RabbitMQNode, run_process: ProcessStarter
) -> None:
    publish("work.", "--queue", "q", "--declare", "--count", "2")
    listener = listening(run_process, "q", "--auto-ack", "--dots", "3600")
    listener.wait_for_line("^q\twork.")
    listener.kill()
    assert (queue_length(vhost, "q"), unacknowledged(broker, vhost, "q")) == (0, 0)


def test_with_auto_ack_what_has_come_is_printed_still_at_the_end(vhost: str, run_process: ProcessStarter) -> None:
    publish("work.", "--queue", "q", "--declare", "--count", "500")
    listener = listening(run_process, "q", "--auto-ack", "--dots", "3600")
    listener.wait_for_line("^q\twork.")
    eventually(lambda: queue_length(vhost, "q") == 0)
    assert listener.stop() == 0
    assert listener.lines.count("q\twork.") == 500
    assert listener.lines[-1] == "Stopped after 500 messages."


def test_with_auto_ack_a_flood_does_not_keep_it_from_stopping(vhost: str, run_process: ProcessStarter) -> None:
    listener = listening(run_process, "q", "--auto-ack", "--declare")
    flood = run_process("mq", "publish", "drop", "--queue", "q", "--count", "1000000")
    listener.wait_for_line("^q\tdrop")
    assert listener.stop(timeout=20) == 0
    assert flood.is_alive


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


def test_ctrl_c_ends_it_well_while_it_waits_or_works(vhost: str, run_process: ProcessStarter) -> None:
    publish("work.", "--queue", "q", "--declare")
    listener = listening(run_process, "q", "--dots", "3600")
    listener.wait_for_line("^q\twork.")
    listener.send(signal.SIGINT)
    assert (listener.wait(), listener.lines[-1]) == (0, "Stopped after 1 message.")
    eventually(lambda: queue_length(vhost, "q") == 1)  # its work was not done

    idle = listening(run_process, "amq.fanout")
    idle.send(signal.SIGINT)
    assert (idle.wait(), idle.lines[-1]) == (0, "Stopped after 0 messages.")


def test_ctrl_c_ends_it_well_while_the_broker_is_frozen(
    breakable_broker: RabbitMQNode, run_process: ProcessStarter
) -> None:
    listener = listening(run_process, "amq.fanout")
    breakable_broker.pause()
    listener.send(signal.SIGINT)
    assert (listener.wait(), listener.lines[-1]) == (0, "Stopped after 0 messages.")


def test_ctrl_c_ends_it_well_while_it_connects(run_process: ProcessStarter) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        listener = run_process("mq", "listen", "q", AMQP_URL=f"amqp://127.0.0.1:{server.getsockname()[1]}/")
        server.settimeout(20)
        peer, _ = server.accept()  # and never a word
        listener.send(signal.SIGINT)
        assert (listener.wait(), listener.output) == (0, "")
        peer.close()


def test_a_queue_that_is_deleted_ends_it(vhost: str, run_process: ProcessStarter) -> None:
    publish("x", "--queue", "q", "--declare")
    listener = listening(run_process, "q", "--declare")
    listener.wait_for_line("^q\tx")
    with plain_channel(vhost) as channel:
        channel.queue_delete("q")
    assert listener.wait() == 1
    assert "Queue q was gone while we listened. Nothing more can come." in listener.lines[-1]
    assert "Traceback" not in listener.output


def test_it_outlives_the_broker(breakable_broker: RabbitMQNode, run_process: ProcessStarter) -> None:
    publish("held", "--queue", "durable", "--declare")
    holding = listening(run_process, "durable", "--keep")
    subscribed = listening(run_process, "logs", "--type", "fanout", "--declare")
    declaring = listening(run_process, "gone", "--declare", "--transient")
    holding.wait_for_line("^durable\theld")

    breakable_broker.kill()
    for each in (holding, subscribed, declaring):
        each.wait_for_line(r"^The connection is lost \(.+\)\. Connecting again…")
    breakable_broker.start()

    subscribed.wait_for_line("^Listening again on exchange logs. What was published since .* was missed.", timeout=60)
    declaring.wait_for_line("^Listening again on queue gone.", timeout=60)
    eventually(lambda: holding.lines.count("durable\theld") == 2)  # nothing was acknowledged, so nothing is lost
    publish("new", "--exchange", "logs")
    publish("new", "--queue", "gone")
    subscribed.wait_for_line("\tnew$")
    declaring.wait_for_line("\tnew$")
    assert [each.stop() for each in (holding, subscribed, declaring)] == [0, 0, 0]


def test_a_queue_that_did_not_outlive_the_broker_ends_it(
    breakable_broker: RabbitMQNode, run_process: ProcessStarter
) -> None:
    publish("x", "--queue", "transient", "--declare", "--transient")
    listener = listening(run_process, "transient")
    breakable_broker.restart()
    assert listener.wait(60) == 1
    assert "Queue transient was gone when the connection came back." in listener.lines[-1]


# --- purge -------------------------------------------------------------------------------------------------


def test_purge_deletes_what_waits_and_says_how_much(vhost: str) -> None:
    publish("x", "--queue", "q", "--declare", "--count", "3")
    said = mq("purge", "q", "--yes")
    assert (said.code, said.out) == (0, "3 deleted from q.\n")
    assert queue_length(vhost, "q") == 0
    assert "There is no queue nix" in mq("purge", "nix", "--yes").err


def test_purge_asks_first(vhost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    publish("x", "--queue", "q", "--declare", "--count", "3")
    assert (mq("purge", "q").code, mq("purge", "q").err) == (2, "Nobody can be asked here: say --yes.")
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    with pytest.raises(CommandError, match="Nothing was deleted"):
        call_command("mq", "purge", "q")
    assert queue_length(vhost, "q") == 3
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    call_command("mq", "purge", "q", stdout=StringIO())
    assert queue_length(vhost, "q") == 0

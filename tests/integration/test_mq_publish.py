"""`mq publish`: what was asked for arrives, and what did not arrive is said."""

import socket
import sys
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from messaging.broker.publisher import Publisher
from script.services.rabbitmq import RabbitMQNode
from tests.support.amqp import plain_channel, queue_length
from tests.support.command_line import ctrl_c, mq, publish
from tests.support.network import BrokerNetwork
from tests.support.processes import ProcessStarter
from tests.support.running import take_all
from tests.support.waiting import eventually

# --- what arrives ------------------------------------------------------------------------------------------


def test_a_text_arrives_as_it_was_given(vhost: str) -> None:
    said = mq("publish", "你好 World!", "--queue", "hello", "--declare")
    assert (said.code, said.out) == (0, "Sent and confirmed.\n")
    [(properties, body)] = take_all(vhost, "hello")  # persistent
    assert (body.decode(), properties.content_type, properties.delivery_mode) == ("你好 World!", "text/plain", 2)
    with plain_channel(vhost) as channel:
        channel.queue_declare("hello", durable=True)  # and the queue is durable


def test_headers_priority_and_expiration_arrive(vhost: str) -> None:
    said = mq(
        "publish", "x", "--queue", "q", "--declare", "--priority", "7", "--expiration", "60000",
        "--header", "format=pdf", "--header", "pages=12", "--header", 'year="2026"', "--header", "empty=",
    )  # fmt: skip
    assert said.code == 0, said.err
    [(properties, _)] = take_all(vhost, "q")
    assert properties.headers == {"format": "pdf", "pages": 12, "year": "2026", "empty": ""}
    assert (properties.priority, properties.expiration) == (7, "60000")


def test_a_thousand_are_sent_and_counted(vhost: str) -> None:
    said = mq("publish", "x", "--queue", "q", "--declare", "--count", "1000")
    assert (said.code, said.out) == (0, "Sent 1000: 1000 confirmed, 0 returned.\n")
    # A quorum queue counts what the broker has read once it is written.
    eventually(lambda: queue_length(vhost, "q") == 1000)


# --- what does not -----------------------------------------------------------------------------------------


def test_a_message_that_no_queue_takes_is_reported_as_returned(vhost: str) -> None:
    said = mq("publish", "x", "--exchange", "amq.topic", "--key", "kern.critical")
    assert (said.code, said.out) == (1, "")
    assert said.err == (
        "returned: no queue is bound to exchange amq.topic for key 'kern.critical'; the message is gone."
    )
    several = mq("publish", "x", "--exchange", "amq.topic", "--count", "600")
    assert several.code == 1
    assert "600 returned" in several.out
    assert several.err.endswith("600 messages are gone.")


def test_a_missing_queue_is_reported(vhost: str) -> None:
    said = mq("publish", "x", "--queue", "nix")
    assert (said.code, said.err) == (1, "returned: there is no queue nix; the message is gone. --declare makes it.")


def test_a_missing_exchange_is_reported(vhost: str) -> None:
    said = mq("publish", "x", "--exchange", "nix", "--count", "3")
    assert said.code == 1
    assert "no exchange 'nix'" in said.err
    assert said.out.startswith("Sent 3: 0 confirmed")


def test_a_full_queue_is_reported(vhost: str) -> None:
    limits = ["--argument", "x-max-length=1", "--argument", "x-overflow=reject-publish"]
    said = mq("publish", "x", "--queue", "small", "--declare", *limits, "--count", "3")
    assert said.code == 1
    assert (said.out, said.err.split(":")[0]) == ("Sent 3: 1 confirmed, 0 returned, 2 nacked.\n", "Not taken")


def test_a_difference_is_reported_with_both_sides(vhost: str) -> None:
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
def test_a_reserved_name_is_refused_without_advice_about_accounts(vhost: str, target: list[str]) -> None:
    said = mq("publish", "x", *target, "--declare")
    assert said.code == 1
    assert said.err.endswith("No account may: take a name of your own, that does not begin with amq.")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["x", "--exchange", "e", "--key", "ü" * 128], "The routing key has 256 bytes; AMQP has room for 255."),
        (["x", "--queue", "q" * 256], "The name has 256 bytes; AMQP has room for 255."),
        (["x", "--queue", "q", "--header", "format"], "--header 'format': write NAME=VALUE, such as format=pdf."),
        (["x", "--queue", "q", "--header", "=pdf"], "--header '=pdf': write NAME=VALUE"),
        (["x", "--queue", "q", "--argument", "n", "--declare"], "--argument 'n': write NAME=VALUE"),
        (["x", "--queue", "q", "--argument", "n=\udcff", "--declare"], "AMQP cannot carry a value of --argument"),
        (["x", "--queue", "q", "--argument", f"n={2**64}", "--declare"], "AMQP cannot carry a value of --argument"),
        (["x", "--queue", "q", "--key", "k"], "--key goes with --exchange"),
        (["x", "--exchange", "e", "--declare"], "To declare an exchange say its type"),
        (["x", "--queue", "q", "--transient"], "go with --declare"),
        (["x", "--queue", "q", "--expiration", "soon"], "'soon' is not a whole number from 0"),
        (["x", "--queue", "q", "--priority", "999"], "'999' is not a whole number from 0 to 255"),
        (["x", "--queue", "q", "--count", "0"], "'0' is not a whole number from 1"),
        (["x"], "one of the arguments --queue --exchange is required"),
    ],
)
def test_wrong_arguments_are_one_line_before_anything_is_sent(arguments: list[str], said: str) -> None:
    told = mq("publish", *arguments)
    assert said in told.err
    assert len(told.err.splitlines()) == 1
    assert told.code in {1, 2}


def test_a_header_that_amqp_cannot_carry_is_reported(vhost: str) -> None:
    said = mq("publish", "x", "--queue", "q", "--declare", "--header", f"n={10**30}")
    assert said.code == 1
    assert said.err.startswith("It cannot be sent: ")


# --- without a broker --------------------------------------------------------------------------------------


def test_an_absent_broker_is_one_line_and_exit_code_3() -> None:
    said = mq("publish", "x", "--queue", "q")
    assert (said.code, said.err) == (3, "RabbitMQ: connection refused: nothing listens at 127.0.0.1:1. Check AMQP_URL.")


def test_a_frozen_broker_is_exit_code_7(network: BrokerNetwork, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    publish("x", "--queue", "q", "--declare")
    patient = settings.MESSAGING
    settings.MESSAGING = {**patient, "CONNECT_TIMEOUT": 0.5}
    network.pause()
    said = mq("publish", "x", "--queue", "q")
    assert said.code == 7
    assert said.err.startswith("RabbitMQ: the broker did not answer in time (127.0.0.1:")

    network.resume()
    settings.MESSAGING = {**patient, "PUBLISH_TIMEOUT": 0.5}
    reach = Publisher.reach

    def reach_and_freeze(self: Publisher, given_up: Callable[[], bool]) -> bool:
        reached = reach(self, given_up)
        network.pause()
        return reached

    monkeypatch.setattr(Publisher, "reach", reach_and_freeze)
    said = mq("publish", "x", "--queue", "q", "--count", "2")
    assert (said.code, said.out) == (7, "Sent 2: 0 confirmed, 0 returned, 2 unknown.\n")
    assert said.err.endswith("What has no confirm may have arrived, or may yet.")


def test_returned_messages_are_an_error_even_if_the_output_is_closed(vhost: str, run_process: ProcessStarter) -> None:
    # The shell's own pipeline would end with the reader's exit code.
    line = '("$0" manage.py mq publish x --count 3 --exchange amq.topic; echo "ended with $?" >&2) | true'
    sender = run_process.program("sh", "-c", line, sys.executable)
    sender.wait_for_line("^ended with 1$")
    assert "3 messages are gone." in sender.output


def test_stopped_before_anything_was_sent_is_no_success(settings: Any) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": [f"amqp://127.0.0.1:{server.getsockname()[1]}/"]}
        with ctrl_c(server.accept):  # the peer never answers
            said = mq("publish", "x", "--queue", "q")
    assert (said.code, said.err) == (1, "Stopped before anything was sent.")


def test_a_closed_standard_output_is_one_line(run_process: ProcessStarter) -> None:
    sender = run_process.program("sh", "-c", '"$0" manage.py mq publish x --queue q >&-', sys.executable)
    assert sender.wait() == 1
    assert sender.lines == ["CommandError: Standard output is closed: there is nowhere to write to."]


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

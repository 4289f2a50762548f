"""Streams that other applications declare: what `mq listen | peek | purge | call` do with one."""

from collections.abc import Iterator

import pytest
from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel

from messaging.broker.connection import opened
from messaging.broker.queue_answers import is_stream
from messaging.monitoring import status
from tests.support.amqp import plain_channel
from tests.support.command_line import mq
from tests.support.consuming import a_consumer, registered
from tests.support.listening import Listen
from tests.support.network import BrokerNetwork
from tests.support.running import running_worker
from tests.support.waiting import eventually

STREAM = {"x-queue-type": "stream"}


@pytest.fixture
def history(vhost: str) -> None:
    """A vhost with a stream of three messages, and queues that are none."""
    with plain_channel(vhost) as channel:
        channel.queue_declare("history", durable=True, arguments={**STREAM, "x-max-length-bytes": 1_000_000})
        channel.queue_declare("sure", durable=True, arguments={"x-queue-type": "quorum"})
        channel.queue_declare("hello")
        for number in (1, 2, 3):
            channel.basic_publish("", "history", f"message {number}".encode(), BasicProperties(delivery_mode=2))


@pytest.fixture
def channel(vhost: str, history: None) -> Iterator[BlockingChannel]:
    """A plain channel into it."""
    with plain_channel(vhost) as channel:
        yield channel


def test_a_stream_is_recognised_and_no_message_is_taken(channel: BlockingChannel) -> None:
    channel.basic_publish("", "hello", b"stays")

    with opened("test") as connection:
        told = {name: is_stream(connection, name) for name in ("history", "sure", "hello", "not there")}

    assert told == {"history": True, "sure": False, "hello": False, "not there": False}
    assert mq("queues", "hello").out.split("\t")[2] == "1"


def test_listening_to_a_stream_says_that_it_begins_behind_what_is_there(
    channel: BlockingChannel, listen: Listen
) -> None:
    listener = listen("history", "--max-messages", "1")
    assert "history is a stream: what it holds already is not shown, unless by --from-start" in listener.err.getvalue()
    channel.basic_publish("", "history", b"message 4")
    listener.join()

    assert listener.lines == ["history\tmessage 4"]


def test_a_listener_continues_behind_the_last_message_when_its_connection_returns(
    history: None, network: BrokerNetwork, vhost: str, listen: Listen
) -> None:
    listener = listen("history", "--from-start", "--max-messages", "4")
    eventually(lambda: len(listener.lines) == 3)
    network.kill()
    network.start()
    listener.wait_for("Listening again")
    with plain_channel(vhost) as fresh:
        fresh.basic_publish("", "history", b"message 4")
    listener.join()

    assert listener.lines == [f"history\tmessage {number}" for number in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["listen", "hello", "--from-start"], 2, "--from-start is for streams, and queue hello is none"),
        (["peek", "history"], 1, "A stream keeps its messages"),
        (["purge", "history", "--yes"], 1, "x-max-age"),
    ],
)
def test_what_cannot_be_done_with_a_stream_is_one_sentence(
    channel: BlockingChannel, arguments: list[str], code: int, words: str
) -> None:
    said = mq(*arguments)

    assert said.code == code
    assert words in said.err
    assert "AMQP_URL" not in said.err


@pytest.mark.django_db(transaction=True)
def test_a_consumer_does_not_read_a_stream_that_has_the_name_of_its_queue(
    vhost: str, caplog: pytest.LogCaptureFixture
) -> None:
    consumer = a_consumer()
    with plain_channel(vhost) as channel:
        channel.queue_declare(consumer.queue, durable=True, arguments=STREAM)

    with registered(consumer), running_worker(consumer):
        eventually(lambda: "it is a stream, which shows nothing of what came" in caplog.text)
        wrong = status.look().wrong

    assert any("is a stream, from which consumer notes misses" in each for each in wrong)

"""`manage.py tutorial`: every lesson's lines work as they are printed, and objects of other clients are not touched."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from urllib.parse import urlsplit

import pika
import pytest

from messaging.topology import desired
from messaging.tutorial.lessons import LESSONS
from messaging.validation.addresses import broker_address
from script.services.rabbitmq import RabbitMQNode
from tests.support.amqp import plain_channel, queue_length
from tests.support.network import BrokerNetwork
from tests.support.processes import ProcessStarter
from tests.support.rpc import raw_channel
from tests.support.waiting import eventually

#: They run processes, which need a database, but use none of it that could differ.
pytestmark = pytest.mark.timeout(300)

#: Seconds for all lessons on a busy machine.
LONG = 240


def existing_names(broker: RabbitMQNode, url: str) -> set[str]:
    """The names of all queues and exchanges of the vhost, without the broker's own exchanges."""
    vhost = broker_address(url).vhost
    names: set[str] = set()
    for kind in ("list_queues", "list_exchanges"):
        names.update(broker.ctl(kind, "--vhost", vhost, "--no-table-headers", "-q", "name").splitlines())
    return {name for name in names if name and not name.startswith("amq.")}


def test_every_lesson_works_on_a_fresh_vhost_and_leaves_nothing(
    vhost: str, broker: RabbitMQNode, run_process: ProcessStarter
) -> None:
    checking = run_process("tutorial", "--check")

    assert checking.wait(LONG) == 0
    told = [line.partition(": ")[0] for line in checking.lines]
    assert told[:-1] == [lesson.name for lesson in LESSONS]
    assert checking.lines[0] == "hello: sent 'Hello World!', received it; queue hello had 1 message before and 0 after"
    assert checking.lines[-1] == "All 9 lessons work."
    # Every server of procedures declares where it puts what it cannot answer; that is no lesson's.
    assert existing_names(broker, vhost) == {desired.dead_letter_queue()}


def test_it_prints_what_is_typed_and_where(vhost: str, run_process: ProcessStarter) -> None:
    everything, one = run_process("tutorial"), run_process("tutorial", "Work queue")

    assert (everything.wait(), one.wait()) == (0, 0)
    lines = [line for lesson in LESSONS for line in lesson.lines.values()]
    assert [each for each in everything.lines if "terminal " in each] == [
        f"  terminal {line.terminal}   {line}" for line in lines
    ]
    assert "  terminal 3   " in one.output
    assert "hello" not in one.output


def test_an_unknown_lesson_is_a_usage_error_that_names_those_there_are(vhost: str, run_process: ProcessStarter) -> None:
    asking = run_process("tutorial", "cooking")

    assert asking.wait() == 2
    assert "Lessons: hello, work-queue, fanout," in asking.lines[-1]


def test_without_a_broker_it_says_so(network: BrokerNetwork, run_process: ProcessStarter) -> None:
    network.kill()
    checking = run_process("tutorial", "--check")

    assert checking.wait() == 3
    where = f"127.0.0.1:{network.port}"
    assert checking.lines == [
        f"CommandError: RabbitMQ: connection refused: nothing listens at {where}. Check AMQP_URL."
    ]


@contextmanager
def foreign_exchange(name: str, type: str) -> Iterator[None]:
    with raw_channel() as channel:
        channel.exchange_declare(name, type, durable=True)
        yield


def test_an_exchange_of_another_type_is_left_alone_and_another_vhost_advised(
    vhost: str, broker: RabbitMQNode, run_process: ProcessStarter
) -> None:
    with foreign_exchange("logs", "topic"):
        checking, cleaning = run_process("tutorial", "fanout", "--check"), run_process("tutorial", "--cleanup")

        assert (checking.wait(), cleaning.wait()) == (1, 0)
    differs = "exchange logs exists with type=topic, the lessons declare it with type=fanout: it is somebody's own"
    assert f"fanout: FAILED: {differs} and was not touched; use another virtual host" in checking.output
    assert f"{differs}, and left alone." in cleaning.output
    assert existing_names(broker, vhost) == {"logs"}


def test_messages_of_an_earlier_run_fail_the_check(vhost: str, run_process: ProcessStarter) -> None:
    with raw_channel() as channel:
        channel.queue_declare("hello")
        channel.basic_publish("", "hello", b"Hello World!")
    refused = run_process("tutorial", "hello", "--check")

    assert refused.wait() == 1
    assert "hello: FAILED: queue hello holds 1 message from before, so it was not touched" in refused.output
    assert queue_length(vhost, "hello") == 1
    cleaning = run_process("tutorial", "--cleanup")
    assert cleaning.wait() == 0
    assert cleaning.lines == ["Removed queue hello with 1 message."]
    assert run_process("tutorial", "hello", "--check").wait(LONG) == 0


def test_a_queue_in_use_is_not_touched(vhost: str, run_process: ProcessStarter) -> None:
    seen: list[bytes] = []
    with raw_channel() as channel:
        channel.queue_declare("rpc_queue")
        channel.basic_consume("rpc_queue", lambda *arrived: seen.append(arrived[3]), auto_ack=True)
        checking, cleaning = run_process("tutorial", "rpc", "--check"), run_process("tutorial", "--cleanup")

        assert (checking.wait(), cleaning.wait()) == (1, 1)
        channel.connection.process_data_events(0)
        assert channel.queue_declare("rpc_queue", passive=True).method.consumer_count == 1
    assert "rpc: FAILED: queue rpc_queue has 1 consumer: somebody uses it, so it was not touched" in checking.output
    assert "queue rpc_queue was not removed: it has 1 consumer." in cleaning.output
    assert seen == []


def test_an_empty_queue_that_existed_before_is_used_and_stays(
    vhost: str, broker: RabbitMQNode, run_process: ProcessStarter
) -> None:
    with raw_channel() as channel:
        channel.queue_declare("hello")

    assert run_process("tutorial", "hello", "--check").wait(LONG) == 0
    assert existing_names(broker, vhost) == {"hello"}


def test_messages_of_another_client_fail_the_check(vhost: str, run_process: ProcessStarter) -> None:
    done = threading.Event()

    def chatter() -> None:
        with plain_channel(vhost) as channel:
            channel.exchange_declare("logs", "fanout")
            while not done.is_set():
                channel.basic_publish("logs", "", b"info: Hello World!")
                done.wait(0.01)

    other = threading.Thread(target=chatter)
    other.start()
    try:
        checking = run_process("tutorial", "fanout", "--check")
        assert checking.wait(LONG) == 1
    finally:
        done.set()
        other.join(10)
    assert "does somebody else send?" in checking.output


def test_a_listener_of_another_client_fails_the_check(vhost: str, run_process: ProcessStarter) -> None:
    with raw_channel() as channel:
        channel.exchange_declare("logs", "fanout")
        theirs = channel.queue_declare("", exclusive=True).method.queue
        channel.queue_bind(theirs, "logs")
        checking = run_process("tutorial", "fanout", "--check")

        assert checking.wait(LONG) == 1
    assert 'mq publish "info: is anybody there?"' in checking.output
    assert "should have been returned; it ended with 0: Sent and confirmed." in checking.output


def test_an_account_that_may_not_declare_fails_the_check_with_the_reason(
    vhost: str, broker: RabbitMQNode, run_process: ProcessStarter
) -> None:
    at = urlsplit(vhost)
    broker.api("PUT", "/users/pupil", {"password": "pupil", "tags": ""})
    try:
        nothing = {"configure": "^$", "write": ".*", "read": ".*"}
        broker.api("PUT", f"/permissions/{at.path[1:]}/pupil", nothing)
        url = f"amqp://pupil:pupil@{at.hostname}:{at.port}{at.path}"
        checking = run_process("tutorial", "hello", "--check", AMQP_URL=url)

        assert checking.wait(LONG) == 1
    finally:
        broker.api("DELETE", "/users/pupil")
    assert "hello: FAILED: " in checking.output
    assert "ACCESS_REFUSED" in checking.output or "RabbitMQ refuses: " in checking.output
    assert "Traceback" not in checking.output


def test_interrupted_it_ends_what_it_began_and_removes_what_it_made(
    vhost: str, broker: RabbitMQNode, run_process: ProcessStarter
) -> None:
    checking = run_process("tutorial", "work-queue", "--check")
    with raw_channel() as channel:
        eventually(lambda: consumers_of(channel.connection, "task_queue") == 2)
    checking.send(signal.SIGINT)
    checking.send(signal.SIGINT)  # nor does an impatient person leave its processes behind

    assert checking.wait(60) == 1
    assert "Interrupted. What had been started was stopped and removed." in checking.lines[-1]
    assert existing_names(broker, vhost) == set()


def test_interrupted_while_a_broker_does_not_answer_it_ends_at_once(run_process: ProcessStarter) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        silent.settimeout(20)
        checking = run_process("tutorial", "--check", AMQP_URL=f"amqp://127.0.0.1:{silent.getsockname()[1]}/")
        with closing(silent.accept()[0]):
            checking.send(signal.SIGINT)
            assert checking.wait(20) == 130
    assert checking.lines[-1] == "CommandError: Interrupted."


def consumers_of(connection: pika.BlockingConnection, queue: str) -> int:
    """How many consume the queue; 0 while it is not there."""
    channel = connection.channel()
    try:
        count: int = channel.queue_declare(queue, passive=True).method.consumer_count
    except pika.exceptions.ChannelClosedByBroker:
        return 0
    channel.close()
    return count

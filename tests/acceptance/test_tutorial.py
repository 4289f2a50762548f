"""`manage.py tutorial`: every lesson's lines work as they are printed, and objects of other clients are not touched."""

from __future__ import annotations

from typing import Any, Self
from urllib.parse import urlsplit

import pika
import pytest

from messaging.topology import desired
from messaging.tutorial.check import CHECKS
from messaging.tutorial.lessons import LESSONS
from messaging.tutorial.terminals import Failed
from messaging.validation.addresses import broker_address
from script.services.rabbitmq import RabbitMQNode
from tests.support.amqp import queue_length
from tests.support.command_line import Said, ctrl_c, manage
from tests.support.environment import process_environment
from tests.support.processes import ProcessStarter
from tests.support.rpc import raw_channel

#: Seconds for all lessons on a busy machine.
LONG = 240
LINES = [line for lesson in LESSONS for line in lesson.lines.values()]


def existing_names(broker: RabbitMQNode, url: str) -> set[str]:
    """The names of all queues and exchanges of the vhost, without the broker's own exchanges."""
    vhost = broker_address(url).vhost
    found = [each["name"] for kind in ("queues", "exchanges") for each in broker.api("GET", f"/{kind}/{vhost}")]
    return {name for name in found if name and not name.startswith("amq.")}


@pytest.fixture
def environment(vhost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines of a lesson that this process checks find the test's broker."""
    for name, value in process_environment().items():
        monkeypatch.setenv(name, value)


def check(lesson: str) -> Said:
    return manage("tutorial", lesson, "--check")


def cleanup() -> Said:
    return manage("tutorial", "--cleanup")


def test_every_lesson_works_and_leaves_only_what_existed_before(
    vhost: str, broker: RabbitMQNode, run_process: ProcessStarter
) -> None:
    with raw_channel() as channel:
        channel.queue_declare("hello")  # as the older tutorials declare it
    checking = run_process("tutorial", "--check")

    assert checking.wait(LONG) == 0
    told = [line.partition(": ")[0] for line in checking.lines]
    assert told[:-1] == [lesson.name for lesson in LESSONS]
    assert checking.lines[0] == "hello: sent 'Hello World!', received it; queue hello had 1 message before and 0 after"
    assert checking.lines[-1] == "All 9 lessons work."
    # Every server of procedures declares where it puts what it cannot answer; that is no lesson's.
    assert existing_names(broker, vhost) == {"hello", desired.dead_letter_queue()}


def test_it_prints_what_is_typed_and_where() -> None:
    everything, one = manage("tutorial").lines, manage("tutorial", "Work queue").out

    assert [each for each in everything if "terminal " in each] == [
        f"  terminal {line.terminal}   {line}" for line in LINES
    ]
    assert "  terminal 3   " in one
    assert "hello" not in one
    unknown = manage("tutorial", "cooking")
    assert unknown.code == 2
    assert "Lessons: hello, work-queue, fanout," in unknown.err


def test_without_a_broker_it_says_so() -> None:
    refused = "RabbitMQ: connection refused: nothing listens at 127.0.0.1:1. Check AMQP_URL."
    assert manage("tutorial", "--check") == Said(3, "", refused)


def test_an_exchange_of_another_type_is_left_alone_and_another_vhost_advised(vhost: str, broker: RabbitMQNode) -> None:
    with raw_channel() as channel:
        channel.exchange_declare("logs", "topic", durable=True)
    checked, cleaned = check("fanout"), cleanup()

    assert (checked.code, cleaned.code) == (1, 0)
    differs = (
        "exchange logs exists with type=topic, the lessons declare it with type=fanout: it belongs to another client"
    )
    assert f"fanout: FAILED: {differs} and was not touched; use another virtual host" in checked.out
    assert f"{differs}, and is left alone." in cleaned.out
    assert existing_names(broker, vhost) == {"logs"}


@pytest.mark.usefixtures("environment", "transactional_db")
def test_messages_of_an_earlier_run_fail_the_check_until_they_are_cleaned_up(vhost: str) -> None:
    with raw_channel() as channel:
        channel.queue_declare("hello")
        channel.basic_publish("", "hello", b"Hello World!")
    checked = check("hello")

    assert checked.code == 1
    assert "hello: FAILED: queue hello holds 1 message from before, so it was not touched" in checked.out
    assert queue_length(vhost, "hello") == 1
    assert cleanup() == Said(0, "Removed queue hello with 1 message.\n", "")
    assert check("hello").code == 0


def test_a_queue_in_use_is_not_touched(vhost: str) -> None:
    with raw_channel() as channel:
        channel.queue_declare("rpc_queue")
        seen: list[bytes] = []
        channel.basic_consume("rpc_queue", lambda *arrived: seen.append(arrived[3]), auto_ack=True)
        checked, cleaned = check("rpc"), cleanup()

        assert (checked.code, cleaned.code) == (1, 1)
        channel.connection.process_data_events(0)
        assert channel.queue_declare("rpc_queue", passive=True).method.consumer_count == 1
    assert "rpc: FAILED: queue rpc_queue has 1 consumer: another client uses it, so it was not touched" in checked.out
    assert "queue rpc_queue was not removed: it is in use by 1 consumer." in cleaned.out
    assert seen == []


class Played:
    """Stands in for the terminals of a lesson, each of which printed these lines and ended with exit code 1."""

    def __init__(self, *lines: str) -> None:
        self.out = list(lines)
        self.line, self.last_words, self.code = "manage.py mq …", lines[0], 1

    def begin(self, name: str) -> Self:
        return self

    def start(self, *names: str) -> list[Self]:
        return [self for _ in names]

    def run(self, name: str) -> list[str]:
        return self.out

    def wait_for_lines(self, count: int) -> None: ...

    def stop(self) -> None: ...

    def end(self) -> int:
        return self.code


def test_what_another_client_sends_or_receives_fails_the_check() -> None:
    fanout: Any = CHECKS["fanout"]
    terminals = Played("returned: no queue is bound", "\tinfo: Hello World!")
    with pytest.raises(Failed, match="does another client send"):
        fanout(terminals)
    terminals.last_words, terminals.code = "Sent and confirmed.", 0
    with pytest.raises(Failed, match="should have been returned; it ended with 0: Sent and confirmed"):
        fanout(terminals)


@pytest.mark.usefixtures("environment", "transactional_db")
def test_an_account_that_may_not_declare_fails_the_check_with_the_reason(
    vhost: str, broker: RabbitMQNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = urlsplit(vhost)
    broker.api("PUT", "/users/pupil", {"password": "pupil", "tags": ""})
    try:
        nothing = {"configure": "^$", "write": ".*", "read": ".*"}
        broker.api("PUT", f"/permissions/{at.path[1:]}/pupil", nothing)
        monkeypatch.setenv("AMQP_URL", f"amqp://pupil:pupil@{at.hostname}:{at.port}{at.path}")
        checked = check("hello")
    finally:
        broker.api("DELETE", "/users/pupil")
    assert checked.code == 1
    assert "hello: FAILED: " in checked.out
    assert "RabbitMQ refuses: " in checked.out
    assert "Traceback" not in checked.out


@pytest.mark.usefixtures("environment", "transactional_db")
def test_interrupted_it_ends_what_it_began_and_removes_what_it_made(vhost: str, broker: RabbitMQNode) -> None:
    # Nor does an impatient person, who presses it twice, leave its processes behind.
    with raw_channel() as channel, ctrl_c(lambda: consumers_of(channel.connection, "task_queue") == 2, times=2):
        checked = check("work-queue")

    assert checked == Said(1, "", "Interrupted. What had been started was stopped and removed.")
    assert existing_names(broker, vhost) == set()


def consumers_of(connection: pika.BlockingConnection, queue: str) -> int:
    """How many consume the queue; 0 while it is not there."""
    channel = connection.channel()
    try:
        count: int = channel.queue_declare(queue, passive=True).method.consumer_count
    except pika.exceptions.ChannelClosedByBroker:
        return 0
    channel.close()
    return count

"""Programs of the RabbitMQ tutorials beside our lines, as they are today and as they were, whoever comes first."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from messaging.broker.connection import Connection
from messaging.tutorial import cleanup
from messaging.tutorial.lessons import HELLO, WORK_QUEUE, Lesson
from tests.support.amqp import plain_channel
from tests.support.classic import OLDER, TODAY
from tests.support.command_line import mq
from tests.support.running import take_all


def typed(lesson: Lesson, line: str) -> list[str]:
    """The arguments of a lesson's line, after `mq`."""
    return shlex.split(lesson.lines[line].command)[1:]


@pytest.mark.parametrize(
    ("lesson", "queue", "theirs"),
    [
        (HELLO, "hello", TODAY),
        (HELLO, "hello", OLDER),
        (WORK_QUEUE, "task_queue", TODAY),
        (WORK_QUEUE, "task_queue", {"durable": True}),
    ],
)
def test_a_queue_of_a_tutorial_program_is_used_and_counts_as_the_lessons(
    vhost: str, lesson: Lesson, queue: str, theirs: dict[str, Any]
) -> None:
    with plain_channel(vhost) as channel:
        channel.queue_declare(queue, **theirs)
        said = mq(*typed(lesson, "send"))
        assert said.code == 0
        assert ("It is used as it is." in said.err) is (theirs != TODAY)
        channel.queue_declare(queue, **theirs)  # as their receiver does
        listened = mq("listen", queue, "--declare", "--queue-type", "quorum", "--max-messages", "1")
        assert listened.code == 0
        assert len(listened.lines) == 1
    connection = Connection("test").start()
    try:
        connection.reach()
        [made] = lesson.made
        found = cleanup.look(connection, made)
        assert found is not None
        assert found.differs == ""
    finally:
        connection.stop()


@pytest.mark.parametrize(("lesson", "queue"), [(HELLO, "hello"), (WORK_QUEUE, "task_queue")])
def test_a_tutorials_program_of_today_finds_what_we_declared(vhost: str, lesson: Lesson, queue: str) -> None:
    assert mq(*typed(lesson, "send")).code == 0
    with plain_channel(vhost) as channel:
        channel.queue_declare(queue, **TODAY)
        channel.basic_publish("", queue, b"theirs")
    assert take_all(vhost, queue)[-1][1] == b"theirs"


@pytest.mark.parametrize("durable", [False, True])
def test_an_exchange_of_a_tutorials_program_is_used_whether_it_is_durable_or_not(vhost: str, durable: bool) -> None:
    """The tutorials of today declare it transient; an application of one's own may have declared it durable."""
    with plain_channel(vhost) as channel:
        channel.exchange_declare("logs", "fanout", durable=durable)
        queue = channel.queue_declare("", exclusive=True).method.queue
        channel.queue_bind(queue, "logs")
        said = mq("publish", "x", "--exchange", "logs", "--declare", "--exchange-type", "fanout", "--transient")
        assert (said.code, "It is used as it is." in said.err) == (0, durable)

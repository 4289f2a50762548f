"""The private RabbitMQ node: it can be killed and comes back, and keeps away from everybody else's."""

import os
import subprocess
import sys
from pathlib import Path

import pika
import pytest

from script.services.owned import OWNER, ServiceError, owned_pids
from script.services.rabbitmq import RabbitMQNode
from tests.support.amqp import plain_channel

DURABLE = pika.BasicProperties(delivery_mode=2)


def test_a_killed_node_returns_on_its_port_with_its_messages_and_a_frozen_one_goes_on(breakable_broker, settings):
    url, port = settings.MESSAGING["AMQP_URLS"][0], breakable_broker.port
    with plain_channel(url) as channel:
        channel.queue_declare("classic", durable=True)
        channel.queue_declare("quorum, a moment old", durable=True, arguments={"x-queue-type": "quorum"})
        for queue in ("classic", "quorum, a moment old"):
            channel.basic_publish("", queue, b"x", DURABLE, mandatory=True)

    breakable_broker.kill()
    assert breakable_broker.pid is None
    assert owned_pids(breakable_broker.directory) == []
    with pytest.raises(pika.exceptions.AMQPConnectionError):
        pika.BlockingConnection(pika.URLParameters(url))
    breakable_broker.start()
    assert breakable_broker.port == port
    with plain_channel(url) as channel:
        assert [channel.basic_get(queue)[2] for queue in ("classic", "quorum, a moment old")] == [b"x", b"x"]

    breakable_broker.pause()
    with pytest.raises(TimeoutError):
        breakable_broker.api("GET", "/overview", timeout=0.5)
    breakable_broker.resume()
    assert breakable_broker.api("GET", "/overview")


def test_a_process_of_a_stranger_whose_pid_is_in_the_state_file_is_left_alone(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        node = RabbitMQNode(tmp_path)
        (tmp_path / "node.json").write_text(f'{{"pid": {stranger.pid}}}')
        assert node.pid is None
        node.stop()
        assert stranger.poll() is None


def test_processes_that_a_killed_node_left_are_ended(tmp_path):
    marked = {**os.environ, OWNER: str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=marked) as leftover:
        RabbitMQNode(tmp_path).stop()
        assert leftover.wait(5) != 0


def test_the_person_s_own_erlang_cookie_is_not_touched(broker):
    assert (broker.directory / ".erlang.cookie").stat().st_mode & 0o777 == 0o400
    own = Path.home() / ".erlang.cookie"
    assert not own.exists() or own.read_text() != (broker.directory / ".erlang.cookie").read_text()


def test_a_node_that_cannot_boot_says_why(tmp_path):
    (tmp_path / "data").write_text("a file where a directory must be")
    with pytest.raises((ServiceError, OSError), match="data"):
        RabbitMQNode(tmp_path).start()

"""The private RabbitMQ node: it can be broken and mended, and keeps away from everybody else's."""

import os
import subprocess
import sys
from pathlib import Path

import pika
import pytest

from script.services.owned import OWNER, ServiceError, owned_pids
from script.services.rabbitmq import RabbitMQNode
from tests.support.waiting import eventually


def publish_one(url: str) -> None:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare("kept", durable=True)
        channel.basic_publish("", "kept", b"x", pika.BasicProperties(delivery_mode=2), mandatory=True)


def count(url: str) -> int:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        return int(connection.channel().queue_declare("kept", passive=True).method.message_count)


def test_a_vhost_is_empty_and_of_this_test_alone(vhost, broker):
    name = vhost.rpartition("/")[2]
    assert broker.api("GET", f"/queues/{name}") == []
    publish_one(vhost)
    assert count(vhost) == 1


def test_after_kill_9_the_node_returns_on_the_same_port_with_its_messages(breakable_broker, settings):
    url = settings.MESSAGING["AMQP_URLS"][0]
    port = breakable_broker.port
    publish_one(url)
    breakable_broker.kill()
    with pytest.raises(pika.exceptions.AMQPConnectionError):
        count(url)
    breakable_broker.start()
    assert breakable_broker.port == port
    assert count(url) == 1


def test_a_quorum_queue_survives_kill_9_however_young_it_is(breakable_broker, settings):
    url = settings.MESSAGING["AMQP_URLS"][0]
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare("young", durable=True, arguments={"x-queue-type": "quorum"})
        channel.basic_publish("", "young", b"x", pika.BasicProperties(delivery_mode=2), mandatory=True)
    breakable_broker.kill()
    breakable_broker.start()
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        assert connection.channel().basic_get("young")[2] == b"x"


def test_a_paused_node_can_be_killed(breakable_broker):
    breakable_broker.pause()
    breakable_broker.kill()
    assert breakable_broker.pid is None


def test_a_paused_node_answers_only_after_it_is_resumed(breakable_broker):
    breakable_broker.pause()
    with pytest.raises(TimeoutError):
        breakable_broker.api("GET", "/overview", timeout=0.5)
    breakable_broker.resume()
    assert eventually(lambda: breakable_broker.api("GET", "/overview", timeout=5))


def test_a_memory_alarm_is_raised_and_cleared(breakable_broker):
    with breakable_broker.memory_alarm():
        assert "memory" in breakable_broker.ctl("eval", "rabbit_alarm:get_alarms().")
    eventually(lambda: "memory" not in breakable_broker.ctl("eval", "rabbit_alarm:get_alarms()."))


def test_a_test_may_leave_the_node_stopped_and_the_next_one_finds_it_whole(breakable_broker):
    breakable_broker.ctl("stop_app")


def test_the_node_is_whole_again(breakable_broker):
    assert breakable_broker.api("GET", "/overview")


def test_two_nodes_side_by_side_do_not_meet(broker, breakable_broker):
    assert broker.port != breakable_broker.port
    assert broker.password != breakable_broker.password
    one, other = (node.ctl("cluster_status", "--formatter", "json") for node in (broker, breakable_broker))
    assert '"running_nodes":["warren@localhost"]' in one
    assert '"running_nodes":["warren@localhost"]' in other


def test_stopping_leaves_no_process_and_a_second_stop_is_harmless(tmp_path):
    node = RabbitMQNode(tmp_path, throwaway=True)
    node.start()
    assert len(owned_pids(tmp_path)) >= 2  # the Erlang machine and epmd
    node.stop()
    assert owned_pids(tmp_path) == []
    node.stop()


def test_a_pid_of_a_stranger_in_the_state_file_is_left_alone(tmp_path):
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


def test_the_own_cookie_of_the_person_is_not_touched(broker):
    assert (broker.directory / ".erlang.cookie").stat().st_mode & 0o777 == 0o400
    own = Path.home() / ".erlang.cookie"
    assert not own.exists() or own.read_text() != (broker.directory / ".erlang.cookie").read_text()


def test_a_node_that_cannot_boot_says_why(tmp_path):
    (tmp_path / "data").write_text("a file where a directory must be")
    with pytest.raises((ServiceError, OSError), match="data"):
        RabbitMQNode(tmp_path).start()

"""Limits of a real broker: reported in its own words, waited out, and noticed soon once they are raised."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from messaging import conf
from messaging.broker.connection import Connection
from messaging.exceptions import BrokerUnavailable, LimitReached
from messaging.topology import desired
from messaging.topology.declare import Declaration
from script.services.rabbitmq import RabbitMQNode
from tests.support.command_line import mq
from tests.support.consuming import a_consumer, registered
from tests.support.processes import ProcessStarter
from tests.support.running import running_relay, running_worker
from tests.support.waiting import eventually

#: Seconds within which a raised limit is noticed, on a busy machine.
SOON = 8.0


@pytest.fixture
def limit(broker: RabbitMQNode, vhost: str) -> Callable[..., None]:
    """Limit the vhost of this test: `limit(max_connections=1)`; without arguments there are no limits."""
    return lambda **limits: set_limits(broker, f"/vhost-limits/{conf.get().brokers[0].vhost}", **limits)


def set_limits(broker: RabbitMQNode, path: str, **limits: int) -> None:
    for name in ("max_connections", "max_queues" if "vhost" in path else "max_channels"):
        method, body = ("PUT", {"value": limits[name]}) if name in limits else ("DELETE", None)
        broker.api(method, f"{path}/{name.replace('_', '-')}", body)


@pytest.fixture
def user(broker: RabbitMQNode, vhost: str, settings: Any) -> Iterator[str]:
    """A user for this test alone; `settings.MESSAGING` uses it."""
    name = conf.get().brokers[0].vhost
    broker.api("PUT", f"/users/{name}", {"password": "pw", "tags": ""})
    broker.api("PUT", f"/permissions/{name}/{name}", {"configure": ".*", "write": ".*", "read": ".*"})
    settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": [f"amqp://{name}:pw@127.0.0.1:{broker.port}/{name}"]}
    yield name
    broker.api("DELETE", f"/users/{name}")


@contextmanager
def connecting() -> Iterator[Connection]:
    connection = Connection("test").start()
    try:
        yield connection
    finally:
        connection.stop()


def test_limits_on_connections_are_reported_and_waited_out(
    broker: RabbitMQNode, user: str, limit: Callable[..., None]
) -> None:
    set_limits(broker, f"/user-limits/{user}", max_connections=0)
    with connecting() as connection:
        with pytest.raises(LimitReached, match=r"the broker is at a limit: .*user connection limit \(0\) is reached"):
            connection.reach()
        limit(max_connections=0)
        set_limits(broker, f"/user-limits/{user}")
        eventually(lambda: re.search(r"access to vhost .* connection limit \(0\) is reached", connection.last_error))
        assert not connection.refused
        limit()
        assert connection.wait_until_open(SOON)


def test_a_limit_on_a_users_channels_is_reported_and_waited_out(
    broker: RabbitMQNode, user: str, caplog: pytest.LogCaptureFixture
) -> None:
    set_limits(broker, f"/user-limits/{user}", max_channels=0)
    with connecting() as connection, caplog.at_level("INFO"):
        connection.reach()
        with pytest.raises(BrokerUnavailable, match=r"maximum allowed user limit of \(0\)"):
            connection.call("exchange_declare", exchange="amq.topic", passive=True)
        assert (type(connection.error), connection.refused) == (LimitReached, False)
        assert connection.wait_until_open(SOON)
        with pytest.raises(BrokerUnavailable):
            connection.call("exchange_declare", exchange="amq.topic", passive=True)
        set_limits(broker, f"/user-limits/{user}")
        assert connection.wait_until_open(SOON)
        connection.call("exchange_declare", exchange="amq.topic", passive=True)
    # It was open and lost each time; that is logged once.
    assert [caplog.text.count(event) for event in ("amqp.connected", "amqp.lost")] == [1, 1]


def test_a_connection_without_a_free_channel_stays_open_and_reports_it(vhost: str, settings: Any) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": [f"{vhost}?channel_max=1"]}
    with connecting() as connection:
        connection.reach()
        connection.call("exchange_declare", exchange="amq.topic", passive=True)  # takes the only channel
        taken: list[bool] = []
        connection.call_soon(lambda: taken.append(connection.open_channel(lambda _: None, lambda *_: None)))
        eventually(lambda: taken)
        assert (taken, connection.is_open, connection.generation) == ([False], True, 1)
        assert "channel_max" in connection.last_error


@pytest.mark.django_db(transaction=True)
def test_long_running_programs_wait_at_a_limit_and_commands_report_it(
    limit: Callable[..., None], run_process: ProcessStarter
) -> None:
    limit(max_connections=0)
    server = run_process("run_rpc_worker", "shipping.quote")
    consumer = a_consumer()
    with registered(consumer), running_relay() as relay, running_worker(consumer) as worker:
        server.wait_for_line(r"^Broker: amqp://warren:\*\*\*@127\.0\.0\.1:\d+/test-\w+$")
        server.wait_for_line(r"amqp\.unreachable.*connection limit \(0\) is reached.*role=.?rpc server")
        for connection in (relay._publisher.connection, worker._connection):
            eventually(lambda connection=connection: "connection limit (0) is reached" in connection.last_error)
        for command in (["listen", "q"], ["publish", "x", "--queue", "q"], ["call", "fib", "30"]):
            said = mq(*command)
            assert said.code == 3
            assert "connection limit (0) is reached" in said.err
            assert "AMQP_URL" not in said.err

        limit(max_queues=0)
        server.wait_for_line(r"rpc\.queue_lost.*queue limit in vhost", SOON)
        for connection in (relay._publisher.connection, worker._connection):
            assert connection.wait_until_open(SOON)
        limit()
        server.wait_for_line("rpc.serving", SOON)
        assert "rpc.queue_differs" not in server.output  # a limit is no difference
    assert server.stop() == 0


def test_a_limit_on_queues_is_reported_in_the_brokers_words_and_heals(limit: Callable[..., None]) -> None:
    limit(max_queues=0)
    said = mq("publish", "x", "--queue", "q", "--declare")
    assert said.code == 1
    assert "queue limit in vhost" in said.err
    assert "raise the limit" in said.err
    with connecting() as connection:
        connection.reach()
        declaration = Declaration(connection, quiet=True)
        wanted = desired.topology([a_consumer()])
        problems = declaration.declare(wanted)
        assert "queue limit in vhost" in problems[a_consumer().queue]
        limit()
        assert declaration.declare(wanted) == {}


def test_a_vhost_that_is_down_is_reported_and_waited_for(broker: RabbitMQNode, vhost: str) -> None:
    name = conf.get().brokers[0].vhost
    broker.ctl("eval", f'rabbit_vhost_sup_sup:stop_and_delete_vhost(<<"{name}">>).')
    with connecting() as connection:
        with pytest.raises(BrokerUnavailable, match=f"vhost '{name}' is down"):
            connection.reach()
        assert not connection.refused
        broker.ctl("restart_vhost", "-p", name)
        assert connection.wait_until_open(SOON)

"""A thread that cannot start: nothing is raised after a commit, nothing half-built stays, and it is started again."""

import errno
import logging
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from unittest.mock import Mock

import pytest
from django.db import DatabaseError, transaction

from messaging import conf, outbox, processes, rpc
from messaging.broker import queue_answers
from messaging.broker.connection import Connection, opened
from messaging.effects import EffectKind
from messaging.exceptions import NotDone, ThreadNotStarted
from messaging.models import Effect, OutboxMessage
from messaging.monitoring import log_handler
from messaging.relay import leases
from messaging.relay import thread as relay_thread
from messaging.relay.relay import Relay
from messaging.retry import RetryPolicy
from messaging.rpc import client as rpc_client
from messaging.worker import effect_runner, ledger, time_limit
from orders.sms_gateway import SmsGateway
from tests.support.consuming import Noted
from tests.support.waiting import eventually

FOREVER = 3600.0
REFUSED = "can't start new thread"
Limit = Callable[[], None]


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Iterator[Limit]:
    """A process that may start no thread, until the fixture is called."""
    real = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError(REFUSED)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    monkeypatch.setattr(processes, "PAUSE", 0.0)
    monkeypatch.setattr(relay_thread, "PAUSE", 0.0)
    yield lambda: monkeypatch.setattr(threading.Thread, "start", real)
    monkeypatch.setattr(threading.Thread, "start", real)


@pytest.fixture
def web_process(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[relay_thread.RelayThread]:
    """As in a long-lived process, whose broker is away."""
    settings.MESSAGING = {**settings.MESSAGING, "RELAY_THREAD": True, "AMQP_URLS": ["amqp://127.0.0.1:1/"]}
    monkeypatch.setattr(conf, "DRAIN_TIMEOUT", 0.05)
    home = relay_thread.RelayThread()
    monkeypatch.setattr(relay_thread, "_mine", home)
    relay_thread.enable()
    yield home
    relay_thread.stop()


def add(*texts: str) -> list[OutboxMessage]:
    with transaction.atomic():
        return outbox.add(*[Noted(text=text) for text in texts])


def leased() -> int:
    return OutboxMessage.objects.exclude(lease_token=None).count()


# --- The relay's thread --------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_a_commit_succeeds_while_no_thread_can_start_and_its_rows_are_free(
    web_process: relay_thread.RelayThread, limit: Limit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_thread, "PAUSE", FOREVER)
    rows = add("x", "y")
    assert leased() == 0
    assert [each.pk for each in leases.claim(10, FOREVER)] == [each.pk for each in rows]
    assert (web_process.relay, web_process.thread) == (None, None)

    # For a while rows are not even leased.
    assert relay_thread.lease_token() is None
    monkeypatch.setattr(leases, "end", lambda *_: pytest.fail("they were not leased"))
    [row] = add("z")
    assert [each.pk for each in leases.claim(10, FOREVER)] == [row.pk]


@pytest.mark.django_db(transaction=True)
def test_a_thread_that_could_not_start_is_started_again_by_the_next_request_or_event(
    web_process: relay_thread.RelayThread, limit: Limit
) -> None:
    add("x")
    limit()
    relay_thread.enable()
    assert web_process.thread is not None
    assert web_process.thread.is_alive()
    add("y")
    assert leased() == 1


@pytest.mark.django_db(transaction=True)
def test_a_thread_that_has_ended_is_started_again_by_the_next_request_or_event(
    web_process: relay_thread.RelayThread,
) -> None:
    relay_thread.wake()
    for start_again in (relay_thread.enable, lambda: add("x")):
        ended = web_process.relay
        assert ended
        ended.stop(0)
        eventually(lambda: not web_process.runs())
        start_again()
        assert web_process.relay is not ended
        assert web_process.runs()
    assert web_process.thread
    assert web_process.thread.daemon, "another would keep its process from ending"
    assert relay_thread.lease_token() == web_process.token


def test_stopping_gives_the_relay_its_time_and_starts_no_thread_again(web_process: relay_thread.RelayThread) -> None:
    relay, thread = Mock(), Mock()
    web_process.relay, web_process.thread, web_process.should_run = relay, thread, True
    relay_thread.stop()
    relay.stop.assert_called_once_with(conf.DRAIN_TIMEOUT)
    thread.join.assert_called_once_with(conf.DRAIN_TIMEOUT + 2)
    relay_thread.enable()
    assert (web_process.relay, web_process.thread) == (None, None)


@pytest.mark.django_db(transaction=True)
def test_a_failed_hand_over_raises_nothing_after_the_commit_even_if_the_release_fails(
    web_process: relay_thread.RelayThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise DatabaseError("away")

    monkeypatch.setattr(relay_thread.RelayThread, "running", fails)
    monkeypatch.setattr(leases, "end", fails)
    add("x")
    assert OutboxMessage.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_rows_handed_to_a_relay_that_has_just_ended_go_free(web_process: relay_thread.RelayThread) -> None:
    ended = Relay()
    ended.stop(0)
    ended.run()
    web_process.relay, web_process.thread = ended, threading.current_thread()
    rows = add("x")
    assert ended.hand_over(rows, time.monotonic()) == 0
    assert leased() == 0
    web_process.thread = None


@pytest.mark.django_db(transaction=True)
def test_a_failing_callback_of_the_project_delays_no_event(web_process: relay_thread.RelayThread) -> None:
    def fails() -> None:
        raise ZeroDivisionError

    def commit() -> None:
        with transaction.atomic():
            transaction.on_commit(fails)
            outbox.add(Noted(text="x"))

    with pytest.raises(ZeroDivisionError):
        commit()
    assert web_process.relay is not None
    assert len(web_process.relay._handed) == 1


@pytest.mark.django_db(transaction=True)
def test_a_relay_without_a_thread_for_its_connection_frees_its_rows_and_tries_again(
    web_process: relay_thread.RelayThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuses = [True]
    start = Connection.start

    def sometimes(connection: Connection) -> Connection:
        if refuses[0]:
            raise ThreadNotStarted(REFUSED)
        return start(connection)

    def fails(*_: Any) -> None:
        raise DatabaseError("away")

    monkeypatch.setattr(Connection, "start", sometimes)
    monkeypatch.setattr(Relay, "_wait", lambda *_: None)
    alone = Relay()
    rows = add("x")
    token = relay_thread.lease_token()
    OutboxMessage.objects.update(lease_token=token, lease_until=rows[0].created_at + timedelta(days=1))
    rows = list(OutboxMessage.objects.all())
    alone.hand_over(rows, time.monotonic())
    with monkeypatch.context() as away:
        away.setattr(leases, "end", fails)
        with pytest.raises(ThreadNotStarted):
            alone._step()
    assert (leased(), len(alone._handed), alone.room()) == (1, 1, (0, 0))
    with pytest.raises(ThreadNotStarted):
        alone._step()
    assert (leased(), len(alone._handed), alone.room()) == (0, 0, (0, 0))

    refuses[0] = False
    alone._step()
    assert alone.room()[0] == leases.HAND_OVER_LIMIT
    alone._publisher.stop()


# --- Others --------------------------------------------------------------------------------------------------


def test_a_thread_is_started_again_until_it_starts_or_is_given_up(limit: Limit) -> None:
    tries: list[int] = []

    def begin() -> None:
        tries.append(1)
        if len(tries) == 3:
            limit()
        threading.Thread(target=lambda: None).start()

    assert processes.start_thread("it", begin, lambda: False)
    assert len(tries) == 3
    assert not processes.start_thread("it", begin, lambda: True)
    processes.join(threading.Thread(target=lambda: None), 1)


def test_a_connection_that_got_no_thread_can_be_started_again(limit: Limit, settings: Any) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": ["amqp://127.0.0.1:1/"]}
    never, connection = Connection("test"), Connection("test")
    for each in (never, connection):
        with pytest.raises(ThreadNotStarted, match=REFUSED):
            each.start()
    never.stop()  # ends at once
    limit()
    connection.start()
    assert connection._thread.is_alive()
    connection.stop()
    assert not connection._thread.is_alive()


def test_ctrl_c_just_after_the_thread_of_a_connection_began_ends_that_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would connect for ever beside whatever the process does next."""
    start = Connection.start

    def interrupted(connection: Connection) -> Connection:
        start(connection)
        raise KeyboardInterrupt

    monkeypatch.setattr(Connection, "start", interrupted)
    with pytest.raises(KeyboardInterrupt), opened("interrupted"):
        pass
    assert "amqp-interrupted" not in [thread.name for thread in threading.enumerate()]


def test_a_connection_whose_host_name_gets_no_thread_to_be_resolved_by_tries_again(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": ["amqp://localhost:1/"]}

    def refuse(timer: threading.Timer) -> None:
        raise RuntimeError(REFUSED)

    with monkeypatch.context() as limited:
        limited.setattr(threading.Timer, "start", refuse)
        connection = Connection("test").start()
        eventually(lambda: REFUSED in connection.last_error)
        assert not connection.refused
    eventually(lambda: "connection refused" in connection.last_error)
    connection.stop()


def test_a_process_without_file_descriptors_does_not_count_as_refused(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": ["amqp://localhost:1/"]}

    def fails(*_: Any, **__: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("messaging.broker.reconnecting.PikaConnection", fails)
    connection = Connection("test")
    monkeypatch.setattr(connection._ioloop, "call_later", lambda *_: None)
    connection._connect()
    assert (connection.refused, connection.last_error) == (False, "this process is at a limit: Too many open files")


def test_a_handler_runs_without_a_thread_for_time_limits(limit: Limit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_limit, "_limits", time_limit._Limits())
    ran: list[int] = []
    time_limit.run(lambda: ran.append(1), seconds=5, name="a handler")
    assert (ran, time_limit._limits.thread) == ([1], None)
    limit()
    time_limit.run(lambda: ran.append(2), seconds=5, name="a handler")
    assert ran == [1, 2]
    assert time_limit._limits.thread is not None


@pytest.mark.parametrize(("doubtful", "state"), [(False, Effect.State.INTENDED), (True, Effect.State.SENDING)])
def test_an_effect_without_a_thread_does_not_begin_and_costs_no_attempt(
    limit: Limit, doubtful: bool, state: str
) -> None:
    kind = EffectKind(name="it", send=lambda _: None, honours_keys=lambda: True, retry=RetryPolicy(max_attempts=1))
    row = Effect(name="it", message_id="m-1", consumer="c", attempts=9)
    claimed = ledger.Claimed(row, kind, doubtful, time.monotonic() + 5)
    [(_, result)] = effect_runner.carry_out([claimed])
    assert (result.state, result.rest) == (state, effect_runner.NOT_BEGUN_REST)
    assert REFUSED in result.error


def test_log_lines_get_a_thread_as_soon_as_one_can_start(limit: Limit, settings: Any) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": ["amqp://127.0.0.1:1/"]}
    handler = log_handler.BrokerHandler()
    handler.handle(logging.makeLogRecord({}))
    assert (handler.sender, handler.dropped) == (None, 1)
    limit()
    handler.handle(logging.makeLogRecord({}))
    assert handler.sender
    handler.close()


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (lambda: rpc.call("ask", timeout=5), rpc.NoBroker),  # not sent
        (lambda: SmsGateway(url="http://127.0.0.1:1/", token="t").send("+8", "hello", key="k", timeout=1), NotDone),
        (lambda: queue_answers._why_each_is_silent(["one", "two"]), ThreadNotStarted),  # a worker waits after it
    ],
    ids=["a call", "a text", "a question to queues"],
)
def test_without_a_thread_an_operation_fails_with_an_error_that_says_that_nothing_was_done(
    act: Callable[[], Any], error: type[Exception], limit: Limit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc_client, "_own", rpc_client._Own())
    with pytest.raises(error, match=REFUSED):
        act()
    assert rpc_client._own.connection is None

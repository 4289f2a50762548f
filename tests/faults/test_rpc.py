"""F77–F82: whatever happens to server, caller, broker or request, each call ends in time, and nothing loops."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from messaging import procedures, rpc
from messaging.rpc import client
from messaging.topology import desired
from orders.models import Product, QuietService
from script.services.rabbitmq import RabbitMQNode
from script.shopper import Shopper
from tests.support import failing_procedures, failpoints
from tests.support.amqp import unacknowledged
from tests.support.network import BrokerNetwork
from tests.support.processes import ProcessStarter, RunningProcess
from tests.support.repeats import repeats
from tests.support.rpc import got, raw_channel, raw_request
from tests.support.waiting import eventually

#: Seconds; a call that gets its answer or its error never takes them.
LONG = 60
DIRECT_REPLY = "amq.rabbitmq.reply-to."
EXPECTED = 42


@dataclass(frozen=True)
class Served:
    """A vhost of its own, and the server in it."""

    url: str
    worker: RunningProcess


@pytest.fixture(scope="module")
def one_server(broker: RabbitMQNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server process that has to survive what all tests send it."""
    name = f"rpc-{uuid4().hex[:12]}"
    url = broker.add_vhost(name)
    processes = ProcessStarter(tmp_path_factory.mktemp("rpc"))
    worker = processes("run_rpc_worker", **environment(), AMQP_URL=url, DATABASE_URL="sqlite:///:memory:")
    worker.wait_for_line("Serving", timeout=LONG)
    yield Served(url, worker)
    processes.end_all()
    broker.delete_vhost(name)


@pytest.fixture
def served(one_server: Served, settings: Any) -> Iterator[Served]:
    """The shared server; after the test it still runs, on the same connection, and answers the next request."""
    settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": [one_server.url]}
    lost = one_server.worker.output.count("amqp.lost")
    yield one_server
    with raw_channel() as channel:
        assert raw_request(channel, "rpc.double", b"21")[1] == EXPECTED
    assert one_server.worker.is_alive
    assert one_server.worker.output.count("amqp.lost") == lost


@pytest.fixture
def channel(served: Served) -> Iterator[BlockingChannel]:
    with raw_channel() as opened:
        yield opened


@pytest.fixture(autouse=True)
def _no_connection_is_left() -> Iterator[None]:
    yield
    client.close()


@pytest.fixture
def in_background() -> Iterator[Callable[..., Future[Any]]]:
    """Starts calls on threads."""
    with ThreadPoolExecutor(8) as threads:
        yield lambda *arguments, **named: threads.submit(rpc.call, *arguments, **named)


def environment(*faults: str | Callable[[], None]) -> dict[str, str]:
    """The environment of a server with the odd procedures, and no patience with those that do not end."""
    odd = failpoints.at(failing_procedures.declare, *faults, HANDLER_GRACE=0.5, RECONNECT_MAX=0.5)
    return {**odd, "RELAY_THREAD": "0"}


def start(run_process: ProcessStarter, *faults: str | Callable[[], None]) -> RunningProcess:
    """A server that serves."""
    (worker,) = start_several(run_process, 1, *faults)
    return worker


def start_several(run_process: ProcessStarter, number: int, *faults: str | Callable[[], None]) -> list[RunningProcess]:
    workers = [run_process("run_rpc_worker", **environment(*faults)) for _ in range(number)]
    for worker in workers:
        worker.wait_for_line("Serving", timeout=LONG)
    return workers


@contextmanager
def frozen(worker: RunningProcess) -> Iterator[None]:
    """Inside, the server holds what is sent to it and does nothing."""
    worker.send(signal.SIGSTOP)
    try:
        yield
    finally:
        worker.send(signal.SIGCONT)


def runs(what: str, *workers: RunningProcess) -> int:
    """How often a procedure was begun."""
    return sum(worker.lines.count(f"runs {what}") for worker in workers)


def assert_runs(times: int, what: str, *workers: RunningProcess) -> None:
    """What they print arrives a little later than their replies."""
    eventually(lambda: runs(what, *workers) >= times)
    assert runs(what, *workers) == times


def connect() -> None:
    """Open this process's connection, so that the next call's timeout is that of its request alone."""
    assert rpc.call("double", 21, timeout=LONG) == EXPECTED


def outcome(name: str, payload: Any = procedures.NO_ARGUMENTS, *, timeout: float = LONG) -> str:
    """The result of a call, or the name of its error."""
    try:
        return repr(rpc.call(name, payload, timeout=timeout))
    except rpc.RpcError as error:
        return type(error).__name__


def count(channel: BlockingChannel, queue: str) -> int:
    found: int = channel.queue_declare(queue, passive=True).method.message_count
    return found


def queues(broker: RabbitMQNode, url: str) -> dict[str, int]:
    """Every queue of the vhost and how many messages it holds, with consumers or not."""
    vhost = url.rpartition("/")[2]
    listed = broker.ctl("list_queues", "--vhost", vhost, "--no-table-headers", "name", "messages").splitlines()
    return {name: int(messages) for name, _, messages in (line.partition("\t") for line in listed)}


def reply_queue(broker: RabbitMQNode, url: str) -> str:
    """The queue of this process's replies; empty until it has called."""
    names = [each["name"] for each in broker.api("GET", f"/queues/{url.rpartition('/')[2]}?columns=name")]
    return next((name for name in names if name.startswith(procedures.REPLY_QUEUE_PREFIX)), "")


def dead_letter(channel: BlockingChannel) -> tuple[Any, bytes]:
    """The next dead letter: the latest of its deaths, and its body."""
    _, properties, body = eventually(lambda: got(channel, desired.dead_letter_queue()))
    return properties.headers["x-death"][0], body


# --- F77: what a request may hold ----------------------------------------------------------------------------


def test_a_request_with_any_correlation_id_gets_it_back(channel: BlockingChannel) -> None:
    """F77."""
    for correlation_id in (None, "x" * 255, b"\xff\xfe"):
        properties, answer = raw_request(channel, "rpc.double", b"21", correlation_id=correlation_id)
        assert (answer, properties.correlation_id) == (EXPECTED, correlation_id)


def test_a_request_without_reply_to_is_dead_with_its_reason_and_never_run(
    channel: BlockingChannel, served: Served
) -> None:
    """F77. Also if its headers fill a frame, to which a dead letter adds some, and if its sender wants a copy."""
    channel.queue_declare("bystander", durable=True)
    for headers in ({}, {"a": "x" * 130_900}, {"CC": ["bystander"]}):
        properties = pika.BasicProperties(correlation_id="x", headers=headers)
        channel.basic_publish("", "rpc.double", b"1002", properties)

        death, body = dead_letter(channel)
        assert (death["queue"], death["reason"], body) == ("rpc.double", "it has no reply_to", b"1002")
    assert runs("double 1002", served.worker) == 0
    assert count(channel, "bystander") == 1  # the sender's own copy: none goes with the dead letter
    channel.queue_delete("bystander")


def test_a_direct_reply_over_which_the_broker_closes_the_connection_costs_one_connection(
    vhost: str, run_process: ProcessStarter
) -> None:
    """F77."""
    workers = start_several(run_process, 2)
    # RabbitMQ 3.10 may close a connection over a quorum queue that two declare at once.
    lost = sum(worker.output.count("amqp.lost") for worker in workers)
    with raw_channel() as channel:
        channel.basic_publish("", "rpc.double", b"1005", pika.BasicProperties(reply_to=f"{DIRECT_REPLY}%.!"))

        eventually(lambda: runs("double 1005", *workers) == 1)
        eventually(lambda: outcome("double", 21, timeout=5) == "42", LONG)
        assert [worker.stop() for worker in workers] == [0, 0]  # all other requests are answered
        assert_runs(1, "double 1005", *workers)
        # RabbitMQ 3.10 closes the connection; others just send it back.
        assert sum(worker.output.count("amqp.lost") for worker in workers) <= lost + 1
        assert count(channel, desired.dead_letter_queue()) == 0


# --- What a procedure may do ---------------------------------------------------------------------------------


def test_a_procedure_that_never_returns_holds_up_no_other_and_is_ended(
    served: Served, in_background: Callable[..., Future[Any]]
) -> None:
    connect()
    patient, hasty = in_background("spin", 1, timeout=LONG), in_background("spin", 2, timeout=1)
    eventually(lambda: runs("spin 1", served.worker) and runs("spin 2", served.worker))

    assert rpc.call("double", 21, timeout=LONG) == EXPECTED
    with pytest.raises(rpc.RpcTimeout):
        hasty.result(LONG)
    with pytest.raises(rpc.RemoteError, match="HandlerTimeout"):
        patient.result(LONG)
    served.worker.wait_for_line(r"handler\.timeout.*spin")


def test_a_request_that_kills_its_servers_is_run_twice_and_then_dead(
    vhost: str, run_process: ProcessStarter, in_background: Callable[..., Future[Any]]
) -> None:
    """F77."""
    workers = start_several(run_process, 3)
    asked = in_background("die", 7, timeout=LONG)

    with pytest.raises(rpc.RemoteError, match="ServerLost: 2 servers were lost") as caught:
        asked.result(LONG)
    assert caught.value.type == "ServerLost"
    eventually(lambda: [worker.is_alive for worker in workers].count(False) == 2)
    assert_runs(2, "die 7", *workers)
    (survivor,) = [worker for worker in workers if worker.is_alive]
    survivor.wait_for_line(r"rpc\.given_up.*2 servers were lost")
    with raw_channel() as channel:
        death, body = dead_letter(channel)
        assert (death["queue"], json.loads(body)) == ("rpc.die", 7)
    assert rpc.call("double", 21, timeout=LONG) == EXPECTED

    # A procedure that cannot be ended ends its server, for the supervisor to restart.
    with pytest.raises(rpc.RpcTimeout):
        rpc.call("hang", 1, timeout=1)
    assert survivor.wait() == 1
    survivor.wait_for_line(r"handler\.stuck.*hang")


# --- F78: the caller is gone ---------------------------------------------------------------------------------


def test_the_reply_to_a_caller_that_is_gone_is_dropped_and_its_request_acknowledged_once(
    served: Served, channel: BlockingChannel, broker: RabbitMQNode
) -> None:
    """F78."""
    with raw_channel() as caller:
        replies = caller.queue_declare(f"{procedures.REPLY_QUEUE_PREFIX}gone", exclusive=True).method.queue
        body = b'{"number": 1006, "seconds": 0.5}'
        caller.basic_publish("", "rpc.nap", body, pika.BasicProperties(reply_to=replies))
        eventually(lambda: runs("nap 1006", served.worker) == 1)

    served.worker.wait_for_line(rf"rpc\.undelivered.*queue={replies}")
    eventually(lambda: queues(broker, served.url)["rpc.nap"] == 0)
    assert runs("nap 1006", served.worker) == 1


# --- F79: the server is gone ---------------------------------------------------------------------------------


def test_servers_killed_after_their_reply_after_their_work_and_before_it_cost_no_caller_its_answer(
    vhost: str, broker: RabbitMQNode, run_process: ProcessStarter, in_background: Callable[..., Future[Any]]
) -> None:
    """F79, F80. The last one has no other beside it."""
    for _ in repeats(short=1):
        ignored = client.connection().ignored_replies
        doomed = start(run_process, failing_procedures.never_acknowledge)
        assert rpc.call("double", 1, timeout=LONG) == 2
        other = start(run_process, failing_procedures.stop_before_the_second_reply)
        doomed.kill()  # its reply is sent, its request not acknowledged: a second reply comes, which no call takes
        eventually(lambda before=ignored: client.connection().ignored_replies == before + 1)
        assert_runs(2, "double 1", doomed, other)

        doomed = other
        asked = in_background("double", 2, timeout=LONG)
        eventually(lambda worker=doomed: runs("double 2", worker) == 1)
        other = start(run_process)
        assert not asked.done()
        doomed.kill()  # its work is done, and is done again
        assert asked.result(LONG) == 4
        assert_runs(1, "double 2", other)

        doomed = other
        doomed.send(signal.SIGSTOP)
        asked = in_background("double", 3, timeout=LONG)
        eventually(lambda: unacknowledged(broker, vhost, "rpc.double") == 1)
        other = start(run_process)
        doomed.kill()  # it holds the request and has not begun
        assert asked.result(LONG) == 6
        assert_runs(1, "double 3", other)
        assert runs("double 3", doomed) == 0
        other.wait_for_line(r"rpc\.redelivered.*queue=rpc\.double")

        other.send(signal.SIGSTOP)
        asked = in_background("double", 4, timeout=3)
        eventually(lambda: unacknowledged(broker, vhost, "rpc.double") == 1)
        other.kill()
        eventually(lambda: outcome("double", 1, timeout=1) == "NoServer")
        with pytest.raises(rpc.RpcTimeout):
            asked.result(LONG)


def test_a_server_that_was_frozen_skips_what_has_expired(served: Served) -> None:
    """F79."""
    connect()
    expired = served.worker.output.count("rpc.expired")
    with frozen(served.worker), pytest.raises(rpc.RpcTimeout):
        rpc.call("double", 1007, timeout=1)

    assert rpc.call("double", 21, timeout=LONG) == EXPECTED
    eventually(lambda: served.worker.output.count("rpc.expired") == expired + 1)
    assert runs("double 1007", served.worker) == 0


# --- F80: late, repeated and foreign replies -----------------------------------------------------------------


def test_a_late_reply_is_counted_and_the_next_call_gets_its_own(served: Served) -> None:
    """F80."""
    connect()
    with pytest.raises(rpc.RpcTimeout):
        rpc.call("nap", {"number": 1008, "seconds": 1.2}, timeout=1)

    assert rpc.call("double", 21, timeout=LONG) == EXPECTED
    eventually(lambda: client.connection().ignored_replies == 1)


def test_repeated_and_foreign_replies_are_counted_and_the_right_one_is_taken(
    served: Served, channel: BlockingChannel, broker: RabbitMQNode, in_background: Callable[..., Future[Any]]
) -> None:
    """F80."""
    with frozen(served.worker):
        asked = in_background("double", 1009, timeout=LONG)
        # With one call open, a reply without a correlation id would be its answer.
        other = in_background("double", 1010, timeout=LONG)
        eventually(lambda: len(client.connection()._calls) == 2)
        ours = eventually(lambda: reply_queue(broker, served.url))
        for foreign in (None, "", "unknown", b"\xff", str(uuid4())):
            channel.basic_publish("", ours, b'"forged"', pika.BasicProperties(correlation_id=foreign))
        eventually(lambda: client.connection().ignored_replies == 5)
        assert not asked.done()

    assert (asked.result(LONG), other.result(LONG)) == (2018, 2020)
    assert client.connection().ignored_replies == 5
    assert client.connection()._calls == {}


def test_a_reply_that_cannot_be_understood_is_reported_at_once(
    channel: BlockingChannel, in_background: Callable[..., Future[Any]]
) -> None:
    """F80."""
    queue = channel.queue_declare("", exclusive=False, auto_delete=True).method.queue
    error_without_one = {"content_encoding": "gzip", "headers": {procedures.STATUS_HEADER: "error"}}
    for body, properties, error in [
        (b"<html>", {}, rpc.BadReply),
        (b"", {}, rpc.BadReply),
        (b"[" * 100_000, {}, rpc.BadReply),
        (b"1", error_without_one, rpc.RemoteError),
        (b'"' + b"x" * 2_000_000 + b'"', {}, rpc.BadReply),
    ]:
        asked = in_background("odd", 1, timeout=LONG, queue=queue)
        _, request, _ = eventually(lambda: got(channel, queue))
        reply = pika.BasicProperties(correlation_id=request.correlation_id, **properties)
        channel.basic_publish("", request.reply_to, body, reply)
        with pytest.raises(error):
            asked.result(LONG)
    channel.queue_delete(queue)


def test_a_reply_queue_that_is_deleted_costs_the_calls_under_way_and_no_more(
    served: Served, broker: RabbitMQNode, in_background: Callable[..., Future[Any]]
) -> None:
    """F80."""
    with frozen(served.worker):
        asked = in_background("double", 1010, timeout=LONG)
        ours = eventually(lambda: reply_queue(broker, served.url))
        broker.ctl("delete_queue", "--vhost", served.url.rpartition("/")[2], ours)

        with pytest.raises(rpc.ConnectionLost):
            asked.result(LONG)
    assert rpc.call("double", 21, timeout=LONG) == EXPECTED
    served.worker.wait_for_line(rf"rpc\.undelivered.*queue={ours}")


def test_a_connection_that_is_cut_costs_the_calls_under_way_and_no_more(
    served: Served, broker: RabbitMQNode, in_background: Callable[..., Future[Any]]
) -> None:
    """F80."""
    with frozen(served.worker):
        asked = in_background("double", 1011, timeout=LONG)
        pid = eventually(lambda: client_connection(broker, served.url))
        broker.ctl("close_connection", pid, "a test")

        with pytest.raises(rpc.ConnectionLost, match="before the reply"):
            asked.result(LONG)
    eventually(lambda: outcome("double", 21, timeout=5) == "42", LONG)


def client_connection(broker: RabbitMQNode, url: str) -> str | None:
    """The broker's name for this process's connection for calls, once there is a reply queue."""
    if not reply_queue(broker, url):
        return None
    listed = broker.ctl("list_connections", "--no-table-headers", "pid", "vhost", "client_properties").splitlines()
    vhost = url.rpartition("/")[2]
    return next(line.split("\t")[0] for line in listed if "rpc client" in line and line.split("\t")[1] == vhost)


def test_a_call_while_the_reply_queue_is_given_up_is_not_sent_and_fails(
    network: BrokerNetwork, run_process: ProcessStarter
) -> None:
    """F80."""
    start(run_process)
    assert rpc.call("double", 21, timeout=LONG) == EXPECTED
    ours = client.connection()
    network.pause()  # it does not answer the close
    ours.connection.call_soon(lambda: ours._cancelled_by_broker(ours._channel, None))
    assert outcome("double", 1013, timeout=1) == "NoBroker"
    network.resume()
    eventually(lambda: outcome("double", 21, timeout=5) == "42", LONG)


# --- F81: forged reply_to ------------------------------------------------------------------------------------


def test_a_reply_to_that_names_a_queue_of_ours_is_refused_and_the_queue_unchanged(
    channel: BlockingChannel, served: Served
) -> None:
    """F81."""
    ours = ["orders.sms", "orders.red_packet", "warren.celery", "warren.dead_letters", "rpc.double", "rpc.nap"]
    for queue in ours[:3]:  # the others were declared by the server
        channel.queue_declare(queue, durable=True)
    for victim in ours:
        channel.basic_publish("", "rpc.double", b"1012", pika.BasicProperties(reply_to=victim, correlation_id="f"))
        death, body = dead_letter(channel)
        assert (body, "is a queue of ours" in death["reason"]) == (b"1012", True)
        served.worker.wait_for_line(rf"rpc\.unanswerable.*{victim}")
    assert raw_request(channel, "rpc.double", b"21")[1] == EXPECTED
    assert {queue: count(channel, queue) for queue in ours} == dict.fromkeys(ours, 0)
    assert runs("double 1012", served.worker) == 0


# --- F82: many callers ---------------------------------------------------------------------------------------


def a_thousand_callers(name: str, timeout: float) -> tuple[Counter[str], float]:
    """Call from a thousand threads at once; what each was told, and the longest that one waited."""
    told: list[tuple[str, float]] = []
    together = threading.Barrier(1000)

    def ask(number: int) -> None:
        together.wait()
        begun = time.monotonic()
        told.append((outcome(name, number, timeout=timeout), time.monotonic() - begun))

    threads = [threading.Thread(target=ask, args=[number]) for number in range(1000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG + timeout)
    assert len(told) == 1000
    return Counter(what for what, _ in told), max(waited for _, waited in told)


def test_a_thousand_callers_without_a_server_fail_at_once_and_leave_nothing_behind(
    served: Served, broker: RabbitMQNode
) -> None:
    """F82."""
    # Connected before a thousand threads start: among them, on a busy machine, connecting can take longer than it may,
    # and the callers that wait for it are rightly told that there is no broker.
    connect()
    # The reply queue of the test before may still be on its way out.
    before = {
        name: n for name, n in queues(broker, served.url).items() if not name.startswith(procedures.REPLY_QUEUE_PREFIX)
    }
    told, longest = a_thousand_callers("nobody", timeout=2 * LONG)

    assert told == {"NoServer": 1000}
    assert longest < LONG / 2  # not one of them waited for its deadline
    eventually(lambda: client.connection()._calls == {})

    def nothing_is_left() -> bool:
        known = {**before, reply_queue(broker, served.url): 0}
        return all(name in known and n <= known[name] for name, n in queues(broker, served.url).items())

    eventually(nothing_is_left, LONG)


def test_a_thousand_callers_of_a_frozen_broker_fail_within_their_deadlines_and_nothing_runs_later(
    network: BrokerNetwork, run_process: ProcessStarter
) -> None:
    """F82."""
    worker = start(run_process)
    assert rpc.call("double", 21, timeout=LONG) == EXPECTED
    ours = client.connection()
    network.pause()
    told, longest = a_thousand_callers("double", timeout=1)

    assert set(told) <= {"RpcTimeout", "NoBroker"}
    assert longest < LONG / 2
    eventually(lambda: ours._calls == {})
    network.resume()
    eventually(lambda: outcome("double", 21, timeout=5) == "42", LONG)
    assert worker.output.count("runs double") <= worker.output.count("runs double 21")
    assert worker.is_alive


def test_callers_of_a_broker_that_crashes_with_their_server_get_the_right_answer_or_the_right_error(
    breakable_broker: RabbitMQNode, run_process: ProcessStarter
) -> None:
    """F82."""
    doomed = start(run_process, failing_procedures.expire_soon)
    done = threading.Event()
    told: Counter[str] = Counter()

    def keep_asking(number: int) -> None:
        while not done.is_set():
            told[outcome("double", number, timeout=1).replace(str(2 * number), "right")] += 1

    callers = [threading.Thread(target=keep_asking, args=[number]) for number in range(101, 109)]
    for caller in callers:
        caller.start()
    try:
        eventually(lambda: told["right"] > 50)
        breakable_broker.kill()
        doomed.kill()
        breakable_broker.start()
        # The queue outlived the crash. Its server did not; so it goes, and the callers know.
        eventually(lambda: told["NoServer"] > 50, LONG)
        right = told["right"]
        start(run_process)
        eventually(lambda: told["right"] > right + 50, LONG)
    finally:
        done.set()
        for caller in callers:
            caller.join(LONG)

    assert told["NoBroker"]
    assert set(told) <= {"right", "NoBroker", "ConnectionLost", "NoServer", "RpcTimeout"}
    eventually(lambda: client.connection()._calls == {})


def visit(url: str) -> int:
    """Put something into a cart and look at the checkout, which asks for a quote."""
    return Shopper(url).fill_cart("tea").status


def test_shoppers_are_served_without_a_quote_for_shipping_and_do_not_queue_up_behind_a_silent_service(
    vhost: str, run_process: ProcessStarter, product: Product
) -> None:
    """F82."""
    web = run_process.web(threads=4)

    def was_told() -> bool:
        QuietService.objects.all().delete()  # on a busy machine the first connection may take too long
        visit(web.url)
        return "reason=NoServer" in web.output

    eventually(was_told, LONG)
    before = web.output.count("reason=NoServer")
    asked: list[bytes] = []
    with ThreadPoolExecutor(12) as shoppers:
        assert set(shoppers.map(visit, [web.url] * 12)) == {200}
        assert web.output.count("reason=NoServer") == before + 12
        web.wait_for_line(r"rpc\.call_failed.*outcome=NoServer.*procedure=shipping\.quote")

        with raw_channel() as silent:
            silent.queue_declare("rpc.shipping.quote", durable=True)
            silent.basic_consume("rpc.shipping.quote", lambda *arrived: asked.append(arrived[3]), auto_ack=True)
            visits = [shoppers.submit(visit, web.url) for _ in range(12)]
            eventually(lambda: silent.connection.process_data_events(0) or all(each.done() for each in visits), LONG)

    assert {each.result() for each in visits} == {200}
    # Each web thread waits once at most; after that none does.
    assert 1 <= len(asked) <= 4
    web.wait_for_line(r"shipping_quote_missing.*reason=RpcTimeout")

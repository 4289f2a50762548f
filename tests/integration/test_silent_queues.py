"""A queue that exists and never answers: named by status, diff, reconcile and the consumer's log."""

import logging
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from messaging.consumers import Consumer
from messaging.monitoring import status
from messaging.reconcile.reconcile import reconcile
from messaging.topology import drift
from messaging.topology.findings import Finding, Kind
from script.services.ports import free_port
from script.services.rabbitmq import RabbitMQNode
from tests.support.command_line import mq
from tests.support.consuming import Noted, a_consumer, notes, registered
from tests.support.running import IMPATIENT, add, running_relay, running_worker
from tests.support.waiting import eventually

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(300)]

#: The type of a queue, what makes it silent, and what mends that: a process that hangs, a leader that hangs or is gone.
FAULTS = {
    "a stuck classic queue": ("classic", "sys:suspend(Pid)", "sys:resume(Pid)"),
    "a stuck leader": ("quorum", "sys:suspend(element(1, Pid))", "sys:resume(element(1, Pid))"),
    "a dead leader": ("quorum", "ra:stop_server(quorum_queues, Pid)", "ra:restart_server(quorum_queues, Pid)"),
}
#: Seconds that one look may take. Its own deadlines add up to 12; a busy machine takes longer for the rest.
LONGEST_LOOK = 45.0


@pytest.fixture
def sound_afterwards(_breakable_node: RabbitMQNode) -> Iterator[None]:
    """Restart the node once the test's vhost is gone. A quorum queue that is deleted while its leader starts makes
    RabbitMQ 3.10's worker for dead letters crash, and after a few crashes no other such queue can be declared."""
    yield
    _breakable_node.restart()


@pytest.fixture(params=FAULTS)
def consumers(
    request: pytest.FixtureRequest, sound_afterwards: None, breakable_broker: RabbitMQNode, settings: Any
) -> Iterator[tuple[Consumer, Consumer]]:
    """A consumer whose queue does not answer, and one whose queue does."""
    kind, fault, cure = FAULTS[request.param]
    settings.MESSAGING = {**settings.MESSAGING, **IMPATIENT}
    vhost = unquote(urlsplit(settings.MESSAGING["AMQP_URLS"][0]).path[1:])
    stuck, healthy = a_consumer(name="stuck", queue_type=kind), a_consumer()
    name = f'rabbit_misc:r(<<"{vhost}">>, queue, <<"{stuck.queue}">>)'

    def do(what: str) -> None:
        breakable_broker.ctl("eval", f"{{ok, Q}} = rabbit_amqqueue:lookup({name}), Pid = amqqueue:get_pid(Q), {what}.")

    with registered(stuck, healthy):
        assert mq("topology", "declare").code == 0
        do(fault)
        yield stuck, healthy
        do(cure)  # else it would hold up the end of its vhost


def test_a_silent_queue_is_named_with_its_cure_and_hides_nothing(
    consumers: tuple[Consumer, Consumer], settings: Any
) -> None:
    stuck, healthy = consumers

    began = time.monotonic()
    wrong = status.look().wrong
    assert time.monotonic() - began < LONGEST_LOOK
    [said] = [each for each in wrong if stuck.queue in each]
    assert "exists but does not answer" in said
    assert "restart the RabbitMQ node that holds it" in said
    assert (
        f"queue {healthy.queue} has no consumer (waiting messages: 0): `manage.py run_consumer {healthy.name}`" in wrong
    )

    [finding] = drifted()
    assert (finding.kind, finding.name) == (Kind.SILENT_QUEUE, stuck.queue)
    assert "rabbitmqctl delete_queue" in finding.hint

    report = reconcile(repair=True, by="test")
    assert not report.is_well
    assert "exists but does not answer" in report.undecided[stuck.name]

    settings.MESSAGING = {**settings.MESSAGING, "MANAGEMENT_URL": f"http://127.0.0.1:{free_port()}"}
    assert any("exists but does not answer" in each for each in status.look().wrong)


def drifted() -> list[Finding]:
    return [each for each in drift.look() if each.is_wrong and each.kind is not Kind.UNWANTED_EVENT]


def test_the_other_consumers_of_the_process_and_the_relay_go_on_beside_a_silent_queue(
    consumers: tuple[Consumer, Consumer], caplog: pytest.LogCaptureFixture
) -> None:
    stuck, healthy = consumers

    with caplog.at_level(logging.INFO), running_relay(), running_worker(stuck, healthy):
        add(Noted(text="through"))
        eventually(lambda: notes("through") == 1, within=90)
        eventually(lambda: "consumer.queue_" in caplog.text and "does not answer" in caplog.text, within=90)

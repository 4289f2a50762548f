"""`mq topology diff` and the checks: where the broker differs from what the shop's code declares, and the cures."""

import json
import re
import shlex
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import StringIO
from typing import Any

import pytest
from django.core.checks import run_checks
from django.core.management import CommandError, call_command
from pika.adapters.blocking_connection import BlockingChannel

from messaging import conf, consumers
from messaging.topology import desired, drift
from messaging.topology.declare import NotReplaced, replace
from messaging.topology.existing import Queue, opened_existing
from messaging.topology.findings import Finding, Kind
from script.services.ports import free_port
from script.services.rabbitmq import RabbitMQNode
from tests.support.amqp import plain_channel, queue_length
from tests.support.command_line import mq
from tests.support.consuming import Noted, a_consumer, notes, registered
from tests.support.listeners import something_that_answers
from tests.support.running import IMPATIENT, InThread, add, running_relay, running_worker
from tests.support.waiting import eventually

EXCHANGE, SMS, RED_PACKET = "orders.events", "orders.sms", "orders.red_packet"


@pytest.fixture
def channel(vhost: str) -> Iterator[BlockingChannel]:
    """A plain channel into a vhost where everything is as the shop declares it."""
    assert mq("topology", "declare").code == 0
    with plain_channel(vhost) as channel:
        yield channel


@pytest.fixture
def without_management(settings: Any) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "MANAGEMENT_URL": f"http://127.0.0.1:{free_port()}"}


def wrong() -> list[Finding]:
    return [finding for finding in drift.look() if finding.is_wrong]


def kinds() -> set[Kind]:
    return {finding.kind for finding in wrong()}


# --- By hand -----------------------------------------------------------------------------------------------


def declared() -> desired.Topology:
    return desired.topology(consumers.registered())


def declare_queue_otherwise(channel: BlockingChannel, queue: str, *keys: str) -> None:
    channel.queue_delete(queue)
    channel.queue_declare(queue, durable=True, arguments={**desired.queue_arguments(), "x-delivery-limit": 20})
    for key in keys:
        channel.queue_bind(queue, EXCHANGE, key)


def declare_exchange_otherwise(channel: BlockingChannel, type: str, **arguments: Any) -> None:
    channel.exchange_delete(EXCHANGE)
    channel.exchange_declare(EXCHANGE, type, durable=True, arguments=arguments)
    for binding in declared().bindings:
        channel.queue_bind(binding.queue, EXCHANGE, binding.key)


def lasting_request_queue(channel: BlockingChannel) -> None:
    channel.queue_declare("rpc.shipping.quote", durable=True)
    channel.queue_bind("rpc.shipping.quote", "amq.direct", "x")


LEFT = desired.queue_arguments()
DRIFTS: dict[str, tuple[Callable[[BlockingChannel], Any], set[Kind]]] = {
    "missing exchange": (lambda it: it.exchange_delete(EXCHANGE), {Kind.MISSING_EXCHANGE}),
    "other exchange": (lambda it: declare_exchange_otherwise(it, "direct"), {Kind.OTHER_EXCHANGE}),
    "missing queue": (lambda it: it.queue_delete(RED_PACKET), {Kind.MISSING_QUEUE}),
    "other queue": (
        lambda it: declare_queue_otherwise(it, RED_PACKET, "order.placed", "order.cancelled"), {Kind.OTHER_QUEUE}
    ),
    "lasting request queue": (lasting_request_queue, {Kind.OTHER_QUEUE}),
    "missing binding": (lambda it: it.queue_unbind(RED_PACKET, EXCHANGE, "order.cancelled"), {Kind.MISSING_BINDING}),
    "unrouted event": (
        lambda it: it.queue_unbind(SMS, EXCHANGE, "order.shipped"), {Kind.UNROUTED_EVENT, Kind.MISSING_BINDING}
    ),
    "abandoned queue": (
        lambda it: it.queue_declare("orders.formerly", durable=True, arguments=LEFT), {Kind.ABANDONED_QUEUE}
    ),
    # What a person does in the management UI, or by starting a consumer.
    "extra binding": (lambda it: it.queue_bind(RED_PACKET, EXCHANGE, "order.refunded"), {Kind.EXTRA_BINDING}),
    "unconsumed queue": (lambda it: it.basic_publish("", RED_PACKET, b"{}"), {Kind.UNCONSUMED_QUEUE}),
}  # fmt: skip
BY_HAND = ["extra binding", "unconsumed queue"]


def drift_by(channel: BlockingChannel, *names: str) -> set[Kind]:
    """Make these drifts; return what is to be found."""
    for name in names:
        DRIFTS[name][0](channel)
    return {kind for name in names for kind in DRIFTS[name][1]}


def test_what_was_just_declared_does_not_drift_and_an_empty_queue_without_a_consumer_is_a_note(
    channel: BlockingChannel,
) -> None:
    eventually(
        lambda: "messaging.W013\tnote: unconsumed queue\tno process consumes orders.sms" in mq("topology", "diff").out
    )
    said = mq("topology", "diff")

    assert (said.code, kinds()) == (0, set())
    assert "No drift." in said.err
    assert checked() == {}


@pytest.mark.parametrize("name", DRIFTS)
def test_each_drift_is_found_as_what_it_is_and_the_commands_of_its_hint_mend_it(
    channel: BlockingChannel, broker: RabbitMQNode, name: str
) -> None:
    expected = drift_by(channel, name)

    eventually(lambda: kinds() == expected, report=kinds)
    assert mq("topology", "diff").code == 6
    if name not in BY_HAND:
        for finding in wrong():
            mend(finding, broker)
        assert kinds() == set()


def mend(finding: Finding, broker: RabbitMQNode) -> None:
    """Run the commands of the hint that declare or delete."""
    for command in re.findall("`([^`]+)`", finding.hint):
        program, *arguments = shlex.split(command)
        if program == "rabbitmqctl":
            broker.ctl(*arguments)
        elif arguments[:3] == ["mq", "topology", "declare"]:
            assert mq(*arguments[1:]).code == 0


def test_without_the_management_api_one_sentence_says_so(channel: BlockingChannel, without_management: None) -> None:
    said = mq("topology", "diff")

    assert (said.code, said.out) == (3, "")
    assert said.err.startswith("This needs RabbitMQ's management API: nothing listens at http://127.0.0.1:")
    assert set(checked()) == {"messaging.I001"}
    drift_by(channel, "other queue")
    assert "x-delivery-limit" in mq("topology", "declare").err  # AMQP says what differs to whoever declares


def test_six_drifts_at_once_are_six_findings_with_six_ids_for_the_command_and_the_checks(
    channel: BlockingChannel,
) -> None:
    expected = drift_by(channel, "other queue", "extra binding", "missing binding", "unrouted event",
                        "abandoned queue", "unconsumed queue")  # fmt: skip

    eventually(lambda: kinds() == expected, report=kinds)
    found = [json.loads(line) for line in mq("topology", "diff", "--json").lines]

    assert len({each["id"] for each in found if each["is_wrong"]}) == 6
    assert all(each["said"] and each["hint"] for each in found)
    assert set(checked()) == set(expected)


@contextmanager
def policy(broker: RabbitMQNode, vhost: str, pattern: str, kind: str = "policies", **definition: Any) -> Iterator[None]:
    """Set a policy named "ours" in the vhost meanwhile."""
    where = f"/{kind}/{vhost.rpartition('/')[2]}/ours"
    broker.api("PUT", where, {"pattern": pattern, "definition": definition})
    try:
        yield
    finally:
        broker.api("DELETE", where)


def test_a_policy_by_which_messages_leave_a_queue_is_found(
    channel: BlockingChannel, broker: RabbitMQNode, vhost: str
) -> None:
    with (
        policy(broker, vhost, "^orders[.]sms$", **{"message-ttl": 60000, "delivery-limit": 5}),
        policy(broker, vhost, "^orders[.]red_packet$", "operator-policies", **{"message-ttl": 60000}),
    ):
        eventually(lambda: len(wrong()) == 2, report=wrong)
        by_operator, ours = wrong()
        assert {by_operator.kind, ours.kind} == {Kind.HARMFUL_POLICY}
        assert (by_operator.name, ours.name) == (RED_PACKET, SMS)
        for word in ("policy ours", "queue orders.sms", "message-ttl=60000", "delivery-limit=5"):
            assert word in ours.text
        assert "list_operator_policies" in ours.hint
    eventually(lambda: kinds() == set(), report=kinds)


def test_a_policy_that_takes_no_message_away_is_no_drift(
    channel: BlockingChannel, broker: RabbitMQNode, vhost: str
) -> None:
    limit = desired.queue_arguments()["x-delivery-limit"] + 1
    # What is over a length is refused there, and waits in the outbox.
    harmless = {"delivery-limit": limit, "queue-leader-locator": "balanced", "max-length": 100_000}
    with policy(broker, vhost, "^orders[.]", **harmless):
        where = f"/queues/{vhost.rpartition('/')[2]}/{SMS}"
        eventually(lambda: broker.api("GET", where).get("effective_policy_definition"))
        assert kinds() == set()


def test_an_alternate_exchange_for_unroutable_events_is_found(
    channel: BlockingChannel, broker: RabbitMQNode, vhost: str
) -> None:
    with policy(broker, vhost, "^orders[.]events$", **{"alternate-exchange": "amq.fanout"}):
        [finding] = wrong()
        assert (finding.kind, finding.name) == (Kind.HARMFUL_POLICY, EXCHANGE)
        assert "alternate-exchange=amq.fanout" in finding.text

    declare_exchange_otherwise(channel, "topic", **{"alternate-exchange": "amq.fanout"})
    [finding] = wrong()
    assert (finding.kind, finding.name) == (Kind.OTHER_EXCHANGE, EXCHANGE)
    assert "alternate-exchange=amq.fanout, expected no alternate-exchange" in finding.text


def test_what_differs_is_named_with_its_cure(channel: BlockingChannel) -> None:
    drift_by(channel, "other queue")
    [finding] = wrong()
    assert finding.text.endswith("x-delivery-limit=20, expected x-delivery-limit=1000")
    assert f"`manage.py mq topology declare --replace {RED_PACKET}`" in finding.hint
    assert "`manage.py messages reconcile --repair --since 1d --consumer red_packet`" in finding.hint


def test_counts_are_those_of_this_moment(channel: BlockingChannel) -> None:
    """What the management API knows of them may be five seconds old."""
    channel.confirm_delivery()
    drift_by(channel, "abandoned queue")
    eventually(lambda: all(each.ready == 0 for each in seen_by_management(SMS, "orders.formerly")))

    for queue in (SMS, "orders.formerly"):
        channel.basic_publish("", queue, b"{}")
    said = {finding.name: finding.text for finding in wrong()}
    assert said[SMS] == "no process consumes orders.sms, and 1 waits in it"
    assert said["orders.formerly"].endswith("; 1 in it")

    eventually(lambda: all(each.ready == 1 for each in seen_by_management(SMS, "orders.formerly")))
    for queue in (SMS, "orders.formerly"):
        channel.queue_purge(queue)
    channel.basic_consume("orders.formerly", lambda *_: None)
    assert kinds() == set()


def seen_by_management(*names: str) -> list[Queue]:
    with opened_existing() as existing:
        return [each for each in existing.queues() if each.name in names]


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_narrow_terminal_nothing_is_cut_and_arguments_have_its_whole_width(
    channel: BlockingChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    drift_by(channel, "other queue")
    drift_by(channel, "abandoned queue")
    private = "another.application.with.a.long.queue.name"
    channel.queue_declare(private, exclusive=True, arguments={"x-expires": 9999})
    diff, queues = Terminal(), Terminal()
    with pytest.raises(CommandError):
        call_command("mq", "topology", "diff", stdout=diff)
    call_command("mq", "queues", "-v", "2", stdout=queues)

    assert "…" not in diff.getvalue() + queues.getvalue()
    for word in ("messaging.W010", "messaging.W015", "x-delivery-limit=20", "orders.formerly"):
        assert word in diff.getvalue()
    lines = [line.rstrip() for line in re.sub(r"\x1b\[[\d;]*m", "", queues.getvalue()).splitlines()]
    [name] = [number for number, line in enumerate(lines) if line.startswith(f"{private} ")]
    assert lines[name + 1] == "  transient exclusive · x-expires=9999"
    assert "  x-dead-letter-strategy=at-least-once x-delivery-limit=1000" in lines
    assert max(map(len, lines[: lines.index("  durable · x-delivery-limit=2147483647")])) <= 80


def test_queues_of_others_and_temporary_ones_are_not_ours(channel: BlockingChannel) -> None:
    ours, durable = desired.queue_arguments(), {"durable": True}
    others: dict[str, dict[str, Any]] = {
        "elsewhere": durable,
        "orders.analytics": durable,
        "orders.passing": {"auto_delete": True},
        "": {"exclusive": True},
        "warren.celery": durable,
        "warren.warehouse": {**durable, "arguments": {"x-queue-type": "quorum"}},
        "orders.history": {**durable, "arguments": {"x-queue-type": "stream"}},
        "orders.billing": {**durable, "arguments": {**ours, "x-dead-letter-routing-key": "billing.dead_letters"}},
        "billing.invoices": {**durable, "arguments": ours},  # of another project with our APP_ID
    }
    for name, how in others.items():
        channel.queue_bind(channel.queue_declare(name, **how).method.queue, EXCHANGE, "order.*")

    assert {finding.name for finding in drift.look()} <= {queue.name for queue in declared().queues}
    assert kinds() == set()
    assert mq("topology", "diff").code == 0
    assert checked() == {}


def test_a_binding_of_our_queue_to_an_exchange_of_another_application_is_a_note(channel: BlockingChannel) -> None:
    channel.exchange_declare("crm.events", "topic", durable=True)
    channel.queue_bind(SMS, "crm.events", "customer.#")

    [note] = [finding for finding in drift.look() if finding.kind is Kind.FOREIGN_BINDING]

    assert note.text == "queue orders.sms is also bound to crm.events by customer.#, an exchange of another application"
    assert mq("topology", "diff").code == 0


def test_the_cure_for_a_queue_of_our_name_that_another_application_declared_is_to_ask_first(
    channel: BlockingChannel,
) -> None:
    channel.queue_delete(RED_PACKET)
    channel.queue_declare(RED_PACKET, durable=True, arguments={"x-queue-type": "stream"})

    [finding] = [each for each in wrong() if each.kind is Kind.OTHER_QUEUE]

    assert "Another application declared it: ask its owner" in finding.hint
    with pytest.raises(NotReplaced, match="is a stream"):
        replace(RED_PACKET, patience=1)


def test_a_broker_that_is_away_is_one_line_and_exit_code_3(settings: Any) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": [f"amqp://127.0.0.1:{free_port()}/"]}

    for action in ("diff", "declare"):
        said = mq("topology", action)
        assert (said.code, said.out) == (3, "")
        assert said.err.count("\n") == 0


# --- Checks ------------------------------------------------------------------------------------------------


def checked() -> dict[str | None, str]:
    found = run_checks(tags=["messaging"], include_deployment_checks=True)
    return {message.id: str(message) for message in found if message.id not in {"messaging.W005"}}


def test_the_checks_do_not_look_at_the_broker_unless_asked_for_deployment(settings: Any) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": [f"amqp://127.0.0.1:{free_port()}/"]}

    assert run_checks(tags=["messaging"]) == []
    assert set(checked()) == {"messaging.W004", "messaging.W016"}


def test_the_checks_do_not_wait_for_a_broker_that_never_answers(settings: Any) -> None:
    with something_that_answers(None) as silent:
        settings.MESSAGING = {
            **settings.MESSAGING,
            "AMQP_URLS": [f"amqp://u:secret@127.0.0.1:{silent}/shop"],
            "MANAGEMENT_URL": f"http://127.0.0.1:{silent}",
            "CONNECT_TIMEOUT": 0.2,
        }
        found = checked()

    assert set(found) == {"messaging.W016"}
    assert "secret" not in str(found)


def test_an_event_without_a_consumer_is_found_without_a_broker() -> None:
    with registered():
        found = run_checks(tags=["messaging"])

    assert {message.id for message in found} == {"messaging.W006"}
    assert any("order.placed" in message.msg for message in found)


# --- Cures ------------------------------------------------------------------------------------------------


def test_replace_leaves_alone_what_does_not_differ_what_is_not_ours_and_what_holds_messages(
    channel: BlockingChannel,
) -> None:
    channel.queue_declare("elsewhere")
    drift_by(channel, "other queue")
    for queue in (SMS, RED_PACKET):
        channel.basic_publish("", queue, b"{}")

    assert replace(SMS, patience=1) is False
    said = mq("topology", "declare", "--replace", "elsewhere")
    assert said.code == 1
    assert "neither a queue nor an exchange" in said.err
    with pytest.raises(NotReplaced, match="still has 1 messages"):
        replace(RED_PACKET, patience=0)
    for queue in (SMS, RED_PACKET):
        assert channel.queue_declare(queue, passive=True).method.message_count == 1


def test_replace_deletes_no_exchange_to_which_another_application_is_bound(
    channel: BlockingChannel, broker: RabbitMQNode, vhost: str
) -> None:
    drift_by(channel, "other exchange")
    channel.queue_declare("elsewhere")
    channel.queue_bind("elsewhere", EXCHANGE, "order.placed")

    with pytest.raises(NotReplaced, match="has bindings that this project does not declare"):
        replace(EXCHANGE, patience=1)

    there = broker.api("GET", f"/exchanges/{vhost.rpartition('/')[2]}/{EXCHANGE}/bindings/source")
    assert len(there) == len(declared().bindings) + 1


@pytest.mark.django_db(transaction=True)
def test_replacing_a_queue_loses_nothing_while_events_come_all_the_time(
    vhost: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue that differs is replaced while a relay publishes into it and a worker reads from it."""
    settings.MESSAGING = {**settings.MESSAGING, **IMPATIENT, "RECONCILE_AFTER": 1.0}
    monkeypatch.setattr(conf, "RECONCILE_INTERVAL", 1.0)
    consumer = a_consumer()
    with registered(consumer):
        mq("topology", "declare")
        with plain_channel(vhost) as channel:
            declare_queue_otherwise(channel, consumer.queue, "test.noted")
        assert Kind.OTHER_QUEUE in kinds()
        with running_relay(), running_worker(consumer), events_all_the_time() as added:
            eventually(lambda: notes() > 10)
            assert replace(consumer.queue, patience=30) is True
            assert Kind.OTHER_QUEUE not in kinds()
            later = len(added) + 20
            # The running consumer reads the queue that replaced its own.
            eventually(lambda: len(added) > later and notes(added[later]) == 1)
        with running_relay(), running_worker(consumer):
            eventually(lambda: (reconciled(), len(added) == notes())[1], within=60, every=0.5)

    assert len(added) > 30
    assert all(notes(text) == 1 for text in added)
    assert queue_length(vhost, consumer.queue) == 0


@contextmanager
def events_all_the_time() -> Iterator[list[str]]:
    """Inside, a thread adds events, one after the other; their texts."""
    added: list[str] = []
    stop = threading.Event()

    def add_events() -> None:
        while not stop.wait(0.01):
            add(Noted(text=f"note-{len(added)}"))
            added.append(f"note-{len(added)}")

    home = InThread(add_events, "events")
    try:
        yield added
    finally:
        stop.set()
        home.join()


def reconciled() -> None:
    """Look once for what was lost, and send it again; something may not be known yet."""
    with suppress(CommandError):
        call_command("messages", "reconcile", "--repair", "--since", "1d", stdout=StringIO(), stderr=StringIO())

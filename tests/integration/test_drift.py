"""`mq topology diff | plan`, and the checks: where the broker stands otherwise than the shop's code wants it."""

import json
import re
import shlex
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from io import StringIO
from typing import Any

import pytest
from django.core.checks import run_checks
from django.core.management import CommandError, call_command
from pika.adapters.blocking_connection import BlockingChannel

from messaging import consumers
from messaging.topology import desired, drift, mending
from messaging.topology import existing as standing
from messaging.topology.declare import NotReplaced, replace
from messaging.topology.drift import Kind
from script.services.ports import free_port
from script.services.rabbitmq import RabbitMQNode
from tests.support.amqp import plain_channel, queue_length
from tests.support.consuming import Noted, a_consumer, notes, registered
from tests.support.listeners import something_that_answers
from tests.support.processes import ProcessStarter
from tests.support.running import IMPATIENT, InThread, add, running_relay, running_worker
from tests.support.terminal import on_terminal
from tests.support.waiting import eventually

EXCHANGE, SMS, RED_PACKET = "orders.events", "orders.sms", "orders.red_packet"


@pytest.fixture
def channel(vhost: str) -> Iterator[BlockingChannel]:
    """A plain channel into a vhost where all stands as the shop wants it."""
    assert mq("topology", "declare")[0] == 0
    with plain_channel(vhost) as channel:
        yield channel


@pytest.fixture
def without_management(settings: Any) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "MANAGEMENT_URL": f"http://127.0.0.1:{free_port()}"}


def mq(*arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output, and what was said beside it."""
    output, beside = StringIO(), StringIO()
    try:
        call_command("mq", *arguments, stdout=output, stderr=beside)
    except CommandError as error:
        return error.returncode, output.getvalue(), f"{beside.getvalue()}{error}"
    return 0, output.getvalue(), beside.getvalue()


def wrong() -> set[Kind]:
    return {finding.kind for finding in drift.look().wrong}


# --- By hand -----------------------------------------------------------------------------------------------


def missing_exchange(channel: BlockingChannel) -> None:
    channel.exchange_delete(EXCHANGE)


def other_exchange(channel: BlockingChannel) -> None:
    channel.exchange_delete(EXCHANGE)
    channel.exchange_declare(EXCHANGE, "direct", durable=True)
    for binding in wanted().bindings:
        channel.queue_bind(binding.queue, EXCHANGE, binding.key)


def missing_queue(channel: BlockingChannel) -> None:
    channel.queue_delete(RED_PACKET)


def other_queue(channel: BlockingChannel) -> None:
    declare_otherwise(channel, RED_PACKET, "order.placed", "order.cancelled")


def missing_binding(channel: BlockingChannel) -> None:
    channel.queue_unbind(RED_PACKET, EXCHANGE, "order.cancelled")


def extra_binding(channel: BlockingChannel) -> None:
    channel.queue_bind(RED_PACKET, EXCHANGE, "order.refunded")


def unconsumed_queue(channel: BlockingChannel) -> None:
    channel.basic_publish("", RED_PACKET, b"{}")


def unrouted_event(channel: BlockingChannel) -> None:
    channel.queue_unbind(SMS, EXCHANGE, "order.shipped")


def abandoned_queue(channel: BlockingChannel) -> None:
    channel.queue_declare("orders.formerly", durable=True, arguments=desired.queue_arguments())


def wanted() -> desired.Topology:
    return desired.topology(consumers.registered())


def declare_otherwise(channel: BlockingChannel, queue: str, *keys: str) -> None:
    channel.queue_delete(queue)
    channel.queue_declare(queue, durable=True, arguments={**desired.queue_arguments(), "x-delivery-limit": 20})
    for key in keys:
        channel.queue_bind(queue, EXCHANGE, key)


#: What was done, what it is called, and what AMQP alone can see of it.
DRIFTS: list[tuple[Callable[[BlockingChannel], None], set[Kind], set[Kind]]] = [
    (missing_exchange, {Kind.MISSING_EXCHANGE}, {Kind.MISSING_EXCHANGE}),
    (other_exchange, {Kind.OTHER_EXCHANGE}, {Kind.OTHER_EXCHANGE}),
    (missing_queue, {Kind.MISSING_QUEUE}, {Kind.MISSING_QUEUE}),
    (other_queue, {Kind.OTHER_QUEUE}, {Kind.OTHER_QUEUE}),
    (missing_binding, {Kind.MISSING_BINDING}, set()),
    (extra_binding, {Kind.EXTRA_BINDING}, set()),
    (unconsumed_queue, {Kind.UNCONSUMED_QUEUE}, {Kind.UNCONSUMED_QUEUE}),
    (unrouted_event, {Kind.UNROUTED_EVENT, Kind.MISSING_BINDING}, set()),
    (abandoned_queue, {Kind.ABANDONED_QUEUE}, set()),
]
KINDS = pytest.mark.parametrize(("make", "seen", "by_amqp"), DRIFTS, ids=[make.__name__ for make, _, _ in DRIFTS])


def test_what_was_just_declared_has_not_drifted(channel: BlockingChannel) -> None:
    code, _, beside = mq("topology", "diff")

    assert (code, wrong()) == (0, set())
    assert "No drift." in beside
    assert "Nothing to do." in mq("topology", "plan")[2]


@KINDS
def test_each_drift_is_found_as_what_it_is(
    channel: BlockingChannel, make: Callable[[BlockingChannel], None], seen: set[Kind], by_amqp: set[Kind]
) -> None:
    make(channel)

    eventually(lambda: wrong() == seen, report=wrong)
    assert mq("topology", "diff")[0] == 6


@KINDS
def test_amqp_alone_says_what_it_cannot_see(
    channel: BlockingChannel,
    without_management: None,
    make: Callable[[BlockingChannel], None],
    seen: set[Kind],
    by_amqp: set[Kind],
) -> None:
    make(channel)

    code, _, beside = mq("topology", "diff")

    assert wrong() == by_amqp
    assert code == (6 if by_amqp else 0)
    assert "Nobody has seen: bindings" in beside
    assert "No drift." not in beside


def test_six_drifts_at_once_are_six_findings_with_six_ids(channel: BlockingChannel) -> None:
    made = [other_queue, extra_binding, missing_binding, unrouted_event, abandoned_queue, unconsumed_queue]
    for make in made:
        make(channel)
    expected = {kind for make, kinds, _ in DRIFTS if make in made for kind in kinds}

    eventually(lambda: wrong() == expected, report=wrong)
    found = [json.loads(line) for line in mq("topology", "diff", "--json")[1].splitlines()]

    assert len({each["id"] for each in found if each["is_wrong"]}) == len(made)
    assert all(each["said"] and each["hint"] for each in found)


@contextmanager
def policy(broker: RabbitMQNode, vhost: str, pattern: str, kind: str = "policies", **definition: Any) -> Iterator[str]:
    """Inside, a policy of that definition stands in the vhost; its name."""
    where = f"/{kind}/{vhost.rpartition('/')[2]}/ours"
    broker.api("PUT", where, {"pattern": pattern, "definition": definition})
    try:
        yield "ours"
    finally:
        broker.api("DELETE", where)


@pytest.mark.parametrize("kind", ["policies", "operator-policies"])
def test_a_policy_by_which_messages_leave_a_queue_is_found(
    channel: BlockingChannel, broker: RabbitMQNode, vhost: str, kind: str
) -> None:
    with policy(broker, vhost, "^orders[.]sms$", kind, **{"message-ttl": 60000, "delivery-limit": 5}):
        eventually(lambda: wrong() == {Kind.HARMFUL_POLICY}, report=wrong)
        [finding] = drift.look().wrong
        assert (finding.name, finding.consumer) == (SMS, "sms")
        for word in ("policy ours", "queue orders.sms", "message-ttl=60000", "delivery-limit=5"):
            assert word in finding.said
        assert mq("topology", "diff")[0] == 6
        assert "list_operator_policies" in mq("topology", "plan")[1]
        assert "messaging.W017" in checked()
    eventually(lambda: wrong() == set(), report=wrong)


def test_a_policy_that_takes_no_message_away_is_none_of_our_business(
    channel: BlockingChannel, broker: RabbitMQNode, vhost: str
) -> None:
    limit = desired.queue_arguments()["x-delivery-limit"] + 1
    # What is over a length is refused there, and waits in the outbox.
    harmless = {"delivery-limit": limit, "queue-leader-locator": "balanced", "max-length": 100_000}
    with policy(broker, vhost, "^orders[.]", **harmless):
        where = f"/queues/{vhost.rpartition('/')[2]}/{SMS}"
        eventually(lambda: broker.api("GET", where).get("effective_policy_definition"))
        assert wrong() == set()


def test_an_exchange_that_sends_elsewhere_what_reaches_nobody_is_found(
    channel: BlockingChannel, broker: RabbitMQNode, vhost: str
) -> None:
    with policy(broker, vhost, "^orders[.]events$", **{"alternate-exchange": "amq.fanout"}):
        [finding] = drift.look().wrong
        assert (finding.kind, finding.name) == (Kind.HARMFUL_POLICY, EXCHANGE)
        assert "alternate-exchange=amq.fanout" in finding.said

    channel.exchange_delete(EXCHANGE)
    channel.exchange_declare(EXCHANGE, "topic", durable=True, arguments={"alternate-exchange": "amq.fanout"})
    for binding in wanted().bindings:
        channel.queue_bind(binding.queue, EXCHANGE, binding.key)
    [finding] = drift.look().wrong
    assert (finding.kind, finding.name) == (Kind.OTHER_EXCHANGE, EXCHANGE)
    assert "alternate-exchange=amq.fanout, wanted no alternate-exchange" in finding.said


def test_what_differs_is_named(channel: BlockingChannel, settings: Any) -> None:
    other_queue(channel)
    [finding] = drift.look().wrong
    assert finding.said.endswith("x-delivery-limit=20, wanted x-delivery-limit=1000")

    settings.MESSAGING = {**settings.MESSAGING, "MANAGEMENT_URL": f"http://127.0.0.1:{free_port()}"}
    [finding] = drift.look().wrong
    assert finding.said.endswith("x-delivery-limit=20, wanted x-delivery-limit=1000")


def test_a_queue_that_nobody_consumes_yet_is_a_note_and_no_drift(channel: BlockingChannel) -> None:
    note = "messaging.W013\tnote: unconsumed queue\tnobody consumes orders.sms"

    eventually(lambda: note in mq("topology", "diff")[1])
    assert mq("topology", "diff")[0] == 0


def test_counts_are_those_of_this_moment(channel: BlockingChannel) -> None:
    """What the management API knows of them may be five seconds old."""
    channel.confirm_delivery()
    abandoned_queue(channel)
    eventually(lambda: all(each.ready == 0 for each in seen_by_management(SMS, "orders.formerly")))

    for queue in (SMS, "orders.formerly"):
        channel.basic_publish("", queue, b"{}")
    said = {finding.name: finding.said for finding in drift.look().wrong}
    assert said[SMS] == "nobody consumes orders.sms, and 1 waits in it"
    assert said["orders.formerly"].endswith("; 1 in it")

    eventually(lambda: all(each.ready == 1 for each in seen_by_management(SMS, "orders.formerly")))
    for queue in (SMS, "orders.formerly"):
        channel.queue_purge(queue)
    channel.basic_consume("orders.formerly", lambda *_: None)
    assert wrong() == set()


def seen_by_management(*names: str) -> list[standing.Queue]:
    with standing.looking() as seen:
        return [each for each in seen.queues() if each.name in names]


def test_on_a_terminal_nothing_is_cut(channel: BlockingChannel, transactional_db: None) -> None:
    other_queue(channel)
    abandoned_queue(channel)
    with on_terminal("mq", "topology", "diff", columns=80) as terminal:
        assert terminal.wait() == 6
    with on_terminal("mq", "queues", columns=80) as queues:
        assert queues.wait() == 0

    assert "…" not in terminal.seen + queues.seen
    assert "Traceback" not in terminal.seen + queues.seen
    for word in ("messaging.W010", "messaging.W015", "x-delivery-limit=20", "orders.formerly"):
        assert word in terminal.seen
    assert "orders.red_packet" in queues.seen


def test_on_a_narrow_terminal_names_stay_whole_and_arguments_have_its_whole_width(channel: BlockingChannel) -> None:
    private = "another.application.with.a.long.queue.name"
    channel.queue_declare(private, exclusive=True, arguments={"x-expires": 9999})
    with on_terminal("mq", "queues", columns=80) as terminal:
        assert terminal.wait() == 0

    lines = [line.rstrip() for line in re.sub(r"\x1b\[[\d;]*m", "", terminal.seen).splitlines()]
    [name] = [number for number, line in enumerate(lines) if line.startswith(f"{private} ")]
    assert lines[name + 1] == "  transient exclusive · x-expires=9999"
    assert "  x-dead-letter-strategy=at-least-once x-delivery-limit=1000" in lines
    assert max(map(len, lines[: lines.index("  durable · x-delivery-limit=2147483647")])) <= 80


def test_somebody_elses_queues_and_passing_ones_are_none_of_ours(channel: BlockingChannel) -> None:
    channel.queue_declare("elsewhere", durable=True)
    channel.queue_declare("warren.celery", durable=True)
    channel.queue_declare("", exclusive=True)
    channel.queue_declare("orders.passing", auto_delete=True)
    channel.queue_declare("orders.analytics", durable=True)
    channel.queue_declare("warren.warehouse", durable=True, arguments={"x-queue-type": "quorum"})

    assert wrong() == set()
    assert {finding.name for finding in drift.look().findings} <= {queue.name for queue in wanted().queues}


def a_stream(channel: BlockingChannel) -> None:
    channel.queue_declare("orders.history", durable=True, arguments={"x-queue-type": "stream"})
    channel.queue_bind("orders.history", EXCHANGE, "#")


def an_mqtt_session(channel: BlockingChannel) -> None:
    channel.queue_declare("mqtt-subscription-xqos1", durable=True, arguments={"x-expires": 86_400_000})
    channel.queue_bind("mqtt-subscription-xqos1", EXCHANGE, "order.*")


def a_queue_that_dead_letters_elsewhere(channel: BlockingChannel) -> None:
    arguments = {**desired.queue_arguments(), "x-dead-letter-routing-key": "billing.dead_letters"}
    channel.queue_declare("orders.billing", durable=True, arguments=arguments)
    channel.queue_bind("orders.billing", EXCHANGE, "order.placed")


def a_queue_of_another_project_with_our_app_id(channel: BlockingChannel) -> None:
    channel.queue_declare("billing.invoices", durable=True, arguments=desired.queue_arguments())
    channel.queue_bind("billing.invoices", EXCHANGE, "order.placed")


@pytest.mark.parametrize("make", [a_stream, an_mqtt_session, a_queue_that_dead_letters_elsewhere,
                                  a_queue_of_another_project_with_our_app_id])  # fmt: skip
def test_a_queue_that_another_application_bound_to_our_exchange_is_a_note_without_steps(
    channel: BlockingChannel, make: Callable[[BlockingChannel], None]
) -> None:
    make(channel)

    [note] = [finding for finding in drift.look().findings if finding.kind is Kind.FOREIGN_QUEUE]

    assert note.said.endswith("is bound to orders.events by another application")
    assert mq("topology", "diff")[0] == 0
    assert mq("topology", "plan")[1] == ""
    assert checked() == {}


def test_a_binding_of_our_queue_to_an_exchange_of_another_application_is_a_note_without_steps(
    channel: BlockingChannel,
) -> None:
    channel.exchange_declare("crm.events", "topic", durable=True)
    channel.queue_bind(SMS, "crm.events", "customer.#")

    [note] = [finding for finding in drift.look().findings if finding.kind is Kind.FOREIGN_BINDING]

    assert note.said == "queue orders.sms is also bound to crm.events by customer.#, an exchange of another application"
    assert mq("topology", "diff")[0] == 0
    assert mq("topology", "plan")[1] == ""


def test_a_queue_of_our_name_that_another_application_declared_is_not_deleted_by_the_plan(
    channel: BlockingChannel,
) -> None:
    channel.queue_delete(RED_PACKET)
    channel.queue_declare(RED_PACKET, durable=True, arguments={"x-queue-type": "stream"})

    assert Kind.OTHER_QUEUE in wrong()
    commands = [step.command for step in mending.plan(drift.look())]

    assert not [command for command in commands if "DELETE" in command or "--replace" in command]
    with pytest.raises(NotReplaced, match="is a stream"):
        replace(RED_PACKET, patience=1)


def test_a_broker_that_is_away_is_one_line_and_exit_code_3(settings: Any) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": [f"amqp://127.0.0.1:{free_port()}/"]}

    for action in ("diff", "plan", "declare"):
        code, output, beside = mq("topology", action)
        assert (code, output) == (3, "")
        assert beside.count("\n") == 0


# --- Checks ------------------------------------------------------------------------------------------------


def checked() -> dict[str | None, str]:
    found = run_checks(tags=["messaging"], include_deployment_checks=True)
    return {message.id: str(message) for message in found if message.id not in {"messaging.W005"}}


def test_the_checks_find_nothing_at_a_broker_just_declared(channel: BlockingChannel) -> None:
    assert checked() == {}


def test_the_checks_find_each_drift_under_its_id(channel: BlockingChannel) -> None:
    for make in (other_queue, extra_binding, missing_binding, unrouted_event, abandoned_queue, unconsumed_queue):
        make(channel)

    eventually(lambda: set(checked()) == {f"messaging.W0{number}" for number in range(10, 16)}, report=checked)


def test_the_checks_do_not_look_at_the_broker_unless_asked_for_deployment(settings: Any) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": [f"amqp://127.0.0.1:{free_port()}/"]}

    assert run_checks(tags=["messaging"]) == []
    assert set(checked()) == {"messaging.W004", drift.NOT_LOOKED_AT}


def test_the_checks_do_not_wait_for_a_broker_that_never_answers(settings: Any) -> None:
    with something_that_answers(None) as silent:
        settings.MESSAGING = {
            **settings.MESSAGING,
            "AMQP_URLS": [f"amqp://u:secret@127.0.0.1:{silent}/shop"],
            "MANAGEMENT_URL": f"http://127.0.0.1:{silent}",
            "CONNECT_TIMEOUT": 1,
        }
        found = checked()

    assert set(found) == {drift.NOT_LOOKED_AT}
    assert "secret" not in str(found)


def test_the_checks_say_what_nobody_could_see(channel: BlockingChannel, without_management: None) -> None:
    assert set(checked()) == {"messaging.I001"}


def test_an_event_that_nobody_wants_is_found_without_a_broker() -> None:
    with registered():
        found = run_checks(tags=["messaging"])

    assert {message.id for message in found} == {"messaging.W006"}
    assert any("order.placed" in message.msg for message in found)


# --- Mending -----------------------------------------------------------------------------------------------


def test_replace_leaves_alone_what_stands_as_wanted_and_what_is_not_ours(channel: BlockingChannel) -> None:
    channel.queue_declare("elsewhere")
    channel.basic_publish("", SMS, b"{}")

    assert replace(SMS, patience=1) is False
    with pytest.raises(NotReplaced, match="neither a queue nor an exchange"):
        replace("elsewhere", patience=1)
    assert channel.queue_declare(SMS, passive=True).method.message_count == 1


def test_replace_deletes_no_exchange_to_which_another_application_is_bound(
    channel: BlockingChannel, broker: RabbitMQNode, vhost: str
) -> None:
    other_exchange(channel)
    channel.queue_declare("elsewhere")
    channel.queue_bind("elsewhere", EXCHANGE, "order.placed")

    with pytest.raises(NotReplaced, match="has bindings that this project does not declare"):
        replace(EXCHANGE, patience=1)

    there = broker.api("GET", f"/exchanges/{vhost.rpartition('/')[2]}/{EXCHANGE}/bindings/source")
    assert len(there) == len(wanted().bindings) + 1


def test_replace_deletes_no_queue_that_holds_messages(channel: BlockingChannel) -> None:
    other_queue(channel)
    channel.basic_publish("", RED_PACKET, b"{}")

    code, _, beside = mq("topology", "declare", "--replace", RED_PACKET, "--wait", "1")

    assert code == 1
    assert "still has 1 messages" in beside
    assert channel.queue_declare(RED_PACKET, passive=True).method.message_count == 1


@pytest.mark.parametrize("make", [missing_exchange, other_exchange, missing_queue, other_queue, missing_binding,
                                  unrouted_event])  # fmt: skip
def test_the_plan_mends_what_can_be_declared(channel: BlockingChannel, make: Callable[[BlockingChannel], None]) -> None:
    make(channel)

    for step in mending.plan(drift.look()):
        if " mq " in step.command:
            assert mq(*shlex.split(step.command)[2:])[0] == 0

    assert wrong() == set()


def test_the_plan_takes_away_what_is_too_much(
    channel: BlockingChannel, broker: RabbitMQNode, run_process: ProcessStarter
) -> None:
    extra_binding(channel)
    abandoned_queue(channel)

    follow_the_steps_by_curl(broker, run_process)

    assert wrong() == set()


def follow_the_steps_by_curl(broker: RabbitMQNode, run_process: ProcessStarter) -> None:
    """Run the steps of the plan that ask for the password, which a person would type."""
    for step in mending.plan(drift.look()):
        if step.command.startswith("curl"):
            line = shlex.split(step.command)
            line[line.index("-u") + 1] += f":{broker.password}"
            assert run_process.program(*line).wait() == 0


@pytest.mark.django_db(transaction=True)
def test_a_running_consumer_reads_the_queue_that_replaced_its_own(vhost: str, settings: Any) -> None:
    settings.MESSAGING = {**settings.MESSAGING, **IMPATIENT}
    consumer = a_consumer()
    with registered(consumer):
        mq("topology", "declare")
        with plain_channel(vhost) as channel:
            declare_otherwise(channel, consumer.queue, "test.noted")
        with running_relay(), running_worker(consumer):
            add(Noted(text="before"))
            eventually(lambda: notes("before") == 1)
            assert replace(consumer.queue, patience=10) is True
            add(Noted(text="after"))
            eventually(lambda: notes("after") == 1)


def test_the_plan_replaces_a_lasting_request_queue(
    channel: BlockingChannel, broker: RabbitMQNode, run_process: ProcessStarter
) -> None:
    channel.queue_declare("rpc.shipping.quote", durable=True)
    channel.queue_bind("rpc.shipping.quote", "amq.direct", "x")
    assert wrong() == {Kind.OTHER_QUEUE}

    follow_the_steps_by_curl(broker, run_process)

    assert wrong() == set()


def test_the_plan_does_not_take_away_what_goes_with_a_replaced_queue(channel: BlockingChannel) -> None:
    other_queue(channel)
    extra_binding(channel)
    commands = [step.command for step in mending.plan(drift.look())]

    assert [command for command in commands if command.startswith("curl")] == []


@pytest.mark.django_db(transaction=True)
@pytest.mark.timeout(300)
def test_the_plan_loses_nothing_while_events_come_all_the_time(vhost: str, settings: Any) -> None:
    """A queue that stands otherwise is replaced while a relay publishes into it and a worker reads from it."""
    settings.MESSAGING = {**settings.MESSAGING, **IMPATIENT, "RECONCILE_AFTER": 1.0, "RECONCILE_INTERVAL": 1.0}
    consumer = a_consumer()
    with registered(consumer):
        mq("topology", "declare")
        with plain_channel(vhost) as channel:
            declare_otherwise(channel, consumer.queue, "test.noted")
        assert Kind.OTHER_QUEUE in wrong()
        with running_relay(), running_worker(consumer), events_all_the_time() as added:
            eventually(lambda: notes() > 10)
            steps = [step.command for step in mending.plan(drift.look()) if step.command]
            for command in steps:
                if "topology diff" not in command:
                    follow(command)
            assert Kind.OTHER_QUEUE not in wrong()
            before = len(added)
            eventually(lambda: len(added) > before + 20)
        with running_relay(), running_worker(consumer):
            eventually(lambda: (follow(steps[-2]), len(added) == notes())[1], within=60, every=0.5)

    assert len(added) > 30
    assert all(notes(text) == 1 for text in added)
    assert queue_length(vhost, consumer.queue) == 0


@pytest.mark.django_db(transaction=True)
def test_the_plan_brings_back_what_went_with_a_deleted_queue(vhost: str, settings: Any) -> None:
    settings.MESSAGING = {**settings.MESSAGING, **IMPATIENT, "RECONCILE_AFTER": 0.5, "RECONCILE_INTERVAL": 1.0}
    consumer = a_consumer()
    with registered(consumer):
        mq("topology", "declare")
        with running_relay():
            add(*(Noted(text=f"note-{number}") for number in range(5)))
            eventually(lambda: queue_length(vhost, consumer.queue) == 5)
        with plain_channel(vhost) as channel:
            channel.queue_delete(consumer.queue)
        steps = [step.command for step in mending.plan(drift.look()) if step.command]
        assert Kind.MISSING_QUEUE in wrong()
        for command in steps[:-1]:
            follow(command)
        with running_relay(), running_worker(consumer):
            eventually(lambda: (follow(steps[-2]), notes() == 5)[1], within=60, every=0.5)


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


def follow(command: str) -> None:
    """Do what a step of the plan says; a queue may stay busy, and something may not be known yet."""
    _, name, *arguments = shlex.split(command)
    not_yet = suppress(CommandError) if name == "messages" else nullcontext()
    with not_yet:
        call_command(name, *arguments, stdout=StringIO(), stderr=StringIO())

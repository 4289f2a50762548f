"""`mq grants`: with these rights each kind of process can do its work, and RabbitMQ refuses it everything else."""

import json
import shlex
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from io import StringIO
from pathlib import Path
from typing import Any

import pika
import pytest
from django.core.management import call_command
from django.db import transaction

from messaging import conf, consumers, events, outbox, rpc
from messaging.broker.connection import Connection
from messaging.exceptions import OperationRefused
from messaging.message import Delivery
from messaging.models import InboxMessage, OutboxMessage
from messaging.procedures import request_queue
from messaging.rpc import client
from messaging.topology import desired
from messaging.topology.declare import Declaration
from messaging.worker import dead_letters
from orders.models import Product, RedPacket, TextMessage
from script.services.rabbitmq import RabbitMQNode
from tests.acceptance.conftest import product  # noqa: F401 (a fixture)
from tests.support.accounts import Accounts, accounts_at
from tests.support.amqp import plain_channel
from tests.support.command_line import mq
from tests.support.consuming import Noted, a_consumer, note, notes, registered
from tests.support.rpc import running_server
from tests.support.running import IMPATIENT, running_relay, running_worker
from tests.support.waiting import eventually

NOTES, OTHERS = a_consumer(), a_consumer(name="others")


@pytest.fixture
def accounts(broker: RabbitMQNode, vhost: str, settings: Any, tmp_path: Path) -> Iterator[Accounts]:
    """An account for each role, and the topology as the operator declares it."""
    with accounts_at(broker, vhost, tmp_path) as accounts:
        app_id = f"w{uuid.uuid4().hex[:8]}"
        settings.MESSAGING = {**settings.MESSAGING, **IMPATIENT, "APP_ID": app_id, "RELAY_THREAD": False}
        with registered(NOTES, OTHERS):
            accounts.grant()
            as_user(settings, accounts["operator"])
            call_command("mq", "topology", "declare", stdout=StringIO())
            yield accounts


def as_user(settings: Any, url: str) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": [url]}


def printed(*arguments: str) -> str:
    output = StringIO()
    call_command("mq", *arguments, stdout=output)
    return output.getvalue()


# --- Everything that an account could try ----------------------------------------------------------------------

#: A method of a channel, and its arguments.
Try = tuple[str, list[Any], dict[str, Any]]


def attempt(method: str, *arguments: Any, **options: Any) -> Try:
    return method, list(arguments), options


def everything() -> dict[str, Try]:
    event, exchange, dead = "test.noted", conf.get().exchange, desired.dead_letter_queue()
    queue, request = NOTES.queue, request_queue("shipping.quote")
    as_ours = {"durable": True, "arguments": desired.queue_arguments()}
    as_dead_letters = {"durable": True, "arguments": desired.topology([]).queues[0].arguments}
    as_requests = {"durable": True, "auto_delete": True, "arguments": {"x-queue-type": "classic"}}
    tries = {
        "publish the event": attempt("basic_publish", exchange, event, b"{}"),
        "publish another event": attempt("basic_publish", exchange, "test.noted2", b"{}"),
        "publish an event of more words": attempt("basic_publish", exchange, f"x.{event}", b"{}"),
        "publish an event and a line feed": attempt("basic_publish", exchange, f"{event}\n", b"{}"),
        "publish to one queue": attempt("basic_publish", "", queue, b"{}"),
        "publish to another exchange": attempt("basic_publish", "amq.topic", event, b"{}"),
        "declare the exchange": attempt("exchange_declare", exchange, "topic", durable=True),
        "delete the exchange": attempt("exchange_delete", exchange),
        "declare another exchange": attempt("exchange_declare", "mine", "topic"),
        "bind the queue": attempt("queue_bind", queue, exchange, event),
        "unbind the queue": attempt("queue_unbind", queue, exchange, event),
        "bind the queue to all that is logged": attempt("queue_bind", queue, "amq.rabbitmq.log"),
        "bind the dead letters": attempt("queue_bind", dead, exchange, event),
        "declare another queue": attempt("queue_declare", "mine"),
        "declare a nameless queue": attempt("queue_declare", "", exclusive=True),
        "declare a queue like it": attempt("queue_declare", queue.replace(".", "x")),
        "declare a longer queue": attempt("queue_declare", f"{queue}2"),
        "declare the queue of requests": attempt("queue_declare", request, **as_requests),
        "have a reply queue": attempt("queue_declare", f"rpc.reply.{uuid.uuid4()}", exclusive=True),
    }
    for which, name, how in (
        ("the queue", queue, as_ours),
        ("the other queue", OTHERS.queue, as_ours),
        ("the dead letters", dead, as_dead_letters),
    ):
        tries |= {
            f"read {which}": attempt("basic_get", name),
            f"consume {which}": attempt("basic_consume", name, lambda *_: None),
            f"purge {which}": attempt("queue_purge", name),
            f"declare {which}": attempt("queue_declare", name, **how),
        }
    return {**tries, "delete the queue": attempt("queue_delete", queue)}


def allowed(url: str, tries: dict[str, Try]) -> set[str]:
    """What an account gets through with; all else was refused with 403."""
    done, refusals = set(), {}
    with plain_channel(url) as first:
        for name, (method, arguments, options) in tries.items():
            channel = first.connection.channel()
            channel.confirm_delivery()
            try:
                getattr(channel, method)(*arguments, **options)
            except pika.exceptions.ChannelClosedByBroker as error:
                refusals[name] = error.reply_code
            else:
                done.add(name)
                channel.close()
    assert set(refusals.values()) <= {403}, refusals
    return done


PUBLISHES = {"publish the event", "publish to one queue"}
READS = {"read the queue", "consume the queue", "purge the queue"}
ROLES = {
    "web": PUBLISHES,
    "relay": PUBLISHES,
    "consumer-notes": READS,
    "consumer-others": {"read the other queue", "consume the other queue", "purge the other queue"},
    "consumer-dead_letters": {"read the dead letters", "consume the dead letters", "purge the dead letters"},
    "rpc-worker": {"publish to one queue", "declare the queue of requests"},
    "rpc-caller": {"publish to one queue", "have a reply queue"},
}


def test_a_role_may_do_its_work_and_nothing_else(accounts: Accounts) -> None:
    tries = everything()
    assert {role: allowed(accounts[role], tries) for role in ROLES} == ROLES

    # Only the operator may change the topology, and only ours. Last comes what takes away what the others need.
    refused = {
        "publish an event and a line feed",
        "publish to another exchange",
        "declare another exchange",
        "bind the queue to all that is logged",
        "declare another queue",
        "declare a nameless queue",
        "declare a queue like it",
        "declare a longer queue",
        "declare the queue of requests",
        "have a reply queue",
    }
    for destructive in ("unbind the queue", "delete the queue", "delete the exchange"):
        tries[destructive] = tries.pop(destructive)
    assert allowed(accounts["operator"], tries) == set(tries) - refused


def test_with_logs_over_the_broker_every_role_writes_them_and_one_reads(
    broker: RabbitMQNode, vhost: str, accounts: Accounts, settings: Any
) -> None:
    logs = desired.log_exchange().name
    tries = {
        "write": attempt("basic_publish", logs, "orders.sms.error", b"{}"),
        "declare": attempt("exchange_declare", logs, "topic", durable=True),
        "delete": attempt("exchange_delete", logs),
    }
    with plain_channel(vhost) as channel:
        channel.exchange_declare(logs, "topic", durable=True)
    assert {role: allowed(accounts[role], tries) for role in ROLES} == {role: set() for role in ROLES}

    settings.MESSAGING = {**settings.MESSAGING, "LOG_TO_BROKER": True}
    accounts.grant()

    assert {role: allowed(accounts[role], tries) for role in ROLES} == {role: {"write"} for role in ROLES}
    assert allowed(accounts["log-reader"], tries) == set()
    with plain_channel(accounts["log-reader"]) as channel:
        channel.queue_bind(channel.queue_declare("", exclusive=True).method.queue, logs, "orders.#")


def test_names_that_look_like_expressions_are_granted_as_they_are(
    broker: RabbitMQNode, vhost: str, accounts: Accounts
) -> None:
    odd = a_consumer(name="odd", queue="a.b|c(d)*[e]+{f}^$\\ -é'\"")
    with registered(odd):
        accounts.grant("odd=consumer-odd")
    url = accounts["odd"]
    with plain_channel(vhost) as channel:
        for queue in (odd.queue, odd.queue.replace("a.b", "aXb"), "a.b", "c"):
            channel.queue_declare(queue)
    with plain_channel(url) as channel:
        channel.basic_get(odd.queue)
    for queue in (odd.queue.replace("a.b", "aXb"), "a.b", "c"):
        with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="403"), plain_channel(url) as channel:
            channel.basic_get(queue)


# --- What is printed ---------------------------------------------------------------------------------------


def printed_lines(*arguments: str) -> list[list[str]]:
    return [shlex.split(line) for line in printed("grants", *arguments).splitlines() if line and line[0] != "#"]


@pytest.fixture
def noted_alone() -> Iterator[None]:
    """One event: each exchange is another line, and another run of rabbitmqctl."""
    with events.registry.temporary(Noted):
        yield


def test_the_printed_lines_do_the_same_as_the_json_and_hold_no_password(
    broker: RabbitMQNode, accounts: Accounts, noted_alone: None
) -> None:
    try:
        for program, *arguments in printed_lines("--user", "odd name=web,rpc-caller"):
            assert program == "rabbitmqctl"
            broker.ctl(*arguments, stdin="a password\n" if "add_user" in arguments else "")
        by_lines = rights(broker, "odd name")
        assert broker.ctl("authenticate_user", "odd name", stdin="a password\n")
    finally:
        broker.api("DELETE", "/users/odd%20name")
    accounts.grant("same=web,rpc-caller", by_rabbitmqctl=True)
    assert rights(broker, "same") == by_lines
    assert all(by_lines)
    with plain_channel(accounts["same"]) as channel:  # importing the rights left its password as it was
        assert channel.is_open


def rights(broker: RabbitMQNode, user: str) -> list[list[Any]]:
    """The permissions and the topic permissions of a user."""
    return [
        [{key: value for key, value in each.items() if key != "user"} for each in broker.api("GET", path)
         if each["user"] == user]
        for path in ("/permissions", "/topic-permissions")
    ]  # fmt: skip


def test_a_name_that_begins_with_a_dash_is_no_option() -> None:
    add_user, *others = printed_lines("--user=-odd=web")
    assert add_user == ["rabbitmqctl", "add_user", "--", "-odd"]
    assert all(line[2:6] == ["-p", "/", "--", "-odd"] for line in others)


@pytest.mark.parametrize(
    ("user", "said"), [("shop", "NAME=ROLE"), ("shop=king", "no role 'king'"), ("=web", "NAME=ROLE")]
)
def test_what_is_no_role_is_a_usage_error(user: str, said: str) -> None:
    told = mq("grants", "--user", user)
    assert told.code == 2
    assert said in told.err


def test_the_vhost_is_that_of_the_address(settings: Any) -> None:
    as_user(settings, "amqp://localhost/a%2Fb?heartbeat=5")
    found = json.loads(printed("grants", "--json"))
    assert {each["vhost"] for each in found["permissions"]} == {"a/b"}


def test_an_account_that_may_not_declare_or_enter_gets_an_error_that_says_so(accounts: Accounts, settings: Any) -> None:
    as_user(settings, accounts["web"])
    told = mq("topology", "declare")
    assert told.code == 1
    assert f"{NOTES.queue}: this user may not declare it" in told.err

    as_user(settings, accounts["operator"].replace(accounts.password, "wrong"))
    told = mq("topology", "declare")
    assert told.code == 3
    assert "refused" in told.err


# --- The work gets done ------------------------------------------------------------------------------------


@pytest.fixture
def database(transactional_db: None) -> None:
    """Rows that other threads see."""


def test_a_consumer_that_may_not_publish_gets_its_retries_through_the_relay(
    database: None, accounts: Accounts, settings: Any
) -> None:
    def fail_once(event: Noted, delivery: Delivery) -> None:
        if delivery.attempt == 1:
            raise ConnectionError("not yet")
        note(event.text)

    with registered(flaky := a_consumer(fail_once)):
        as_user(settings, accounts["relay"])
        with running_relay():
            as_user(settings, accounts["consumer-notes"])
            with running_worker(flaky), transaction.atomic():
                outbox.add(Noted(text="hello"))
            eventually(lambda: not OutboxMessage.objects.exclude(state=OutboxMessage.State.PUBLISHED).exists())
            with running_worker(flaky):
                eventually(lambda: notes("hello") == 1, report=lambda: list(InboxMessage.objects.values()))


def test_dead_letters_are_recorded_by_one_who_may_only_read_them(
    database: None, accounts: Accounts, settings: Any, vhost: str
) -> None:
    with plain_channel(vhost) as channel:
        channel.basic_publish("", desired.dead_letter_queue(), b"{}", pika.BasicProperties(message_id="gone"))
    as_user(settings, accounts["consumer-dead_letters"])
    with running_worker(dead_letters.consumer()):
        eventually(lambda: InboxMessage.objects.filter(message_id="gone", state=InboxMessage.State.DEAD).exists())


def test_a_relay_that_may_not_configure_still_sees_that_a_queue_is_gone(
    database: None, accounts: Accounts, settings: Any, vhost: str
) -> None:
    as_user(settings, accounts["relay"])
    with running_relay() as relay:
        with plain_channel(vhost) as channel:
            channel.queue_delete(OTHERS.queue)
        eventually(lambda: relay._declaring.problems)
        with transaction.atomic():
            [row] = outbox.add(Noted(text="hello"))
        eventually(lambda: OutboxMessage.objects.get(pk=row.pk).state == OutboxMessage.State.UNROUTABLE)
        assert "others: this user may not declare it" in OutboxMessage.objects.get(pk=row.pk).last_error
        as_user(settings, accounts["operator"])
        printed("topology", "declare")
        eventually(lambda: OutboxMessage.objects.get(pk=row.pk).state == OutboxMessage.State.PUBLISHED)


def test_what_was_refused_is_not_asked_for_again_on_the_same_connection(accounts: Accounts, settings: Any) -> None:
    as_user(settings, accounts["relay"])
    connection = Connection("test").start()
    try:
        assert connection.wait_until_open(10)
        declaration = Declaration(connection)
        wanted = desired.topology(consumers.registered())
        refusals: Counter[str] = Counter()
        call = connection.call

        def counting(method: str, **arguments: Any) -> Any:
            try:
                return call(method, **arguments)
            except OperationRefused:
                refusals[method] += 1
                raise

        connection.call = counting  # type: ignore[method-assign]
        assert declaration.declare(wanted) == {}
        assert set(refusals) == {"exchange_declare", "queue_declare", "queue_bind"}
        refusals.clear()
        assert declaration.declare(wanted) == {}
        assert not refusals

        connection.reset("the test wants a fresh one")
        eventually(lambda: connection.generation == 2)
        assert declaration.declare(wanted) == {}
        assert refusals
    finally:
        connection.stop()


def test_the_shop_works_with_an_account_for_each_process(
    broker: RabbitMQNode,
    vhost: str,
    settings: Any,
    tmp_path: Path,
    product: Product,  # noqa: F811
) -> None:
    settings.MESSAGING = {**settings.MESSAGING, **IMPATIENT, "RELAY_THREAD": False}
    with accounts_at(broker, vhost, tmp_path) as accounts, ExitStack() as running:

        def start(role: str, process: AbstractContextManager[Any]) -> None:
            as_user(settings, accounts[role])
            running.enter_context(process)

        accounts.grant(
            "caller=rpc-caller", "relay=relay", "server=rpc-worker", "operator=operator",
            "workers=consumer-sms,consumer-red_packet,consumer-dead_letters",
        )  # fmt: skip
        as_user(settings, accounts["operator"])
        printed("topology", "declare")
        start("relay", running_relay())
        start("workers", running_worker(*consumers.registered(), dead_letters.consumer()))
        start("server", running_server())
        as_user(settings, accounts["caller"])
        running.callback(client.close)

        assert rpc.call("shipping.quote", {"weight_grams": 100, "destination": "CN"}, timeout=10)["currency"]
        call_command("place_order", "--wait", "15", stdout=StringIO())  # until every effect is there
        assert TextMessage.objects.exists()
        assert RedPacket.objects.exists()

"""Every system of the classic tutorials, as lines in a terminal, on real processes and a real broker."""

import json
import re
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pika import BasicProperties

from messaging import conf
from messaging.validation.addresses import broker_address
from script.services.rabbitmq import RabbitMQNode
from tests.support.amqp import plain_channel, queue_length, unacknowledged
from tests.support.command_line import mq
from tests.support.processes import ProcessStarter, RunningProcess
from tests.support.waiting import eventually

Listen = Callable[..., RunningProcess]


@pytest.fixture
def listen(run_process: ProcessStarter) -> Listen:
    """Starts `mq listen …` and returns once it listens."""

    def start(*arguments: str) -> RunningProcess:
        process = run_process("mq", "listen", *arguments)
        process.wait_for_line("^Listening on")
        return process

    return start


def got(process: RunningProcess) -> list[str]:
    """The bodies that a listener has printed, as a pipe gets them."""
    return [body for _, tab, body in (line.partition("\t") for line in list(process.lines)) if tab]


def got_by_key(process: RunningProcess) -> list[str]:
    """The keys that it has printed."""
    return [key for key, tab, _ in (line.partition("\t") for line in list(process.lines)) if tab]


def publish(*arguments: str) -> None:
    said = mq("publish", *arguments)
    assert said.code == 0, said.err


def vhost_of(url: str) -> str:
    return broker_address(url).vhost


def listed(node: RabbitMQNode, what: str, url: str, *columns: str) -> list[list[str]]:
    """What rabbitmqctl lists of the vhost; its heading left out."""
    text = node.ctl(f"list_{what}", "-q", "--no-table-headers", "-p", vhost_of(url), *columns)
    return [line.split("\t") for line in text.splitlines()]


# --- 1. Hello ----------------------------------------------------------------------------------------------


def test_hello_is_sent_seen_in_its_queue_and_received(vhost: str, broker: RabbitMQNode) -> None:
    publish("Hello World!", "--queue", "hello", "--declare", "--transient")
    assert listed(broker, "queues", vhost, "name", "messages", "durable") == [["hello", "1", "false"]]
    assert mq("peek", "hello").lines == ["hello\tHello World!"]
    assert queue_length(vhost, "hello") == 1
    assert mq("listen", "hello", "--max-messages", "1").lines == ["hello\tHello World!"]
    assert queue_length(vhost, "hello") == 0


# --- 2. Work queue -----------------------------------------------------------------------------------------


def test_workers_take_turns_and_a_killed_workers_message_goes_to_another(vhost: str, listen: Listen) -> None:
    first = listen("task_queue", "--declare", "--dots", "3600")
    second = listen("task_queue")
    for number in range(1, 7):
        publish(f"task {number}", "--queue", "task_queue")
    eventually(lambda: len(got(first) + got(second)) == 6)
    assert (got(first), got(second)) == (["task 1", "task 3", "task 5"], ["task 2", "task 4", "task 6"])

    publish("work.", "--queue", "task_queue")
    eventually(lambda: "work." in got(first))  # it has begun, and will not finish
    assert "work." not in got(second)
    first.kill()
    eventually(lambda: "work." in got(second))
    assert (second.stop(), queue_length(vhost, "task_queue")) == (0, 0)


def test_a_durable_queue_and_persistent_messages_survive_a_restart(breakable_broker: RabbitMQNode) -> None:
    publish("kept", "--queue", "task_queue", "--declare")
    publish("lost too", "--queue", "hello", "--declare", "--transient")
    breakable_broker.restart()
    assert mq("listen", "task_queue", "--max-messages", "1").lines == ["task_queue\tkept"]
    assert mq("peek", "task_queue").err == "Nothing waits in task_queue.\n"
    assert "no queue 'hello'" in mq("peek", "hello").err


@pytest.mark.parametrize(("prefetch", "slow_gets", "fast_gets"), [("1", 1, 9), ("50", 5, 5)])
def test_prefetch_1_is_fair_and_a_large_one_goes_round(
    vhost: str, broker: RabbitMQNode, listen: Listen, prefetch: str, slow_gets: int, fast_gets: int
) -> None:
    slow = listen("task_queue", "--declare", "--prefetch", prefetch, "--dots", "3600")
    fast = listen("task_queue", "--prefetch", prefetch)
    for number in range(10):
        publish(f"{number}.", "--queue", "task_queue")
        if number == 0:
            eventually(lambda: got(slow))  # never done with it
        elif prefetch == "1":
            eventually(lambda sent=number: len(got(fast)) == sent)

    eventually(lambda: len(got(fast)) == fast_gets)
    eventually(lambda: unacknowledged(broker, vhost, "task_queue") == slow_gets)
    assert got(slow) == ["0."]
    assert slow.stop() == 0  # what it held goes back, in the middle of its work
    eventually(lambda: sorted(got(fast)) == [f"{number}." for number in range(10)])


# --- 3. Publish/subscribe ----------------------------------------------------------------------------------


def test_every_subscriber_gets_everything_in_a_queue_that_goes_with_it(
    vhost: str, broker: RabbitMQNode, listen: Listen
) -> None:
    listeners = [listen("logs", "--declare", "--type", "fanout"), listen("logs")]
    queues = listed(broker, "queues", vhost, "name", "exclusive")
    assert [exclusive for _, exclusive in queues] == ["true", "true"]
    assert all(name.startswith("amq.gen-") for name, _ in queues)

    publish("to all", "--exchange", "logs")
    for each in listeners:
        eventually(lambda each=each: got(each) == ["to all"])

    for each in listeners:
        assert each.stop() == 0
    assert listed(broker, "queues", vhost, "name") == []
    said = mq("publish", "to nobody", "--exchange", "logs")
    assert said.code == 1
    assert said.err == ("returned: no queue is bound to exchange logs for key '': nobody listens; the message is gone.")


# --- 4. Routing --------------------------------------------------------------------------------------------


def test_a_subscriber_binds_the_severities_that_it_wants(vhost: str, broker: RabbitMQNode, listen: Listen) -> None:
    everything = listen("direct_logs", "info", "warning", "error", "--declare", "--type", "direct")
    errors = listen("direct_logs", "error")
    bound = [key for source, key in listed(broker, "bindings", vhost, "source_name", "routing_key") if source]
    assert sorted(bound) == ["error", "error", "info", "warning"]  # one queue three times

    for severity in ("info", "warning", "error"):
        publish(f"an {severity}", "--exchange", "direct_logs", "--key", severity)
    eventually(lambda: got_by_key(everything) == ["info", "warning", "error"])
    eventually(lambda: got(errors) == ["an error"])
    said = mq("publish", "a detail", "--exchange", "direct_logs", "--key", "debug")
    assert (said.code, "returned" in said.err) == (1, True)


# --- 5. Topics ---------------------------------------------------------------------------------------------


def test_topics_match_words(vhost: str, listen: Listen) -> None:
    some = listen("topic_logs", "kern.*", "old.*", "--type", "topic", "--declare")
    more = listen("topic_logs", "old.#", "*.orange.*", "lazy.#", "*.*.rabbit")
    taken = {
        "kern.critical": (some,),
        "old.boy": (some, more),
        "old": (more,),
        "old.boy.python": (more,),
        "quick.orange.fox": (more,),
        "quick.orange.rabbit": (more,),  # by two bindings
        "lazy.orange.rabbit": (more,),  # by three
        "lazy.brown.fox": (more,),
        "lazy": (more,),
    }
    for key in taken:
        publish("x", "--exchange", "topic_logs", "--key", key)
    for key in ("kern.critical.test", "kern", "quick.brown.fox", "orange", "quick.orange.new.rabbit"):
        assert mq("publish", "x", "--exchange", "topic_logs", "--key", key).code == 1, f"{key} was not returned"

    for each in (some, more):
        wanted = [key for key, listeners in taken.items() if each in listeners]
        eventually(lambda each=each, wanted=wanted: got_by_key(each) == wanted)


# --- 6. Headers --------------------------------------------------------------------------------------------


def test_headers_match_all_or_any(vhost: str, listen: Listen) -> None:
    wanted = ["--header", "format=pdf", "--header", "pages=2"]
    all_of_them = listen("offers", *wanted, "--declare", "--type", "headers")
    any_of_them = listen("offers", *wanted, "--match", "any")
    for body, *headers in (("both", *wanted), ("one", "--header", "format=pdf", "--header", "pages=3")):
        publish(body, "--exchange", "offers", *headers)
    assert mq("publish", "none", "--exchange", "offers", "--header", "format=txt").code == 1
    assert mq("publish", "text, no number", "--exchange", "offers", "--header", 'pages="2"').code == 1
    eventually(lambda: got(any_of_them) == ["both", "one"])
    eventually(lambda: got(all_of_them) == ["both"])


# --- 8. Properties, virtual hosts, users -------------------------------------------------------------------


def test_a_higher_priority_goes_first(vhost: str) -> None:
    for priority in ("1", "9", "5"):
        publish(f"priority {priority}", "--queue", "jobs", "--declare", "--argument", "x-max-priority=10",
                "--priority", priority)  # fmt: skip
    said = mq("listen", "jobs", "--max-messages", "3")
    assert said.lines == ["jobs\tpriority 9", "jobs\tpriority 5", "jobs\tpriority 1"]


def test_an_expired_message_is_gone(vhost: str) -> None:
    publish("soon stale", "--queue", "q", "--declare", "--expiration", "1")
    publish("lasting", "--queue", "q", "--expiration", "600000")
    eventually(lambda: queue_length(vhost, "q") == 1)
    assert mq("peek", "q").lines == ["q\tlasting"]


def test_every_property_is_shown(vhost: str) -> None:
    sent = BasicProperties(
        message_id="m-1",
        correlation_id="c-1",
        content_type="text/csv",
        priority=3,
        expiration="60000",
        headers={"a": 1},
    )
    with plain_channel(vhost) as channel:
        channel.queue_declare("q")
        channel.basic_publish("", "q", b"x", sent)
    [line] = mq("peek", "q", "--json").lines
    assert json.loads(line) == {
        "queue": "q",
        "exchange": "",
        "routing_key": "q",
        "redelivered": False,
        "properties": {
            "message_id": "m-1",
            "content_type": "text/csv",
            "correlation_id": "c-1",
            "expiration": "60000",
            "priority": 3,
            "delivery_mode": 1,
        },
        "headers": {"a": 1},
        "body": "x",
        "base64": False,
    }


@pytest.fixture
def businesses(broker: RabbitMQNode, vhost: str, settings: Any) -> Iterator[Callable[..., None]]:
    """Two businesses with a vhost and an account each; called, it says who speaks, and where."""
    made = {name: f"{name}-{uuid.uuid4().hex[:8]}" for name in ("sales", "stock")}
    for name, unique in made.items():
        broker.add_vhost(unique)
        broker.ctl("add_user", "--", unique, f"secret of {name}")
        theirs, write = f"{name}-.*", rf"({name}-.*|amq\.default)"
        broker.ctl("set_permissions", "-p", unique, "--", unique, theirs, write, theirs)

    def speak(user: str, vhost: str = "", password: str = "") -> None:
        url = f"amqp://{made[user]}:{password or f'secret%20of%20{user}'}@127.0.0.1:{broker.port}/{made[vhost or user]}"
        settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": [url]}

    yield speak
    for unique in made.values():
        broker.ctl("delete_user", unique)
        broker.delete_vhost(unique)


def test_each_business_has_its_vhost_and_its_account(businesses: Callable[..., None]) -> None:
    businesses("sales")
    publish("in sales", "--queue", "sales-q", "--declare")
    businesses("stock")
    # From 4.3 on RabbitMQ does not even say that to who could do nothing with it.
    said = mq("peek", "sales-q").err
    assert "no queue 'sales-q'" in said or "access to queue 'sales-q' in vhost 'stock-" in said
    businesses("stock", vhost="sales")
    said = mq("peek", "sales-q")
    assert said.code == 3
    assert said.err.startswith("RabbitMQ: the broker refused access to the virtual host: access to vhost 'sales-")
    assert said.err.endswith("). Check AMQP_URL.")
    businesses("sales", password="wrong")
    said = mq("peek", "sales-q")
    place = conf.get().brokers[0].place
    assert (said.code, said.err) == (
        3, f"RabbitMQ: the broker refused the user name or the password ({place}). Check AMQP_URL."
    )  # fmt: skip
    businesses("sales")
    assert mq("listen", "sales-q", "--max-messages", "1").lines == ["sales-q\tin sales"]


def test_what_an_account_may_not_do_is_one_line(businesses: Callable[..., None]) -> None:
    businesses("sales")
    for arguments in (
        ["publish", "x", "--exchange", "amq.topic"],
        ["publish", "x", "--queue", "stock-q", "--declare"],
        ["listen", "amq.fanout"],
    ):
        said = mq(*arguments)
        assert said.code == 1, arguments
        refusal = said.err.splitlines()[-1] if arguments[0] == "publish" else said.err
        assert re.search(r"RabbitMQ refuses: (\w+ )?access to ", refusal)
        assert "`manage.py mq grants`" in refusal

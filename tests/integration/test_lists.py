"""`mq queues | exchanges | bindings | consumers | connections`, by the management API; and why it does not answer."""

import json
import os
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pytest_httpserver import HTTPServer

from messaging.broker import management_api, management_http
from messaging.broker.management_api import reached
from messaging.broker.management_http import ManagementUnavailable, addresses
from messaging.mq import lists
from messaging.topology import desired
from script.services.ports import free_port
from script.services.rabbitmq import RabbitMQNode
from tests.support.amqp import plain_channel
from tests.support.certificates import Certificates
from tests.support.command_line import mq
from tests.support.consuming import a_consumer, registered
from tests.support.environment import ROOT, process_environment
from tests.support.listeners import something_that_answers
from tests.support.listening import Listen
from tests.support.terminal import on_terminal
from tests.support.waiting import eventually

BY_MANAGEMENT = "By the management API at http://127.0.0.1:"


def told(*arguments: str) -> tuple[list[dict[str, Any]], str]:
    """What the command prints as JSON, and what it says beside it."""
    said = mq(*arguments, "--json")
    assert said.code == 0, said.err
    return [json.loads(line) for line in said.lines], said.err


@pytest.fixture
def channel(vhost: str) -> Iterator[BlockingChannel]:
    with plain_channel(vhost) as channel:
        yield channel


# --- By the management API ---------------------------------------------------------------------------------


def test_a_queue_is_shown_with_its_kind_and_what_waits_in_it_at_this_moment(channel: BlockingChannel) -> None:
    arguments = {"x-queue-type": "quorum", "x-delivery-limit": 20}
    channel.queue_declare("sure", durable=True, arguments=arguments)
    channel.queue_declare("hello")
    channel.basic_publish("", "hello", b"Hello World!")

    [hello, sure], beside = told("queues")

    assert beside.startswith(BY_MANAGEMENT)
    assert (hello["name"], hello["type"], hello["durable"], hello["ready"]) == ("hello", "classic", False, 1)
    assert (sure["name"], sure["type"], sure["durable"], sure["ready"]) == ("sure", "quorum", True, 0)
    assert sure["arguments"] == arguments
    assert [queue["name"] for queue in told("queues", "hello")[0]] == ["hello"]


def test_rabbitmqs_own_exchanges_are_shown_only_with_all(channel: BlockingChannel) -> None:
    channel.exchange_declare("logs", "fanout")

    [logs], _ = told("exchanges")
    everything, _ = told("exchanges", "--all")

    assert (logs["name"], logs["type"], logs["durable"]) == ("logs", "fanout", False)
    assert {"logs", "", "amq.topic"} <= {each["name"] for each in everything}


def test_bindings_and_consumers_are_shown_by_what_they_join(channel: BlockingChannel) -> None:
    channel.exchange_declare("logs", "topic")
    channel.exchange_declare("more", "headers")
    for queue in ("one", "two"):
        channel.queue_declare(queue)
    channel.queue_bind("one", "logs", "kern.*")
    channel.queue_bind("one", "more", "", {"x-match": "all", "format": "pdf"})
    channel.queue_bind("two", "logs", "#")
    channel.basic_qos(prefetch_count=7)
    channel.basic_consume("two", lambda *_: None)

    bindings, _ = told("bindings")
    [consumer] = eventually(lambda: told("consumers", "two")[0])

    assert [(each["source"], each["destination"], each["key"]) for each in bindings] == [
        ("logs", "one", "kern.*"), ("logs", "two", "#"), ("more", "one", ""),
    ]  # fmt: skip
    assert bindings[2]["arguments"] == {"x-match": "all", "format": "pdf"}
    assert len(told("bindings", "two")[0]) == 1
    assert told("consumers", "one")[0] == []
    assert (consumer["queue"], consumer["acknowledges"], consumer["prefetch"]) == ("two", True, 7)


def test_a_connection_is_shown_by_its_name_and_user(channel: BlockingChannel, listen: Listen) -> None:
    channel.queue_declare("hello")
    listen("hello")
    name = f" mq listen {socket.gethostname()}:{os.getpid()}"

    def ours() -> list[dict[str, Any]]:
        return [each for each in told("connections")[0] if each["name"].endswith(name)]

    assert {each["user"] for each in eventually(ours)} == {"warren"}
    # Of a consumer just begun the management API does not know the connection yet.
    eventually(lambda: [each["connection"].endswith(name) for each in told("consumers", "hello")[0]] == [True])


def test_a_name_that_is_not_there_is_said_in_one_line(channel: BlockingChannel) -> None:
    for what in ("queues", "exchanges", "bindings", "consumers", "connections"):
        said = mq(what, "nowhere")
        assert (said.code, said.out) == (1, "")
        assert "nowhere" in said.err.splitlines()[-1]


@pytest.mark.parametrize("what", ["queues", "exchanges", "bindings"])
def test_beside_a_name_that_is_not_there_the_others_are_shown(channel: BlockingChannel, what: str) -> None:
    channel.queue_declare("here")
    channel.exchange_declare("here", "fanout")
    channel.queue_bind("here", "here")

    said = mq(what, "here", "nowhere", "--json")
    assert said.code == 1
    assert any("here" in json.loads(line).values() for line in said.lines)
    assert BY_MANAGEMENT in said.err
    assert "nowhere" in said.err.splitlines()[-1]


def test_many_queues_are_shown_each_once(channel: BlockingChannel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(management_api, "PAGE_SIZE", 2)
    monkeypatch.setattr(lists, "COUNTED_NOW", 3)  # of more, the counts are the management API's
    for number in range(5):
        channel.queue_declare(f"q{number}")

    assert [queue["name"] for queue in told("queues")[0]] == [f"q{number}" for number in range(5)]


def test_our_own_queues_come_first(channel: BlockingChannel) -> None:
    notes = a_consumer()
    with registered(notes):
        assert mq("topology", "declare").code == 0
        for name in ("aaa", "celery@host.celery.pidbox", "zzz"):
            channel.queue_declare(name)

        names = [queue["name"] for queue in told("queues")[0]]

    assert names == ["tests.notes", desired.dead_letter_queue(), "aaa", "celery@host.celery.pidbox", "zzz"]


def test_a_terminal_shows_arguments_only_when_asked(channel: BlockingChannel) -> None:
    channel.queue_declare("sure", durable=True, arguments={"x-queue-type": "quorum", "x-delivery-limit": 20})
    channel.queue_declare("hello")

    for verbosity, shows in ((), False), (("-v", "2"), True):
        with on_terminal("mq", "queues", *verbosity) as terminal:
            assert terminal.wait() == 0
        assert re.search(r"sure .*quorum", terminal.seen)
        assert "durable" in terminal.seen
        assert ("x-delivery-limit=20" in terminal.seen) is shows


def test_a_pipe_gets_the_rows_alone(channel: BlockingChannel) -> None:
    channel.queue_declare("hello")

    [row] = mq("queues").lines
    name, kind, ready, _, consumers, how, arguments = row.split("\t")
    assert (name, kind, ready, consumers, how, arguments) == ("hello", "classic", "0", "0", "transient", "")


# --- Why not by the management API -------------------------------------------------------------------------


@pytest.fixture
def plain_user(broker: RabbitMQNode, vhost: str, settings: Any) -> Iterator[str]:
    """An account that may use the vhost, and has no tag."""
    name = f"plain-{urlsplit(vhost).path[1:]}"
    broker.api("PUT", f"/users/{name}", {"password": "very secret", "tags": ""})
    allowed = {"configure": ".*", "write": ".*", "read": ".*"}
    broker.api("PUT", f"/permissions/{urlsplit(vhost).path[1:]}/{name}", allowed)
    url = vhost.replace(f"warren:{broker.password}@", f"{name}:very%20secret@")
    settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": [url]}
    yield name
    broker.api("DELETE", f"/users/{name}")


def reason(settings: Any, **changes: Any) -> str:
    settings.MESSAGING = {**settings.MESSAGING, **changes}
    with pytest.raises(ManagementUnavailable) as error:
        reached()
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_error_says_how_a_user_gets_the_missing_tag(plain_user: str, settings: Any) -> None:
    assert f"rabbitmqctl set_user_tags {plain_user} management" in reason(settings)
    for what in ("queues", "exchanges", "bindings", "consumers", "connections"):
        said = mq(what)
        assert said.code == 3
        assert said.err.startswith("This needs RabbitMQ's management API: http://127.0.0.1:")


def test_a_full_disk_is_one_line(channel: BlockingChannel) -> None:
    channel.queue_declare("hello")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "manage.py", "mq", "queues"],
            cwd=ROOT, env=process_environment(), stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip

    assert (done.returncode, done.stderr) == (
        1,
        "CommandError: The output cannot be written: No space left on device.\n",
    )


def test_a_tag_decides_whose_connections_are_shown(
    broker: RabbitMQNode, plain_user: str, channel: BlockingChannel
) -> None:
    channel.queue_declare("hello")
    broker.api("PUT", f"/users/{plain_user}", {"password": "very secret", "tags": "management"})
    assert [each["name"] for each in told("queues")[0]] == ["hello"]
    assert "Only this user's own" in told("connections")[1]

    broker.api("PUT", f"/users/{plain_user}", {"password": "very secret", "tags": "monitoring"})
    assert "Only this user's own" not in told("connections")[1]


def test_no_permission_on_the_virtual_host_is_said(plain_user: str, broker: RabbitMQNode, settings: Any) -> None:
    broker.api("PUT", f"/users/{plain_user}", {"password": "very secret", "tags": "monitoring"})
    host = urlsplit(settings.MESSAGING["AMQP_URLS"][0]).netloc

    assert "may not enter the virtual host '/'" in reason(settings, AMQP_URLS=[f"amqp://{host}/%2F"])
    assert "knows no virtual host 'nowhere'" in reason(settings, AMQP_URLS=[f"amqp://{host}/nowhere"])
    # From 4.3 on it says so in other words.
    later = b'HTTP/1.1 404 Not Found\r\nContent-Length: 43\r\n\r\n{"error":"not_found","reason":"Not Found"}\n'
    with something_that_answers(later) as port:
        said = reason(settings, AMQP_URLS=[f"amqp://{host}/%2F"], MANAGEMENT_URL=f"http://127.0.0.1:{port}")
    assert "may not enter the virtual host '/'" in said


def test_a_wrong_password_is_said_and_not_repeated(vhost: str, broker: RabbitMQNode, settings: Any) -> None:
    assert "refused user warren" in reason(settings, AMQP_URLS=[vhost.replace(broker.password, "secret")])


@pytest.mark.parametrize(
    ("status", "content"), [(200, "<html>Welcome</html>"), (200, "[1]"), (302, ""), (404, "<html>"), (500, "")]
)
def test_what_is_no_management_api_is_said(
    vhost: str, settings: Any, httpserver: HTTPServer, status: int, content: str
) -> None:
    httpserver.expect_request(re.compile("")).respond_with_data(content, status)
    url = httpserver.url_for("").rstrip("/")
    assert f"the server at {url} is not RabbitMQ's management API" in reason(settings, MANAGEMENT_URL=url)


@pytest.mark.parametrize(
    ("answer", "said"), [(b"AMQP\x00\x00\x09\x01", "hung up"), (None, "did not answer within 0.3 s")]
)
def test_a_port_that_hangs_up_or_never_answers_is_left(
    vhost: str, settings: Any, monkeypatch: pytest.MonkeyPatch, answer: bytes | None, said: str
) -> None:
    monkeypatch.setattr(management_http, "FIRST_ANSWER", 0.3)
    with something_that_answers(answer) as port:
        assert said in reason(settings, MANAGEMENT_URL=f"http://127.0.0.1:{port}")


def test_by_https_the_certificates_of_the_broker_are_used(settings: Any, tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.broker.certificate, certificates.broker.key)
    context.load_verify_locations(certificates.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    good = {**certificates.settings, "AMQP_URLS": ["amqps://u:secret@127.0.0.1/"]}
    with HTTPServer("127.0.0.1", ssl_context=context) as server:
        server.expect_request(re.compile("")).respond_with_data('{"reason": "Not management user"}', 401)
        url = server.url_for("")
        assert "rabbitmqctl set_user_tags u management" in reason(settings, **good, MANAGEMENT_URL=url)
        told = reason(settings, **{**good, "TLS_CA_FILE": str(certificates.other_ca)}, MANAGEMENT_URL=url)

    assert "TLS: the broker's certificate is signed by no CA that is trusted here" in told


def test_each_broker_is_asked_in_turn(vhost: str, broker: RabbitMQNode, settings: Any) -> None:
    settings.MESSAGING = {
        **settings.MESSAGING,
        "AMQP_URLS": ["amqp://a:secret@first.example/shop", "amqp://b:secret@[::1]:5673/shop"],
        "MANAGEMENT_URL": "",
    }
    assert [str(each) for each in addresses()] == ["http://first.example:15672", "http://[::1]:15672"]
    assert "secret" not in repr(addresses())


@pytest.mark.parametrize(
    ("amqp", "given", "expected"),
    [
        ("amqps://u:p@mq.example/shop", "", ("https://mq.example:15671", "u", "p", "shop")),
        ("amqp://mq.example", "", ("http://mq.example:15672", "guest", "guest", "/")),
        ("amqp://u:p%40@mq.example/%2F", "https://x.example/of/", ("https://x.example:15671/of", "u", "p@", "/")),
        ("amqp://u:p@mq.example/a", "http://m:n@x.example:80", ("http://x.example:80", "m", "n", "a")),
    ],
)  # fmt: skip
def test_where_the_management_api_is_comes_from_the_brokers_address(
    settings: Any, amqp: str, given: str, expected: tuple[str, ...]
) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": [amqp], "MANAGEMENT_URL": given}
    [address] = addresses()
    assert (str(address), address.user, address.password, address.vhost) == expected


def test_a_broker_that_is_away_is_one_line_and_exit_code_3(settings: Any) -> None:
    settings.MESSAGING = {
        **settings.MESSAGING,
        "AMQP_URLS": [f"amqp://u:secret@127.0.0.1:{free_port()}/"],
        "MANAGEMENT_URL": f"http://127.0.0.1:{free_port()}",
    }
    said = mq("queues")
    assert said.code == 3
    assert "\n" not in said.err
    assert "secret" not in said.err

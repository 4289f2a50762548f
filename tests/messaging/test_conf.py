"""`settings.MESSAGING`: a wrong value fails at start, by its name, without repeating a password."""

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat
from django.core.exceptions import ImproperlyConfigured

from messaging import conf
from messaging.broker.management_http import addresses
from messaging.broker.wire import parameters_of
from messaging.validation.addresses import broker_address

GOOD = {"AMQP_URLS": ["amqp://user:secret@localhost:5672/shop"]}


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"AMQP_URLS": []}, "AMQP_URLS"), ({"AMQP_URLS": "amqp://localhost"}, "AMQP_URLS: it is a list of addresses"),
        ({"EXCHANGE": "amq.events"}, "EXCHANGE: RabbitMQ keeps names"), ({"APP_ID": "amq"}, "APP_ID: RabbitMQ keeps"),
        ({"PREFETCH": 70_000}, "PREFETCH"), ({"PREFETCH": "many"}, "PREFETCH"), ({"LEASE": -1}, "LEASE"),
        ({"LEASE": float("nan")}, "LEASE"), ({"LEASE": float("inf")}, "LEASE"),
        ({"QUEUE_TYPE": "stream"}, "QUEUE_TYPE"),
        ({"PREFTECH": 10}, "PREFTECH is no setting"), ({"CLAIM_BATCH": 10}, "CLAIM_BATCH is no setting"),
        ({"PUBLISH_TIMEOUT": 15, "LEASE": 30}, "PUBLISH_TIMEOUT"),
        ({"INBOX_RETENTION_DAYS": 14}, "INBOX_RETENTION_DAYS"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_by_its_name(settings: Any, wrong: dict[str, Any], name: str) -> None:
    settings.MESSAGING = {**GOOD, **wrong}
    with pytest.raises(ImproperlyConfigured, match=name):
        conf.get()


def test_files_of_tls_may_be_paths(settings: Any, tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    settings.MESSAGING = {"AMQP_URLS": ["amqps://mq.example"], "TLS_CA_FILE": tmp_path / "ca.pem"}
    assert conf.get().tls_ca_file == str(tmp_path / "ca.pem")


@pytest.mark.parametrize("wrong", [None, "amqp://localhost", ["AMQP_URLS"], {1: 2}])
def test_settings_that_are_no_dict_of_names_are_refused(settings: Any, wrong: Any) -> None:
    settings.MESSAGING = wrong
    with pytest.raises(ImproperlyConfigured, match="MESSAGING"):
        conf.get()


@pytest.mark.parametrize(
    "url",
    [
        "", "secret", "ret@localhost/", "http://user:secret@localhost/", "'amqp://user:secret@localhost/'",
        "amqp://user:secret@", "amqp://:secret@localhost/", "amqp://@localhost/", "amqp://user@localhost/",
        "amqp://user:@localhost/", "amqp://user:sec/ret@localhost/", "amqp://user:sec#ret@localhost/",
        "amqp://user:sec\nret@localhost/", "amqp://user:12?sec-ret@localhost/", "amqp://user:12/sec@localhost",
        "amqp://user:sec", "amqp://user:secret%00@localhost/", "amqp://user:secret%ff@localhost/",
        "amqp://user:secret@localhost:port/", "amqp://user:secret@localhost:0/", "amqp://user:secret@localhost:99999/",
        "amqp://user:secret@localhost,other/", "amqp://user:secret@local host/", "amqp://user:secret@[::1/",
        "amqp://user:secret@::1/", "amqp://user:secret@localhost/a/b", "amqp://user:secret@localhost//",
        "amqp://user:secret@localhost/ amqp://user:secret@other/", f"amqp://user:secret@localhost/{'v' * 256}",
        "amqp://user:secret@localhost/?heartbeat=0", "amqp://user:secret@localhost/?heartbeat=ten",
        "amqp://user:secret@localhost/?heartbeat=10&heartbeat=20", "amqp://user:secret@localhost/?hartbeat=3",
    ],
)  # fmt: skip
def test_a_malformed_address_is_refused_without_repeating_it(settings: Any, url: str) -> None:
    settings.MESSAGING = {"AMQP_URLS": [url]}
    with pytest.raises(ImproperlyConfigured) as refused:
        conf.get()
    assert "AMQP_URL" in str(refused.value)
    assert "sec" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://user:secret@localhost/a/b", "amqp://user:***@localhost/a/b"),
        ("amqp://user:sec/r:et@localhost:99999/", "amqp://user:***@localhost:99999/"),
        ("amqp://user:se@cret@localhost:0/", "amqp://user:***@localhost:0/"),
        ("amqp://user@localhost/", "amqp://user@localhost/"),
        ("amqp://user:secret", "amqp://user:***"),
        ("http://host/", "http://host/"),
    ],
)
def test_a_malformed_address_is_named_without_its_password(settings: Any, url: str, shown: str) -> None:
    settings.MESSAGING = {"AMQP_URLS": ["amqp://good.example/", url]}
    with pytest.raises(ImproperlyConfigured) as refused:
        conf.get()
    assert str(refused.value).endswith(f"({shown})")


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("amqp://h", ("amqp", "h", 5672, "guest", "guest", "/")),
        ("amqp://u:p@h/a@b", ("amqp", "h", 5672, "u", "p", "a@b")),
        ("amqp://h/%2F", ("amqp", "h", 5672, "guest", "guest", "/")),
        ("amqp://h/a%2Fb", ("amqp", "h", 5672, "guest", "guest", "a/b")),
        (" amqp://u:p@h/v\n", ("amqp", "h", 5672, "u", "p", "v")),
        ("AMQPS://u:p%40%2F%3A@H/v", ("amqps", "h", 5671, "u", "p@/:", "v")),
        ("amqp://u%40x:p@[::1]:1234/%E5%BA%97", ("amqp", "::1", 1234, "u@x", "p", "店")),
        ("amqp://u:p@:x@h", ("amqp", "h", 5672, "u", "p@:x", "/")),
    ],
)
def test_an_address_means_the_same_to_amqp_management_and_checks(
    settings: Any, url: str, parts: tuple[str, str, int, str, str, str]
) -> None:
    settings.MESSAGING = {"AMQP_URLS": [url]}
    [broker] = conf.get().brokers
    assert (broker.scheme, broker.host, broker.port, broker.user, broker.password, broker.vhost) == parts

    amqp = parameters_of(broker)
    assert (amqp.host, amqp.port, amqp.virtual_host) == (broker.host, broker.port, broker.vhost)
    assert (amqp.credentials.username, amqp.credentials.password) == (broker.user, broker.password)
    [asked] = addresses()
    assert (asked.host, asked.user, asked.password, asked.vhost) == (
        broker.host, broker.user, broker.password, broker.vhost,
    )  # fmt: skip
    assert broker_address(str(broker).replace("***", quote(broker.password, safe=""))) == broker


def test_the_options_of_an_address_reach_the_connection(settings: Any) -> None:
    settings.MESSAGING = {"AMQP_URLS": ["amqp://h/v?heartbeat=30&frame_max=8192&channel_max=100", "amqp://other/v"]}
    first, second = map(parameters_of, conf.get().brokers)
    assert (first.heartbeat, first.frame_max, first.channel_max) == (30, 8192, 100)
    assert (second.heartbeat, second.frame_max) == (None, 131072)


def test_the_password_of_an_address_is_not_shown(settings: Any) -> None:
    settings.MESSAGING = {"AMQP_URLS": ["amqp://user:secret@h/v"]}
    [broker] = conf.get().brokers
    assert "secret" not in f"{broker} {broker!r} {conf.get().brokers!r}"
    assert str(broker) == "amqp://user:***@h:5672/v"


@pytest.mark.parametrize(
    "url",
    [
        "amqp://user:secret@localhost", "user:secret@localhost", "http://user:secret@", "http://user:sec/ret@localhost",
        "http://user:secret@localhost:0", "http://user:secret@localhost:99999", "http://user:sec#ret@localhost",
        "http://user:secret@localhost/?vhost=a", "http://user:secret@[::1", "'http://user:secret@localhost'",
        "http://user:sec ret@localhost", "http://user@localhost", "http://:secret@localhost",
    ],
)  # fmt: skip
def test_a_malformed_management_address_is_refused_without_repeating_it(settings: Any, url: str) -> None:
    settings.MESSAGING = {**GOOD, "MANAGEMENT_URL": url}
    with pytest.raises(ImproperlyConfigured) as refused:
        conf.get()
    assert "MANAGEMENT_URL" in str(refused.value)
    assert "sec" not in str(refused.value)


def test_a_password_for_amqps_is_not_sent_to_the_management_api_by_http(settings: Any) -> None:
    tls = {"AMQP_URLS": ["amqps://user:secret@mq.example/shop"]}
    for url in ("https://mq.example:15671", "http://127.0.0.1:15672", ""):
        settings.MESSAGING = {**tls, "MANAGEMENT_URL": url}
        assert conf.get().management_url == url

    settings.MESSAGING = {**tls, "MANAGEMENT_URL": "http://mq.example:15672"}
    with pytest.raises(ImproperlyConfigured, match="MANAGEMENT_URL must begin with https://"):
        conf.get()


def test_changed_settings_are_read_again(settings: Any) -> None:
    for prefetch in (7, 8):
        settings.MESSAGING = {**GOOD, "PREFETCH": prefetch}
        assert conf.get().prefetch == prefetch


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Paths of files by what is in them."""
    made = trustme.CA().issue_cert("client.example")
    secret = serialization.BestAvailableEncryption(b"secret")
    key = serialization.load_pem_private_key(made.private_key_pem.bytes(), None)
    contents = {
        "text": b"no certificate",
        "certificate": made.cert_chain_pems[0].bytes(),
        "key": made.private_key_pem.bytes(),
        "encrypted key": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secret),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return {name: str(tmp_path / name) for name in [*contents, "missing"]}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"TLS_CA_FILE": "missing"}, "TLS_CA_FILE.*No such file"),
        ({"TLS_CA_FILE": "text"}, "TLS_CA_FILE.*no certificate"),
        ({"TLS_CERT_FILE": "certificate"}, "TLS_CERT_FILE"),
        ({"TLS_CERT_FILE": "certificate", "TLS_KEY_FILE": "missing"}, "TLS_KEY_FILE.*No such file"),
        ({"TLS_CERT_FILE": "certificate", "TLS_KEY_FILE": "encrypted key"}, "TLS_KEY_FILE.*not encrypted"),
        ({"TLS_KEY_FILE": "key"}, "TLS_KEY_FILE is set, but not TLS_CERT_FILE"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_its_name(
    settings: Any, files: dict[str, str], wrong: dict[str, str], said: str
) -> None:
    given = {name: files[content] for name, content in wrong.items()}
    settings.MESSAGING = {"AMQP_URLS": ["amqps://localhost/shop"], **given}
    with pytest.raises(ImproperlyConfigured, match=said):
        conf.get()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"AMQP_URLS": ["amqps://one/shop", "amqp://two/shop"]}, "mixes"),
        ({"AMQP_URLS": ["amqp://one/shop"], "TLS_CA_FILE": "ca.pem"}, "AMQP_URL has none"),
        ({"AMQP_URLS": ["amqps://one/shop?ssl_options={'verify_mode':0}"]}, "ssl_options is not read"),
        ({"AMQP_URLS": ["amqps://one/shop?heartbeat=5&ssl%5Foptions=None"]}, "ssl_options is not read"),
    ],
)
def test_settings_that_would_weaken_tls_are_refused(settings: Any, wrong: dict[str, Any], said: str) -> None:
    settings.MESSAGING = wrong
    with pytest.raises(ImproperlyConfigured, match=said):
        conf.get()


def test_no_test_meets_a_broker_at_the_usual_ports() -> None:
    """A broker may run on the developer's machine. A test that needs a broker asks for the `vhost` fixture."""
    ports = {broker.port for broker in conf.get().brokers} | {each.port for each in addresses()}

    assert ports == {1}

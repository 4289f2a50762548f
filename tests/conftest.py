"""Fixtures for all tests: a real broker, a database that other processes can open, and real processes."""

import os
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import structlog
from django.db import connection, connections
from django.test import TransactionTestCase
from django.utils import translation
from pytest_django import DjangoDbBlocker

from script.services.ports import answers
from script.services.rabbitmq import RabbitMQNode
from tests.support.emptying import use_for_tests_that_commit
from tests.support.network import BrokerNetwork
from tests.support.processes import ProcessStarter
from tests.support.repeats import is_full

use_for_tests_that_commit()

pytest_plugins = ["tests.support.crashes"]

TESTS = Path(__file__).parent
#: Set by script/test: the directory of a node that runs already and that script/test will stop.
RABBITMQ_DIRECTORY = "WARREN_TEST_RABBITMQ"
#: Set by script/test where the same tests are run on the other database, too: each then runs where it belongs.
ON_BOTH_DATABASES = "WARREN_TEST_ON_BOTH_DATABASES"
#: RabbitMQ does not know the database: tests with a broker run on one of them. What the SQL of one database decides is
#: tested in the other folders, which run on both.
DATABASE_OF_FOLDER = {
    "acceptance": "sqlite",
    "faults": "postgresql",
    "foreign": "sqlite",
    "integration": "sqlite",
    "script": "sqlite",
}
LONG = {"test_chaos.py", "test_demo.py"}
#: Seconds that one test may take where it repeats everything two hundred times.
FULL_TIMEOUT = 3600
DATABASE_FIXTURES = {"db", "transactional_db", "django_db_reset_sequences", "live_server", "django_db_setup"}


@pytest.fixture(scope="session", autouse=True)
def _captured_logs() -> None:
    """Loggers do not keep the configuration of their first line: a test that captures the log would miss theirs."""
    structlog.configure(cache_logger_on_first_use=False)


@pytest.fixture(autouse=True)
def _language_of_the_project() -> Iterator[None]:
    """A request leaves its language active, as in a web process, where the next request chooses anew."""
    yield
    translation.deactivate()


@pytest.fixture
def isolated() -> Iterator[Callable[..., None]]:
    """Give modules such as `effects` an empty registry until the end of the test, or with `keep` a copy of theirs."""
    with ExitStack() as stack:

        def isolate(*modules: Any, keep: bool = False) -> None:
            for module in modules:
                stack.enter_context(module.registry.temporary(keep=keep))

        yield isolate


# --- Which tests run ---------------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True, wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Generator[None]:
    """Mark what starts processes, and leave out what is meant for the other database or for a full run."""
    for item in items:
        if "run_process" in getattr(item, "fixturenames", ()):
            item.add_marker("starts_processes")
        if is_full():
            item.add_marker(pytest.mark.timeout(FULL_TIMEOUT))
    left_out = [item for item in items if connection.vendor not in _databases(item) or _is_for_a_full_run(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    yield
    # The longest begin first: at the end of a run the other processes would wait for them.
    items.sort(key=lambda item: item.path.name not in LONG)


def _databases(item: pytest.Item) -> tuple[str, ...]:
    """The databases that a test runs on."""
    both = ("sqlite", "postgresql")
    if only_on := item.get_closest_marker("only_on"):
        return only_on.args
    if ON_BOTH_DATABASES not in os.environ or item.get_closest_marker("both_databases"):
        return both
    folder = item.path.relative_to(TESTS).parts[0]
    if folder in DATABASE_OF_FOLDER:
        return (DATABASE_OF_FOLDER[folder],)
    return both if _uses_database(item) else ("sqlite",)


def _uses_database(item: pytest.Item) -> bool:
    in_test_case = isinstance(item, pytest.Function) and item.cls and issubclass(item.cls, TransactionTestCase)
    asked = DATABASE_FIXTURES.intersection(getattr(item, "fixturenames", ()))
    return bool(in_test_case or asked or item.get_closest_marker("django_db"))


def _is_for_a_full_run(item: pytest.Item) -> bool:
    return item.get_closest_marker("full") is not None and not is_full()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In continuous integration a skipped test fails the run: it was not tried."""
    reporter: Any = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter and reporter.stats.get("skipped"):
        reporter.write_line("\nTests were skipped; with CI set that is a failure.", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


# --- Database ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def django_db_modify_db_settings(
    django_db_modify_db_settings_parallel_suffix: None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A database for each of the test processes that share the work. SQLite tests use a file, not memory: the processes
    that tests start open the same database."""
    for database in connections.all():
        if database.vendor == "sqlite":
            database.settings_dict["TEST"]["NAME"] = str(tmp_path_factory.mktemp("database") / "test.sqlite3")


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> None:
    """The table of groups is empty: handlers of tests leave their rows in it, which are counted."""
    from django.contrib.auth.models import Group

    with django_db_blocker.unblock():
        Group.objects.all().delete()


@pytest.fixture
def database_kind() -> str:
    """ "sqlite" or "postgresql", by DATABASE_URL."""
    return connection.vendor


# --- Broker ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQNode]:
    """A running RabbitMQ node, shared by the whole run: do not stop, freeze or alarm it (see `breakable_broker`)."""
    given = os.environ.get(RABBITMQ_DIRECTORY)
    if given:
        node = RabbitMQNode(Path(given), throwaway=True)
        node.start()
        yield node
    else:
        with RabbitMQNode(tmp_path_factory.mktemp("rabbitmq"), throwaway=True) as node:
            yield node


@pytest.fixture(scope="session")
def _breakable_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQNode]:
    with RabbitMQNode(tmp_path_factory.mktemp("breakable-rabbitmq"), throwaway=True) as node:
        yield node


@pytest.fixture
def vhost(broker: RabbitMQNode, settings: Any) -> Iterator[str]:
    """A fresh, empty vhost that `settings.MESSAGING` points at; its AMQP address."""
    yield from _fresh_vhost(broker, settings)


@pytest.fixture
def network(broker: RabbitMQNode, vhost: str, settings: Any) -> Iterator[BrokerNetwork]:
    """The network in front of the shared broker, with `settings.MESSAGING` pointing through it at a fresh vhost."""
    with BrokerNetwork(lambda: broker.port) as network:
        url = vhost.replace(f":{broker.port}/", f":{network.port}/")
        settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": [url]}
        yield network


@pytest.fixture
def breakable_broker(_breakable_node: RabbitMQNode, settings: Any) -> Iterator[RabbitMQNode]:
    """A node that a test may kill, freeze and alarm, with `settings.MESSAGING` pointing at a fresh vhost of it.

    Afterwards it goes on if it was frozen or had its application stopped; if it was killed, the next test boots it.
    """
    _breakable_node.start()
    vhost = _fresh_vhost(_breakable_node, settings)
    next(vhost)
    yield _breakable_node
    _breakable_node.resume()
    if _breakable_node.pid is not None:
        if not answers(_breakable_node.port):
            _breakable_node.ctl("start_app")
        _breakable_node.start()
        next(vhost, None)


def _fresh_vhost(node: RabbitMQNode, settings: Any) -> Iterator[str]:
    name = f"test-{uuid.uuid4().hex[:12]}"
    url = node.add_vhost(name)
    settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": [url], "MANAGEMENT_URL": node.management_url}
    yield url
    node.delete_vhost(name)


@pytest.fixture
def listen(vhost: str) -> Iterator[Any]:
    """Starts `mq listen …` in a thread and returns once it listens; see `Listening`."""
    from tests.support.listening import listeners  # needs the apps

    with listeners() as start:
        yield start


# --- Processes ---------------------------------------------------------------------------------------------


@pytest.fixture
def run_process(
    request: pytest.FixtureRequest, transactional_db: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ProcessStarter]:
    """Starts `manage.py` commands and gunicorn on this test's database and broker; see `ProcessStarter`.

    They are ended before the database is emptied and the vhost deleted, and what they printed is shown if the test
    fails. The broker is the one of the `vhost` or `breakable_broker` fixture, the database that of
    `breakable_database`, if the test asks for one.
    """
    for name in ("breakable_database", "vhost", "breakable_broker"):
        if name in request.fixturenames:
            # Set up before, so torn down after, whatever the order of the test's arguments.
            request.getfixturevalue(name)
    starter = ProcessStarter(tmp_path_factory.mktemp("processes"))
    yield starter
    starter.end_all()

"""A project that has `messaging` and not the shop, made as Django makes one: it has not configured structlog."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import call_command

from script.services.ports import free_port
from tests.support.environment import ROOT

SETTINGS = """
INSTALLED_APPS += ["messaging", "messaging.mq"]
MESSAGING = {{"AMQP_URLS": ["{address}"], "MANAGEMENT_URL": "{management}", "EXCHANGE": "plain.events"}}
SILENCED_SYSTEM_CHECKS = ["messaging.W001", "messaging.W002"]
"""
LOGGING = """
LOGGING = {
    "version": 1,
    "formatters": {"long": {"format": "%(levelname)s %(name)s %(funcName)s %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "long"}},
    "loggers": {"messaging": {"handlers": ["stderr"], "level": "INFO"}},
}
"""
#: Every line at DEBUG, as projects have it while they develop.
ROOT_LOGGER = """
LOGGING = {
    "version": 1,
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "named"}},
    "formatters": {"named": {"format": "%(name)s %(message)s"}},
    "root": {"handlers": ["stderr"], "level": "DEBUG"},
}
"""
STRUCTLOG = """
import structlog
structlog.configure(processors=[structlog.processors.JSONRenderer()])
"""
#: A service without pages, users or sessions.
BARE = """
INSTALLED_APPS = ["messaging", "messaging.mq"]
MIDDLEWARE = []
ROOT_URLCONF = "plain.no_urls"
SILENCED_SYSTEM_CHECKS = ["messaging.W001", "messaging.W002"]
MESSAGING = {"AMQP_URLS": ["amqp://127.0.0.1:1/"]}
"""
#: A command of `mq` that opens an AMQP connection.
PUBLISH = ("publish", "Hello", "--queue", "hello", "--declare")
#: What a program of such a project may run into.
FAILS = """
from messaging.logs import get_logger
from structlog.contextvars import bound_contextvars
def risky():
    log = get_logger("messaging.risky")
    log.info("tried", name="a b")
    with bound_contextvars(request_id="r-7"):
        try:
            raise ValueError("amqp://user:5ecret@host")
        except ValueError:
            log.bind(attempt=2).exception("failed", password="5ecret")
risky()
"""


class Plain:
    """Such a project: `settings` are more lines for its settings."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def settings(self, lines: str) -> None:
        with (self._directory / "plain" / "settings.py").open("a") as file:
            file.write(lines)

    def manage(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        """What `manage.py <arguments>` wrote to standard output, and what to standard error."""
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments], cwd=self._directory, capture_output=True, text=True, check=False,
            env={**os.environ, "DJANGO_SETTINGS_MODULE": "plain.settings", "PYTHONPATH": str(ROOT)}, timeout=60,
        )  # fmt: skip
        assert done.returncode == code, done
        return done.stdout, done.stderr


@pytest.fixture
def plain(vhost: str, tmp_path: Path) -> Plain:
    call_command("startproject", "plain", str(tmp_path))
    project = Plain(tmp_path)
    project.settings(SETTINGS.format(address=vhost, management=settings.MESSAGING["MANAGEMENT_URL"]))
    return project


def names(output: str) -> list[str]:
    return [json.loads(line)["name"] for line in output.splitlines()]


def test_standard_output_holds_rows_and_nothing_else(plain: Plain) -> None:
    assert plain.manage("mq", *PUBLISH)[0] == "Sent and confirmed.\n"
    listed, beside = plain.manage("mq", "queues", "--json")
    assert names(listed) == ["hello"]
    assert "amqp." not in beside

    taken, beside = plain.manage("mq", "listen", "hello", "--json", "--max-messages", "1")
    assert [json.loads(line)["body"] for line in taken.splitlines()] == ["Hello"]
    assert beside.splitlines() == ["Listening on queue hello. Press CTRL+C to stop.", "Stopped after 1 message."]


def test_a_warning_is_on_standard_error_without_further_ado(plain: Plain) -> None:
    plain.settings(f"MESSAGING['AMQP_URLS'] = ['amqp://127.0.0.1:{free_port()}/']")

    output, beside = plain.manage("mq", "-v", "2", "call", "nobody", code=3)
    assert output == ""
    assert re.search("^amqp.unreachable .*role=", beside, re.MULTILINE)
    assert "rpc.call_failed" not in beside  # information, for which nobody asked


def test_the_settings_that_the_readme_shows_are_all_it_needs(tmp_path: Path) -> None:
    call_command("startproject", "plain", str(tmp_path))
    project = Plain(tmp_path)
    shown = re.search(r"```python\n# settings.py\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert shown is not None
    project.settings(shown[1])

    assert project.manage("check") == ("System check identified no issues (0 silenced).\n", "")
    assert "mq publish" in project.manage("tutorial", "hello")[0]


def test_a_project_needs_no_other_app_of_django(tmp_path: Path) -> None:
    call_command("startproject", "plain", str(tmp_path))
    (tmp_path / "plain" / "no_urls.py").write_text("urlpatterns = []")
    project = Plain(tmp_path)
    project.settings(BARE)

    assert project.manage("check")[0] == "System check identified no issues (2 silenced).\n"
    project.manage("migrate", "--verbosity", "0")
    project.manage("messages", "reconcile", code=3)
    assert "No message" in project.manage("messages", "list", code=1)[1]
    assert json.loads(project.manage("mq", "asyncapi")[0])["asyncapi"]


def test_a_process_that_serves_says_what_it_does_on_standard_error(plain: Plain) -> None:
    plain.manage("migrate", "--verbosity", "0")

    output, beside = plain.manage("run_consumer", "dead_letters", "--burst")
    assert output.splitlines()[-1].startswith("Stopped. ")
    assert re.search(r"^\d{4}-\d\d-\d\d \S+ INFO messaging.broker.reconnecting: amqp.connected ", beside, re.MULTILINE)


def test_its_lines_go_where_the_settings_say_by_their_levels(plain: Plain) -> None:
    plain.settings(LOGGING)

    output, beside = plain.manage("mq", "-v", "2", *PUBLISH)
    assert output == "Sent and confirmed.\n"
    assert re.search(r"^INFO messaging.broker.reconnecting \w+ amqp.connected ", beside, re.MULTILINE)
    # The command says what a person needs, and quiets the rest.
    assert "amqp.connected" not in plain.manage("mq", *PUBLISH)[1]


def test_pika_is_quiet_unless_the_project_gives_it_a_level(plain: Plain) -> None:
    plain.settings(ROOT_LOGGER)
    beside = plain.manage("mq", "-v", "2", *PUBLISH)[1]
    assert "amqp.connected" in beside
    assert not re.search("^pika", beside, re.MULTILINE)
    plain.settings("LOGGING['loggers'] = {'pika': {'level': 'INFO'}}")
    assert re.search("^pika", plain.manage("mq", "-v", "2", *PUBLISH)[1], re.MULTILINE)


def test_a_line_has_its_fields_and_no_secret(plain: Plain) -> None:
    plain.settings(LOGGING)

    output, beside = plain.manage("shell", "-c", FAILS)
    lines = beside.splitlines()
    assert "5ecret" not in beside
    assert lines[0] == "INFO messaging.risky risky tried name='a b'"
    assert lines[1] == "ERROR messaging.risky risky failed attempt=2 password=*** request_id=r-7"
    assert lines[-1] == "ValueError: amqp://user:***@host"
    assert "Traceback" in beside
    assert "failed" not in output


def test_a_project_that_configures_structlog_has_it_its_way(plain: Plain) -> None:
    plain.settings(STRUCTLOG)

    output, _ = plain.manage("mq", "-v", "2", *PUBLISH)
    assert any(json.loads(line)["event"] == "amqp.connected" for line in output.splitlines() if line[0] == "{")


def test_no_module_asks_structlog_for_a_logger_past_this() -> None:
    asking = [path.name for path in (ROOT / "messaging").rglob("*.py") if "structlog.get_logger" in path.read_text()]
    assert asking == ["logs.py"]

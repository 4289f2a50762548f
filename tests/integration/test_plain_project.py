"""A project that has `messaging` and not the shop, made as Django makes one: it has not configured structlog."""

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import call_command

from messaging.logs import quiet_pika
from script.services.ports import free_port
from tests.support.environment import ROOT

SETTINGS = """
INSTALLED_APPS += ["messaging", "messaging.mq"]
MESSAGING = {{"AMQP_URLS": ["{address}"], "MANAGEMENT_URL": "{management}", "EXCHANGE": "plain.events"}}
SILENCED_SYSTEM_CHECKS = ["messaging.W001", "messaging.W002"]
"""
#: Every line at DEBUG, as projects have it while they develop, but those of `messaging`.
LOGGING = """
LOGGING = {
    "version": 1,
    "formatters": {"long": {"format": "%(levelname)s %(name)s %(funcName)s %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "long"}},
    "loggers": {"messaging": {"handlers": ["stderr"], "level": "INFO", "propagate": False}},
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
PUBLISH = ("mq", "publish", "Hello", "--queue", "hello", "--declare")
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

    def __init__(self, directory: Path, settings: str) -> None:
        self._directory = directory
        call_command("startproject", "plain", str(directory))
        self.settings(settings)

    def settings(self, lines: str) -> None:
        with (self._directory / "plain" / "settings.py").open("a") as file:
            file.write(lines)

    def manage(self, *commands: tuple[str, ...], then: str = "") -> tuple[str, str]:
        """What these commands, run by one process, wrote to standard output, and what to standard error. An error they
        end with is a line of standard output: its exit code and its text."""
        code = f"""
import django
from django.core.management import CommandError, call_command
django.setup()
for command in {commands!r}:
    try:
        call_command(*command)
    except CommandError as error:
        print(error.returncode, error)
{then}"""
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=self._directory, capture_output=True, text=True, check=True, timeout=60,
            env={**os.environ, "DJANGO_SETTINGS_MODULE": "plain.settings", "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        return done.stdout, done.stderr


@pytest.fixture
def plain(vhost: str, tmp_path: Path) -> Plain:
    return Plain(tmp_path, SETTINGS.format(address=vhost, management=settings.MESSAGING["MANAGEMENT_URL"]))


def test_standard_output_holds_rows_and_the_log_of_a_process_that_serves_is_on_standard_error(plain: Plain) -> None:
    listen = ("mq", "listen", "hello", "--json", "--max-messages", "1")
    serve = ("run_consumer", "dead_letters", "--burst")
    output, beside = plain.manage(PUBLISH, ("mq", "queues", "--json"), listen, ("migrate", "--verbosity", "0"), serve)
    sent, queue, message, *_, served = output.splitlines()
    assert (sent, json.loads(queue)["name"], json.loads(message)["body"]) == ("Sent and confirmed.", "hello", "Hello")
    assert served.startswith("Stopped. ")
    by_hand, stopped, serving = beside.partition("Stopped after 1 message.\n")
    assert stopped
    assert "amqp." not in by_hand
    assert by_hand.splitlines()[-1] == "Listening on queue hello. Press CTRL+C to stop."
    connected = r"^\d{4}-\d\d-\d\d \S+ INFO messaging.broker.reconnecting: amqp.connected "
    assert re.search(connected, serving, re.MULTILINE)


def test_a_warning_is_on_standard_error_without_further_ado(plain: Plain) -> None:
    plain.settings(f"MESSAGING['AMQP_URLS'] = ['amqp://127.0.0.1:{free_port()}/']")

    output, beside = plain.manage(("mq", "-v", "2", "call", "nobody"))
    assert output.startswith("3 RabbitMQ: ")
    assert re.search("^amqp.unreachable .*role=", beside, re.MULTILINE)
    assert "rpc.call_failed" not in beside  # information, which Python does not show by itself


def test_the_settings_that_the_readme_shows_are_all_it_needs(tmp_path: Path) -> None:
    shown = re.search(r"```python\n# settings.py\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert shown is not None

    output, beside = Plain(tmp_path, shown[1]).manage(("check",), ("tutorial", "hello"))
    assert output.startswith("System check identified no issues (0 silenced).\n")
    assert "mq publish" in output
    assert beside == ""


def test_a_project_needs_no_other_app_of_django(tmp_path: Path) -> None:
    project = Plain(tmp_path, BARE)
    (tmp_path / "plain" / "no_urls.py").write_text("urlpatterns = []")

    output, beside = project.manage(
        ("check",), ("migrate", "--verbosity", "0"), ("messages", "reconcile"), ("messages", "list"), ("mq", "asyncapi")
    )
    checked, reconciled, *document = output.splitlines()
    assert checked == "System check identified no issues (2 silenced)."
    assert reconciled.startswith("3 ")
    assert beside.endswith("There are no messages yet.\n")
    assert json.loads("\n".join(document))["asyncapi"]


def test_its_lines_go_where_the_settings_say_with_their_fields_and_no_secret(plain: Plain) -> None:
    plain.settings(LOGGING)

    # Only at verbosity 2 a command that says itself what a person needs leaves the log as it is.
    output, beside = plain.manage(("mq", "-v", "2", *PUBLISH[1:]), PUBLISH, then=FAILS)
    assert output == "Sent and confirmed.\n" * 2
    assert len(re.findall(r"^INFO messaging.broker.reconnecting \w+ amqp.connected ", beside, re.MULTILINE)) == 1
    lines = beside.splitlines()
    assert not [line for line in lines if " pika" in line]
    assert "5ecret" not in beside
    assert "INFO messaging.risky risky tried name='a b'" in lines
    assert "ERROR messaging.risky risky failed attempt=2 password=*** request_id=r-7" in lines
    assert "ValueError: amqp://user:***@host" in lines
    assert "Traceback" in beside


def test_pika_is_quiet_unless_the_project_gives_it_a_level() -> None:
    pika = logging.getLogger("pika")
    before = pika.level
    try:
        for level, quieted in {logging.NOTSET: logging.CRITICAL, logging.INFO: logging.INFO}.items():
            pika.setLevel(level)
            quiet_pika()
            assert pika.level == quieted
    finally:
        pika.setLevel(before)


def test_a_project_that_configures_structlog_has_it_its_way(plain: Plain) -> None:
    plain.settings(STRUCTLOG)

    output, _ = plain.manage(("mq", "-v", "2", *PUBLISH[1:]))
    assert any(json.loads(line)["event"] == "amqp.connected" for line in output.splitlines() if line[0] == "{")


def test_no_module_asks_structlog_for_a_logger_past_this() -> None:
    asking = [path.name for path in (ROOT / "messaging").rglob("*.py") if "structlog.get_logger" in path.read_text()]
    assert asking == ["logs.py"]

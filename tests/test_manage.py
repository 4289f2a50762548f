"""manage.py: what is set wrong is one clear line with the right exit code, never a bare traceback."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import structlog
from django.core.exceptions import ImproperlyConfigured
from django.core.management import load_command_class
from django.db import OperationalError

from messaging import conf
from messaging.management.commands import messages
from messaging.mq.management.commands import mq

ROOT = Path(__file__).resolve().parents[1]
NOBODY = "127.0.0.1:1"
APPS = {"mq": "messaging.mq"}


def manage(*arguments: str, python: tuple[str, ...] = (), **changes: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "project.settings", **changes}
    command = [sys.executable, *python, *(() if "-c" in python else ("manage.py",)), *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60)


def ended(capsys: pytest.CaptureFixture[str], command: str, *arguments: str) -> tuple[int, str, str]:
    """Run a command of `messaging` in this process as `manage.py` does; its exit code and both outputs."""
    with pytest.raises(SystemExit) as end:
        load_command_class(APPS.get(command, "messaging"), command).run_from_argv(["manage.py", command, *arguments])
    assert isinstance(end.value.code, int)
    return end.value.code, *capsys.readouterr()


def settings_with(monkeypatch: pytest.MonkeyPatch, **variables: str) -> dict[str, Any]:
    """What `project/settings.py` makes of these environment variables."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    # They configure structlog, too: loggers that exist, and tests that capture their lines, keep to this one list.
    configured = structlog.get_config()
    try:
        return runpy.run_path(str(ROOT / "project" / "settings.py"))
    finally:
        structlog.configure(**configured)


# --- settings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("DATABASE_URL", "nonsense", "DATABASE_URL must begin with"),
        ("DATABASE_URL", "postgres://u:secret@host:port/x", "DATABASE_URL: the port must be a number"),
        ("DEBUG", "maybe", "DEBUG is 'maybe'"),
        ("CONN_MAX_AGE", "-1", "CONN_MAX_AGE is '-1'"),
        ("LOG_LEVEL", "loud", "LOG_LEVEL is 'loud'"),
        ("TIME_ZONE", "Mars/Base", "TIME_ZONE is 'Mars/Base'"),
        ("AMQP_URL", "amqp://u:secret#@host/", "MESSAGING.AMQP_URLS: AMQP_URL has the form amqp://"),
        ("AMQP_URL", "amqp://a/v, amqp://u:secret@b/v amqp://c/v", "AMQP_URL: write commas between"),
        ("AMQP_URL", "", "MESSAGING.AMQP_URLS: AMQP_URL names no broker"),
        ("ALLOWED_HOSTS", "a.example b.example", "ALLOWED_HOSTS: write commas between the items"),
        ("ALLOWED_HOSTS", "'a.example'", "ALLOWED_HOSTS: write commas between the items"),
        *(
            ("ALLOWED_HOSTS", text, f"ALLOWED_HOSTS: {text!r} is not a host")
            for text in ("https://a.example", "a.example:8000", "*.a.example", "a.example/")
        ),
        *(
            ("CSRF_TRUSTED_ORIGINS", text, f"CSRF_TRUSTED_ORIGINS: {text!r} is not an origin")
            for text in ("a.example", "https://a.example/", "https://")
        ),
        ("SECRET_KEY", " ", "SECRET_KEY is not set"),
    ],
)
def test_a_value_that_cannot_be_understood_is_named(
    monkeypatch: pytest.MonkeyPatch, settings: Any, name: str, value: str, line: str
) -> None:
    usual = {"DATABASE_URL": f"postgres://{NOBODY}/x", "CONN_MAX_AGE": "60", "DEBUG": "0"}

    def read() -> None:
        settings.MESSAGING = settings_with(monkeypatch, **{**usual, name: value})["MESSAGING"]
        conf.get()

    with pytest.raises(ImproperlyConfigured) as error:
        read()
    assert str(error.value).startswith(line)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [("LOG_LEVEL", "loud", "LOG_LEVEL is 'loud'"), ("AMQP_URL", "", "MESSAGING.AMQP_URLS: AMQP_URL names no broker")],
)
def test_a_command_refuses_such_a_value_in_one_line_before_it_asks_the_database(
    name: str, value: str, line: str
) -> None:
    done = manage("run_relay", **{"DATABASE_URL": f"postgres://{NOBODY}/x", "CONN_MAX_AGE": "60", name: value})
    assert done.returncode == 2
    assert done.stderr.startswith(f"Configuration: {line}")
    assert done.stderr.count("\n") == 1


def test_blanks_around_the_items_of_a_list_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    found = settings_with(
        monkeypatch,
        AMQP_URL=" amqp://u:p@a/v?heartbeat=30 ,amqp://u:p@b/v,\n",
        ALLOWED_HOSTS="a.example, b.example",
        CSRF_TRUSTED_ORIGINS="https://a.example,  https://b.example,",
    )
    assert found["AMQP_URLS"] == ["amqp://u:p@a/v?heartbeat=30", "amqp://u:p@b/v"]
    assert found["ALLOWED_HOSTS"] == ["a.example", "b.example"]
    assert found["CSRF_TRUSTED_ORIGINS"] == ["https://a.example", "https://b.example"]
    assert found["CELERY_BROKER_URL"] == ["amqp://u:p@a/v", "amqp://u:p@b/v"]


def test_hosts_and_origins_have_the_forms_that_django_has(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts, origins = "*,.a.example,[::1],10.0.0.1,b_c.example", "https://*.a.example,http://b.example:8000"
    found = settings_with(monkeypatch, ALLOWED_HOSTS=hosts, CSRF_TRUSTED_ORIGINS=origins)
    assert (found["ALLOWED_HOSTS"], found["CSRF_TRUSTED_ORIGINS"]) == (hosts.split(","), origins.split(","))


# --- the database ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "name", "value"),
    [
        ("postgres://u:p@h/shop?conn_max_age=600", "CONN_MAX_AGE", 600),
        (" postgres://u:p@h/shop\n", "NAME", "shop"),
        ("sqlite:///shop.sqlite3?timeout=5", "OPTIONS", 5),
    ],
)
def test_what_the_address_of_the_database_says_is_used(
    monkeypatch: pytest.MonkeyPatch, url: str, name: str, value: object
) -> None:
    monkeypatch.delenv("CONN_MAX_AGE", raising=False)
    found = settings_with(monkeypatch, DATABASE_URL=url)["DATABASES"]["default"][name]
    assert (found["timeout"] if name == "OPTIONS" else found) == value


def test_an_unreachable_database_is_reported_with_what_to_check() -> None:
    done = manage("migrate", DATABASE_URL=f"postgres://u:secret@{NOBODY}/x", CONN_MAX_AGE="60")
    assert done.returncode == 3
    assert "refused" in done.stderr
    assert "is DATABASE_URL right" in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr


def test_a_database_file_in_no_folder_is_said_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Any) -> None:
        raise OperationalError("unable to open database file")

    monkeypatch.setattr("django.core.management.execute_from_command_line", fail)
    assert runpy.run_path(str(ROOT / "manage.py"))["main"]() == 3
    said = capsys.readouterr().err
    assert said.startswith("Database: unable to open database file\nIs the folder of DATABASE_URL's file there")


def test_a_fresh_clone_can_be_migrated(tmp_path: Path) -> None:
    for folder in ("project", "messaging", "orders"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    subprocess.run(
        [sys.executable, shutil.copy(ROOT / "manage.py", tmp_path), "migrate", "--verbosity", "0"],
        cwd=tmp_path, env={**environment, "DJANGO_SETTINGS_MODULE": "project.settings", "SECRET_KEY": "x"}, check=True,
    )  # fmt: skip

    assert (tmp_path / "var" / "db.sqlite3").exists()


# --- names and help ----------------------------------------------------------------------------------------


def test_an_unknown_consumer_is_refused_with_the_known_names(capsys: pytest.CaptureFixture[str]) -> None:
    told = "CommandError: There is no consumer 'smoke'. Registered: red_packet, sms.\n"
    assert ended(capsys, "run_consumer", "smoke") == (2, "", told)


@pytest.mark.parametrize(("command", "known"), [("mq", "asyncapi"), ("messages", "reconcile")])
def test_an_unknown_sub_command_is_refused_once_with_the_known_names(
    capsys: pytest.CaptureFixture[str], command: str, known: str
) -> None:
    code, out, err = ended(capsys, command, "frob")
    assert (code, out) == (2, "")
    usage, error = err.splitlines()
    assert usage == f"usage: manage.py {command} COMMAND [options]"
    assert error.startswith(f"manage.py {command}: error: argument COMMAND: unknown: 'frob'. Known: ")
    assert error.count(known) == 1


@pytest.mark.parametrize(
    ("command", "typed", "meant"), [("messages", "lst", "list"), ("mq", "quues", "queues"), ("mq", "stats", "status")]
)
def test_a_mistyped_sub_command_is_answered_with_the_one_that_was_meant(
    capsys: pytest.CaptureFixture[str], command: str, typed: str, meant: str
) -> None:
    code, _, err = ended(capsys, command, typed)
    assert code == 2
    assert f"unknown: '{typed}'. Did you mean {meant}? Known: " in err


@pytest.mark.parametrize(("command", "known"), [("mq", mq.SUBCOMMANDS), ("messages", messages.subcommands())])
def test_without_a_sub_command_those_there_are_are_listed(
    capsys: pytest.CaptureFixture[str], command: str, known: dict[str, Any]
) -> None:
    code, out, err = ended(capsys, command)
    assert (code, out) == (2, "")
    assert err.endswith("CommandError: Say which COMMAND.\n")
    for name, each in known.items():
        assert re.search(rf"^    {name} +{re.escape(each.HELP[:20])}", err, re.MULTILINE)


def test_the_help_of_a_sub_command_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(capsys, "mq", "purge", "--help")[1].startswith("usage: manage.py mq purge [-h] ")


def test_every_sub_command_of_mq_explains_its_exit_codes() -> None:
    examples = {name: each.EXAMPLES for name, each in mq.SUBCOMMANDS.items()}
    asks_the_broker = set(examples) - {"grants", "asyncapi"}
    assert [name for name, text in examples.items() if not re.search("^exit codes: 0 ", text, re.M)] == []
    assert [name for name in asks_the_broker if not re.search(r"\b7 ", _codes(examples[name]))] == []


def _codes(examples: str) -> str:
    return examples.partition("exit codes:")[2]


def test_without_its_packages_it_names_the_command_that_installs_them() -> None:
    done = manage("check", python=("-S",))
    assert done.returncode == 1
    assert done.stderr == "No module named 'django'. Run script/bootstrap once, then .venv/bin/python manage.py ...\n"


# --- what is imported --------------------------------------------------------------------------------------

#: Prints which modules a command has imported, once it has ended.
IMPORTED = """
import atexit, runpy, sys
sys.argv[0] = "manage.py"
atexit.register(lambda: print("imported", *sys.modules))
runpy.run_path("manage.py", run_name="__main__")
"""


def imported_by(*arguments: str) -> set[str]:
    done = manage(*arguments, python=("-c", IMPORTED), DATABASE_URL="sqlite:///:memory:")
    return set(done.stdout.partition("imported ")[2].split())


@pytest.mark.parametrize(
    "command",
    ["messages --help", "mq --help", "run_consumer --help", "place_order --help", "messages list", "mq grants"],
)
def test_a_command_imports_no_page_and_no_library_that_it_does_not_use(command: str) -> None:
    imported = imported_by(*command.split())

    assert "orders.consumers" in imported
    unneeded = {"celery", "httpx", "rich", "project.urls", "messaging.admin", "orders.admin", "orders.views"}
    assert unneeded & imported == set()


@pytest.mark.parametrize(
    ("command", "unneeded"),
    [
        ("messages --help", {"messaging.history", "messaging.reconcile", "messaging.topology"}),
        ("mq --help", {"messaging.mq.lists", "messaging.mq.listen", "messaging.topology", "messaging.actions"}),
    ],
)
def test_a_help_imports_no_sub_command(command: str, unneeded: set[str]) -> None:
    assert unneeded & imported_by(*command.split()) == set()


def test_the_checks_of_the_admin_look_at_every_page() -> None:
    assert {"messaging.admin", "orders.admin", "project.urls"} <= imported_by("check")

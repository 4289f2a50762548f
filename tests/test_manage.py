"""manage.py: what is set wrong is one clear line with the right exit code, never a bare traceback."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from messaging.management.commands import messages
from messaging.mq.management.commands import mq

ROOT = Path(__file__).resolve().parents[1]
NOBODY = "127.0.0.1:1"


def manage(*arguments: str, python: tuple[str, ...] = (), **changes: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "project.settings", **changes}
    command = [sys.executable, *python, "manage.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("DATABASE_URL", "nonsense", "Configuration: DATABASE_URL must begin with"),
        ("DATABASE_URL", "postgres://u:secret@host:port/x", "Configuration: DATABASE_URL: the port must be a number"),
        ("DEBUG", "maybe", "Configuration: DEBUG is 'maybe'"),
        ("CONN_MAX_AGE", "-1", "Configuration: CONN_MAX_AGE is '-1'"),
        ("LOG_LEVEL", "loud", "Configuration: LOG_LEVEL is 'loud'"),
        ("TIME_ZONE", "Mars/Base", "Configuration: TIME_ZONE is 'Mars/Base'"),
        ("AMQP_URL", "http://host/", "Configuration: MESSAGING.AMQP_URLS: AMQP_URL must begin with amqp://"),
        ("AMQP_URL", "amqp://u:secret#@host/", "Configuration: MESSAGING.AMQP_URLS: AMQP_URL contains '#'"),
        ("AMQP_URL", "amqp://a/v, amqp://u:secret@b/v amqp://c/v", "Configuration: AMQP_URL: write commas between"),
        ("AMQP_URL", "", "Configuration: MESSAGING.AMQP_URLS: AMQP_URL names no broker"),
        ("ALLOWED_HOSTS", "a.example b.example", "Configuration: ALLOWED_HOSTS: write commas between the items"),
        ("ALLOWED_HOSTS", "'a.example'", "Configuration: ALLOWED_HOSTS: write commas between the items"),
        ("SECRET_KEY", "", "Configuration: SECRET_KEY is not set"),
        ("SECRET_KEY", " ", "Configuration: SECRET_KEY is not set"),
    ],
)
def test_a_value_that_cannot_be_understood_is_named(name: str, value: str, line: str) -> None:
    # Each on a database that nobody serves: none is asked.
    done = manage(
        "run_relay", **{"DATABASE_URL": f"postgres://{NOBODY}/x", "CONN_MAX_AGE": "60", "DEBUG": "0", name: value}
    )
    assert done.returncode == 2
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1
    assert "secret" not in done.stderr


def test_blanks_around_the_items_of_a_list_are_left_out() -> None:
    lists = ("AMQP_URLS", "ALLOWED_HOSTS", "CSRF_TRUSTED_ORIGINS", "CELERY_BROKER_URL")
    code = f"from django.conf import settings; print([getattr(settings, name) for name in {lists}])"
    done = manage(
        "shell", "-v0", "-c", code,
        DATABASE_URL="sqlite:///:memory:",
        AMQP_URL=" amqp://u:p@a/v?heartbeat=30 ,amqp://u:p@b/v,\n",
        ALLOWED_HOSTS="a.example, b.example",
        CSRF_TRUSTED_ORIGINS="https://a.example,  https://b.example,",
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == str(
        [
            ["amqp://u:p@a/v?heartbeat=30", "amqp://u:p@b/v"],
            ["a.example", "b.example"],
            ["https://a.example", "https://b.example"],
            ["amqp://u:p@a/v", "amqp://u:p@b/v"],
        ]
    )


def test_an_unreachable_database_is_reported_with_what_to_check() -> None:
    done = manage("migrate", DATABASE_URL=f"postgres://u:secret@{NOBODY}/x", CONN_MAX_AGE="60")
    assert done.returncode == 3
    assert "refused" in done.stderr
    assert "is DATABASE_URL right" in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr


def test_a_burst_does_not_wait_for_a_database_that_is_away() -> None:
    done = manage("run_consumer", "sms", "--burst", DATABASE_URL=f"postgres://u:secret@{NOBODY}/x", CONN_MAX_AGE="60")
    assert done.returncode == 3
    assert "The database is out of reach: " in done.stderr
    assert "secret" not in done.stderr


def test_a_fresh_clone_can_be_migrated(tmp_path: Path) -> None:
    for folder in ("project", "messaging", "orders"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    subprocess.run(
        [sys.executable, shutil.copy(ROOT / "manage.py", tmp_path), "migrate", "--verbosity", "0"],
        cwd=tmp_path, env={**environment, "DJANGO_SETTINGS_MODULE": "project.settings", "SECRET_KEY": "x"}, check=True,
    )  # fmt: skip

    assert (tmp_path / "var" / "db.sqlite3").exists()


def test_a_database_file_in_no_folder_is_said_so(tmp_path: Path) -> None:
    done = manage("migrate", DATABASE_URL=f"sqlite:///{tmp_path}/nowhere/db.sqlite3")
    assert done.returncode == 3
    assert done.stderr.startswith("Database: unable to open database file\nIs the folder of DATABASE_URL's file there")


def test_an_unknown_consumer_is_refused_with_the_known_names() -> None:
    done = manage("run_consumer", "smoke")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "CommandError: There is no consumer 'smoke'. Registered: red_packet, sms.\n"


@pytest.mark.parametrize(("command", "known"), [("mq", "asyncapi"), ("messages", "reconcile")])
def test_an_unknown_sub_command_is_refused_once_with_the_known_names(command: str, known: str) -> None:
    done = manage(command, "frob")
    assert (done.returncode, done.stdout) == (2, "")
    usage, error = done.stderr.splitlines()
    assert usage == f"usage: manage.py {command} COMMAND [options]"
    assert error.startswith(f"manage.py {command}: error: argument COMMAND: invalid choice: 'frob' (choose from ")
    assert error.count(known) == 1


@pytest.mark.parametrize("command", ["mq", "messages"])
def test_without_a_sub_command_those_there_are_are_listed(command: str) -> None:
    if command == "messages":
        known = {name: each.HELP for name, each in messages.subcommands().items()}
    else:
        known = {name: each.HELP for name, each in mq.SUBCOMMANDS.items()}
    done = manage(command)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("CommandError: Say which COMMAND.\n")
    for name, words in known.items():
        assert re.search(rf"^    {name} +{re.escape(words[:20])}", done.stderr, re.MULTILINE)


def test_the_help_of_a_sub_command_names_it() -> None:
    assert manage("mq", "purge", "--help").stdout.startswith("usage: manage.py mq purge [-h] ")


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

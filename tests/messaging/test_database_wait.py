"""At their start, serving processes wait for an unreachable database, and log that."""

import re
import subprocess
import sys
from typing import Any

import pytest
from django.core.management import CommandError
from django.db import connection
from django.db.models import Model
from structlog.testing import capture_logs

from messaging import logs
from messaging.management import serving
from messaging.management.serving import wait_for_table
from messaging.models import InboxMessage, OutboxMessage
from tests.support.command_line import manage
from tests.support.environment import ROOT, process_environment
from tests.support.missing_table import missing_table

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the database unreachable until `undo` is called on what this returns."""
    monkeypatch.setattr(serving, "PAUSE", 0.0)
    connection.close()
    patch = pytest.MonkeyPatch()
    patch.setitem(connection.settings_dict, "PORT", "1")
    yield patch
    patch.undo()


@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize("repeat_after", [0.0, 60.0])
def test_it_is_waited_for_and_the_reason_is_logged_again_after_a_while(
    away: Any, repeat_after: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "REPEAT_AFTER", repeat_after)
    looks = iter([False, False, True])

    def back_at_the_third_look() -> bool:
        if next(looks):
            away.undo()
        return False

    with capture_logs() as lines:
        assert wait_for_table(InboxMessage, back_at_the_third_look, patiently=True)
    repeated = 1 if repeat_after else 2
    assert [line["event"] for line in lines] == ["database.unreachable"] * repeated + ["database.reached"]
    assert "refused" in lines[0]["reason"]


@pytest.mark.only_on("postgresql")
def test_a_signal_ends_the_wait_and_without_patience_it_is_exit_code_3(away: Any) -> None:
    assert not wait_for_table(InboxMessage, lambda: True, patiently=True)
    with pytest.raises(CommandError, match=r"out of reach.*refused") as ended:
        wait_for_table(InboxMessage, lambda: False, patiently=False)
    assert ended.value.returncode == 3


@pytest.mark.only_on("postgresql")
def test_a_database_that_does_not_exist_is_not_waited_for_by_a_relay_either(monkeypatch: pytest.MonkeyPatch) -> None:
    connection.close()
    monkeypatch.setitem(connection.settings_dict, "NAME", "no_such_database")
    said = manage("run_relay")
    assert said.code == 3
    assert re.fullmatch(r"The database is out of reach: .*no_such_database.* does not exist", said.err)
    assert "Relay running as" in said.out


@pytest.mark.parametrize(
    ("command", "model"),
    [("run_consumer sms", InboxMessage), ("run_relay", OutboxMessage), ("messages list", OutboxMessage)],
)
def test_a_missing_table_is_not_waited_for_and_is_said_in_the_same_way_by_every_command(
    command: str, model: type[Model]
) -> None:
    with missing_table(model):
        said = manage(*command.split())
    assert said.code == 1
    assert re.fullmatch(r"The database refuses: .*\. Did `manage\.py migrate` run\?", said.err)


@pytest.mark.parametrize("command", ["run_consumer sms", "messages list", "place_order"])
def test_a_database_file_in_a_missing_folder_is_said_in_the_same_way_by_every_command(command: str) -> None:
    folder = {"DATABASE_URL": "sqlite:////nowhere/at/all.sqlite3"}
    done = subprocess.run(
        [sys.executable, "manage.py", *command.split()],
        cwd=ROOT, env=process_environment(**folder), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert done.stderr == (
        "CommandError: The database is out of reach: unable to open database file. Is the folder of its file there, "
        "and may this user write in it?\n"
    )

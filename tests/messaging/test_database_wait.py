"""At their start, serving processes wait for an unreachable database, and log that."""

import re
from typing import Any

import pytest
from django.core.management import CommandError
from django.db import OperationalError, ProgrammingError, connection
from structlog.testing import capture_logs

from messaging import logs
from messaging.management import serving
from messaging.management.serving import wait_for_table
from messaging.models import InboxMessage
from tests.support.command_line import manage
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


def test_a_missing_table_is_not_waited_for() -> None:
    with missing_table(InboxMessage), pytest.raises((OperationalError, ProgrammingError), match="inboxmessage"):
        wait_for_table(InboxMessage, lambda: False, patiently=True)

"""`manage.py messages list` and `show`: what happened, from a terminal."""

import json
import re
import signal
import subprocess
import sys
from datetime import timedelta
from io import StringIO
from itertools import count
from typing import Any

import pytest
from django.core.management import call_command
from django.db import OperationalError
from django.utils import timezone

from messaging.history import listing
from messaging.management.watching import REDRAW
from messaging.models import InboxMessage, OutboxMessage
from messaging.worker import handling
from tests.support.command_line import messages
from tests.support.consuming import a_consumer, a_delivery, a_message, an_effect, an_inbox_row, an_outbox_row
from tests.support.environment import ROOT, process_environment
from tests.support.terminal import on_terminal
from tests.support.waiting import eventually

pytestmark = pytest.mark.django_db

_ids = count()


def outbox_row(minutes_ago: float = 0, **changes: Any) -> OutboxMessage:
    at = timezone.now() - timedelta(minutes=minutes_ago)
    return an_outbox_row(**{"message_id": f"out-{next(_ids)}", "created_at": at, **changes})


def inbox_row(minutes_ago: float = 0, **changes: Any) -> InboxMessage:
    at = timezone.now() - timedelta(minutes=minutes_ago)
    return an_inbox_row(**{"message_id": f"in-{next(_ids)}", "changed_at": at, **changes})


def rows(*arguments: str) -> list[list[str]]:
    return [line.split("\t") for line in messages(*arguments).lines]


def ids(*filters: str) -> list[str]:
    return [row[7] for row in rows("list", *filters)]


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """The standard output of a command: a terminal of 80 characters."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    return Terminal()


# --- list --------------------------------------------------------------------------------------------------


def test_the_newest_rows_of_both_boxes_come_first() -> None:
    oldest, newest, middle = outbox_row(minutes_ago=9), inbox_row(minutes_ago=1), outbox_row(minutes_ago=5)

    assert ids() == [newest.message_id, middle.message_id, oldest.message_id]
    assert ids("--limit", "2") == [newest.message_id, middle.message_id]


def test_a_row_says_where_it_is_and_what_is_wrong_with_it() -> None:
    row = inbox_row(state="dead", subject="W-1", attempt=4, reason="no such phone")

    [[at, *facts]] = rows("list")

    assert facts == ["inbox", "dead", "test.noted", "W-1", "notes", "4", row.message_id, "no such phone", str(row.pk)]
    assert at == timezone.localtime(row.changed_at).isoformat(timespec="milliseconds")


def test_json_is_one_object_a_line() -> None:
    row = outbox_row(subject="W-1", last_error="é")

    [line] = messages("list", "--json").lines

    assert json.loads(line) == {
        "at": timezone.localtime(row.created_at).isoformat(timespec="milliseconds"),
        "box": "outbox",
        "state": "pending",
        "type": "test.noted",
        "subject": "W-1",
        "consumer": "",
        "attempt": 1,
        "message_id": row.message_id,
        "reason": "é",
        "id": row.pk,
    }


def test_filters_narrow_the_list() -> None:
    inbox_row(minutes_ago=90, message_id="dead", state="dead")
    outbox_row(minutes_ago=10, message_id="retry", consumer="notes")
    outbox_row(minutes_ago=10, message_id="cancelled", type="order.cancelled", subject="W-9", state="published")

    for filters, found in [
        ("--state dead", {"dead"}),
        ("--state dead --state pending", {"dead", "retry"}),
        ("--type order.cancelled", {"cancelled"}),
        ("--consumer notes", {"dead", "retry"}),
        ("--subject W-9", {"cancelled"}),
        ("--since 30m", {"retry", "cancelled"}),
        ("--since 1h --consumer notes", {"retry"}),
        ("--since 2d", {"dead", "retry", "cancelled"}),
    ]:
        assert set(ids(*filters.split())) == found, filters


def test_effects_are_listed_with_their_message_and_the_id_that_settles_them() -> None:
    effect = an_effect("unknown", attempts=2, error="no answer")
    InboxMessage.objects.update(subject="W-7")
    an_effect("done", message_id="m-2")

    [row] = rows("list", "--state", "unknown")

    assert row[1:] == ["effects", "unknown", "text", "W-7", "notes", "2", "m-1", "no answer", str(effect.pk)]


def test_a_state_that_two_boxes_know_finds_the_rows_of_both() -> None:
    an_effect("failed")
    outbox_row(state="failed")

    assert {row[1] for row in rows("list", "--state", "failed")} == {"outbox", "effects"}


def test_failure_groups_are_listed_by_size() -> None:
    for order in (1, 2, 3):
        inbox_row(state="dead", reason=f"no order 'W-{order}'", failure_group="group-a")
    other = inbox_row(state="dead", reason="gateway down", failure_group="group-b", consumer="red_packet")
    inbox_row(state="retrying", reason="gateway down", failure_group="group-b")

    first, second = rows("list", "--groups")

    assert first[:4] == ["group-a", "3", "notes", "test.noted"]
    assert first[5].startswith("no order")
    assert second[:4] == ["group-b", "1", "red_packet", "test.noted"]
    assert ids("--group", "group-b", "--state", "dead") == [other.message_id]
    assert [row[0] for row in rows("list", "--groups", "--reason", "GATEWAY")] == ["group-b"]
    assert messages("list", "--groups", "--state", "retrying").code == 2


@pytest.mark.parametrize("filters", [["--state", "dead"], ["--since", "2h"], ["--groups", "--consumer", "sms"]])
def test_nothing_found_is_said_and_is_a_failure(filters: list[str]) -> None:
    said = messages("list", *filters)
    assert (said.code, re.match("No (dead )?message matches", said.err) is not None) == (1, True)


@pytest.mark.parametrize(
    ("option", "told"), [([], "There are no messages yet."), (["--groups"], "Nothing has failed.")]
)
def test_an_empty_list_without_filters_is_no_failure(option: list[str], told: str) -> None:
    said = messages("list", *option)
    assert (said.code, said.out, said.err) == (0, "", f"{told}\n")


def test_a_watched_list_is_read_again_and_ends_well_with_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter(range(2))

    def write_a_row_or_press_ctrl_c(seconds: float) -> None:
        if next(looks) == 1:
            raise KeyboardInterrupt
        outbox_row(subject="new one")

    monkeypatch.setattr("messaging.management.watching.time.sleep", write_a_row_or_press_ctrl_c)
    said = messages("list", "--watch")

    assert (said.code, said.err) == (0, "There are no messages yet.\n")
    assert [line.split("\t")[4] for line in said.lines] == ["new one"]


@pytest.mark.only_on("sqlite")
@pytest.mark.django_db(transaction=True)
def test_a_watched_list_fits_on_its_terminal_and_is_redrawn_in_place() -> None:
    for number in range(30):
        outbox_row(number, subject=f"about {number:02}")

    with on_terminal("messages", "list", "--watch", "0.2") as terminal:
        eventually(lambda: terminal.seen.count(REDRAW) >= 3, report=lambda: terminal.seen)
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.wait() == 0

    last = terminal.seen.split(REDRAW)[-2]
    assert "about 00" in last
    assert "about 29" not in last
    assert last.count("\n") < 50


@pytest.mark.parametrize("age", ["yesterday", "2", "-2h", "2w", "²h", ""])
def test_an_age_that_is_none_is_refused(age: str) -> None:
    assert "is no age; write 90s, 30m, 2h or 7d" in messages("list", f"--since={age}").err


# --- on a terminal, in a pipe ------------------------------------------------------------------------------


def test_a_foreign_text_can_neither_break_a_line_nor_reach_the_terminal(terminal: Terminal) -> None:
    inbox_row(state="dead", subject="a\tb", reason="one\ntwo\x1b[2J [red]three")

    [row] = rows("list")

    assert (row[4], row[8]) == ("a b", "one two [2J [red]three")
    call_command("messages", "list", stdout=terminal)
    assert "\x1b[2J" not in terminal.getvalue()
    assert "[red]three" in terminal.getvalue()


def test_eighty_characters_break_neither_a_time_nor_a_state_nor_an_id(terminal: Terminal) -> None:
    message_id = "0193e5a0-1111-7222-8333-444455556666"
    inbox_row(message_id=message_id, state="retrying", attempt=3, subject="W-7K3M9Q", reason="GatewayError: 503 " * 9)

    call_command("messages", "list", stdout=terminal)

    heading, line, *lines = re.sub(r"\x1b\[[\d;]*m", "", terminal.getvalue()).splitlines()
    assert "subject" in heading
    assert set(line) <= {"─", " "}
    assert max(map(len, lines)) <= 80
    [first] = [line for line in lines if "retrying" in line]
    assert re.match(r"2\d{3}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} +retrying ", first)
    assert "W-7K3M9Q  notes" in first
    told = " ".join(" ".join(lines).split())
    assert "attempt 3 · " in told
    assert message_id in told


@pytest.mark.parametrize("arguments", [[], ["list"], ["replay"], ["settle"]])
def test_help_ends_with_examples(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call_command("messages", *arguments, "--help")
    assert f"manage.py {' '.join(['messages', *arguments])}" in capsys.readouterr().out.split("examples:")[1]


@pytest.mark.only_on("sqlite")
@pytest.mark.django_db(transaction=True)
def test_a_reader_that_leaves_early_hears_no_complaint() -> None:
    OutboxMessage.objects.bulk_create(
        [OutboxMessage(message_id=f"{n}", type="x", routing_key="x", body=b"", subject="s" * 200) for n in range(2000)]
    )
    command = f"{sys.executable} manage.py messages list --limit 2000 | head -1"

    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=ROOT, env=process_environment(), capture_output=True, text=True
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("reachable", "reason", "code", "told"),
    [
        (False, "gone\n\tIs it running?", 3, "The database is out of reach: gone Is it running?"),
        (True, "no such table", 1, "The database refuses: no such table. Did `manage.py migrate` run?"),
        (True, "deadlock", 1, "The database refuses: deadlock. Repeat the command: it goes on where it was."),
    ],
)
def test_what_a_database_refuses_is_told_from_one_out_of_reach(
    monkeypatch: pytest.MonkeyPatch, reachable: bool, reason: str, code: int, told: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OperationalError(reason)

    monkeypatch.setattr(listing, "newest", fail)
    monkeypatch.setattr("messaging.database.is_unreachable", lambda error: not reachable)
    said = messages("list")
    assert (said.code, said.err) == (code, told)


# --- show --------------------------------------------------------------------------------------------------


def _fail(event: Any, delivery: Any) -> None:
    raise ValueError("not today")


def test_a_message_shows_its_way_in_the_order_of_time() -> None:
    delivery = a_delivery(a_message(headers={"x-subject": "W-1"}))
    row = outbox_row(minutes_ago=1, message_id=delivery.message_id, state="published", published_at=timezone.now())
    handling.handle(a_consumer(_fail), delivery)

    lines = rows("show", row.message_id)

    assert [line[1] for line in lines] == ["written", "published", "attempt failed", "written", "pending"]
    assert [line[4] for line in lines] == ["1", "1", "1", "2", "2"]
    assert lines[2][6] == "ValueError: not today"
    assert [bool(line[8]) for line in lines] == [False, False, False, False, True]


def test_a_subject_shows_everything_about_it() -> None:
    placed, cancelled = outbox_row(minutes_ago=2, subject="W-1"), outbox_row(minutes_ago=1, subject="W-1")
    outbox_row(subject="W-2")

    lines = [json.loads(line) for line in messages("show", "W-1", "--json").lines]

    assert {line["message_id"] for line in lines} == {placed.message_id, cancelled.message_id}
    assert [line["what"] for line in lines] == ["written", "written", "pending", "pending"]


@pytest.mark.parametrize("about", ["W-0", ""])
def test_an_unknown_message_is_said_and_is_a_failure(about: str) -> None:
    outbox_row()
    said = messages("show", about)
    assert (said.code, said.err.startswith("No message has the id or subject")) == (1, True)


def test_what_errors_quote_is_masked_unless_asked() -> None:
    row = inbox_row(state=InboxMessage.State.DEAD, reason="no answer for +8613800138000 by http://gateway:pw@sms/")

    for arguments in (["list"], ["list", "--groups"], ["show", row.message_id], ["list", "--json"]):
        assert "no answer for *** by http://gateway:***@sms/" in messages(*arguments).out
        assert row.reason in messages(*arguments, "--unmasked").out

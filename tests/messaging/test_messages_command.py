"""`manage.py messages list` and `show`: what happened, from a terminal."""

import json
import os
import pty
import re
import subprocess
import sys
from datetime import timedelta
from io import StringIO
from itertools import count
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from messaging.models import Effect, InboxMessage, OutboxMessage
from messaging.worker import handling
from tests.support.consuming import a_consumer, a_delivery, a_message
from tests.support.environment import ROOT, process_environment
from tests.support.processes import ProcessStarter

pytestmark = pytest.mark.django_db(transaction=True)

_ids = count()


def outbox_row(minutes_ago: float = 0, **changes: Any) -> OutboxMessage:
    facts = {
        "message_id": f"out-{next(_ids)}",
        "type": "order.placed",
        "routing_key": "order.placed",
        "body": b"{}",
        "created_at": timezone.now() - timedelta(minutes=minutes_ago),
    }
    return OutboxMessage.objects.create(**facts | changes)


def inbox_row(minutes_ago: float = 0, **changes: Any) -> InboxMessage:
    facts = {
        "message_id": f"in-{next(_ids)}",
        "type": "order.placed",
        "consumer": "sms",
        "state": InboxMessage.State.HANDLED,
        "changed_at": timezone.now() - timedelta(minutes=minutes_ago),
    }
    return InboxMessage.objects.create(**facts | changes)


def printed(*arguments: str) -> str:
    out = StringIO()
    call_command("messages", *arguments, stdout=out)
    return out.getvalue()


def rows(*arguments: str) -> list[list[str]]:
    return [line.split("\t") for line in printed(*arguments).splitlines()]


def ids(*filters: str) -> list[str]:
    return [row[7] for row in rows("list", *filters)]


def terminal_output(*arguments: str, columns: int = 150) -> str:
    """What the command writes to a terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "manage.py", "messages", *arguments]
    with subprocess.Popen(command, cwd=ROOT, env=process_environment(COLUMNS=str(columns)), stdout=theirs) as process:
        os.close(theirs)
        written = b""
        try:
            while piece := os.read(ours, 4096):
                written += piece
        except OSError:  # so Linux says that the other end was closed
            pass
        os.close(ours)
    assert process.returncode == 0
    return written.decode()


# --- list --------------------------------------------------------------------------------------------------


def test_the_newest_rows_of_both_boxes_come_first() -> None:
    oldest, newest, middle = outbox_row(minutes_ago=9), inbox_row(minutes_ago=1), outbox_row(minutes_ago=5)

    assert ids() == [newest.message_id, middle.message_id, oldest.message_id]
    assert ids("--limit", "2") == [newest.message_id, middle.message_id]


def test_a_row_says_where_it_is_and_what_is_wrong_with_it() -> None:
    row = inbox_row(state="dead", subject="W-1", attempt=4, reason="no such phone")

    [[at, *facts]] = rows("list")

    assert facts == ["inbox", "dead", "order.placed", "W-1", "sms", "4", row.message_id, "no such phone", str(row.pk)]
    assert at == timezone.localtime(row.changed_at).isoformat(timespec="milliseconds")


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        (["--state", "dead"], {"dead"}),
        (["--state", "dead", "--state", "pending"], {"dead", "retry"}),
        (["--type", "order.cancelled"], {"cancelled"}),
        (["--consumer", "sms"], {"dead", "retry"}),
        (["--subject", "W-9"], {"cancelled"}),
        (["--since", "30m"], {"retry", "cancelled"}),
        (["--since", "1h", "--consumer", "sms"], {"retry"}),
        (["--since", "2d"], {"dead", "retry", "cancelled"}),
    ],
)
def test_filters_narrow_the_list(filters: list[str], found: set[str]) -> None:
    inbox_row(minutes_ago=90, message_id="dead", state="dead")
    outbox_row(minutes_ago=10, message_id="retry", consumer="sms")
    outbox_row(minutes_ago=10, message_id="cancelled", type="order.cancelled", subject="W-9", state="published")

    assert set(ids(*filters)) == found


def test_json_is_one_object_a_line() -> None:
    row = outbox_row(subject="W-1", last_error="é")

    [line] = printed("list", "--json").splitlines()

    assert json.loads(line) == {
        "at": timezone.localtime(row.created_at).isoformat(timespec="milliseconds"),
        "box": "outbox",
        "state": "pending",
        "type": "order.placed",
        "subject": "W-1",
        "consumer": "",
        "attempt": 1,
        "message_id": row.message_id,
        "reason": "é",
        "id": row.pk,
    }


def test_a_foreign_text_can_neither_break_a_line_nor_reach_the_terminal() -> None:
    inbox_row(state="dead", subject="a\tb", reason="one\ntwo\x1b[2J [red]three")

    [row] = rows("list")

    assert (row[4], row[8]) == ("a b", "one two [2J [red]three")
    shown = terminal_output("list")
    assert "\x1b[2J" not in shown
    assert "[red]three" in shown


def test_a_terminal_gets_a_table_with_a_heading() -> None:
    inbox_row(subject="W-1")

    shown = terminal_output("list")

    assert "subject" in shown
    assert "W-1" in shown
    assert "─" in shown


def test_eighty_characters_break_neither_a_time_nor_a_state_nor_an_id() -> None:
    message_id = "0193e5a0-1111-7222-8333-444455556666"
    inbox_row(message_id=message_id, state="retrying", attempt=3, subject="W-7K3M9Q", reason="GatewayError: 503 " * 9)

    lines = re.sub(r"\x1b\[\d*m", "", terminal_output("list", columns=80)).splitlines()

    assert max(map(len, lines)) <= 80
    [first] = [line for line in lines if "retrying" in line]
    assert re.match(r"2\d{3}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} +retrying ", first)
    assert "W-7K3M9Q  sms" in first
    told = " ".join(" ".join(lines).split())
    assert "attempt 3 · " in told
    assert message_id in told


def test_nothing_found_is_said_and_is_a_failure() -> None:
    with pytest.raises(CommandError, match="No message matches") as error:
        printed("list", "--state", "dead")
    assert error.value.returncode == 1


@pytest.mark.parametrize("age", ["yesterday", "2", "-2h", "h", "2w", "²h", ""])
def test_an_age_that_is_none_is_wrong_usage(age: str) -> None:
    with pytest.raises(CommandError, match="is no age; write 90s, 30m, 2h or 7d"):
        printed("list", f"--since={age}")


def test_wrong_usage_ends_with_two_and_help_with_examples(run_process: ProcessStarter) -> None:
    assert run_process("messages", "list", "--since", "soon").wait() == 2
    assert run_process("messages", "list", "--state", "lost").wait() == 2
    assert run_process("messages").wait() == 2
    for arguments in ([], ["list"], ["replay"], ["settle"]):
        process = run_process("messages", *arguments, "--help")
        assert process.wait() == 0
        assert f"manage.py {' '.join(['messages', *arguments])}" in process.output.split("examples:")[1]


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


def test_a_database_out_of_reach_is_said_in_one_line(run_process: ProcessStarter) -> None:
    process = run_process("messages", "list", DATABASE_URL="postgres://nobody:secret@127.0.0.1:1/none")

    assert process.wait() == 3
    assert "The database is out of reach" in process.output
    assert "Traceback" not in process.output


def test_a_database_without_tables_is_told_from_one_out_of_reach(run_process: ProcessStarter, tmp_path: Any) -> None:
    process = run_process("messages", "list", DATABASE_URL=f"sqlite:///{tmp_path / 'empty.sqlite3'}")

    assert process.wait() == 1
    assert "Did `manage.py migrate` run?" in process.output


def effect_row(state: str, **changes: Any) -> Effect:
    message = inbox_row(subject="W-7")
    facts = {"consumer": message.consumer, "message_id": message.message_id, "name": "text", "error": "no answer"}
    return Effect.objects.create(**{"inbox_message": message, "state": state, **facts, **changes})


def test_effects_are_listed_with_their_message_and_the_id_that_settles_them() -> None:
    effect = effect_row("unknown", attempts=2)
    effect_row("done")

    [row] = rows("list", "--state", "unknown")

    told = ["effects", "unknown", "text", "W-7", "sms", "2", effect.message_id, "no answer", str(effect.pk)]
    assert row[1:] == told


def test_a_state_that_two_boxes_know_finds_the_rows_of_both() -> None:
    effect_row("failed")
    outbox_row(state="failed")

    assert {row[1] for row in rows("list", "--state", "failed")} == {"outbox", "effects"}


def test_failure_groups_are_listed_by_size() -> None:
    for order in (1, 2, 3):
        inbox_row(state="dead", reason=f"no order 'W-{order}'", failure_group="group-a")
    other = inbox_row(state="dead", reason="gateway down", failure_group="group-b", consumer="red_packet")
    inbox_row(state="retrying", reason="gateway down", failure_group="group-b")

    first, second = rows("list", "--groups")

    assert first[:4] == ["group-a", "3", "sms", "order.placed"]
    assert first[5].startswith("no order")
    assert second[:4] == ["group-b", "1", "red_packet", "order.placed"]
    assert ids("--group", "group-b", "--state", "dead") == [other.message_id]
    assert [row[0] for row in rows("list", "--groups", "--reason", "GATEWAY")] == ["group-b"]


def test_groups_of_what_is_not_dead_are_wrong_usage() -> None:
    with pytest.raises(CommandError, match="leave --state out") as error:
        printed("list", "--groups", "--state", "retrying")
    assert error.value.returncode == 2


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

    lines = [json.loads(line) for line in printed("show", "W-1", "--json").splitlines()]

    assert {line["message_id"] for line in lines} == {placed.message_id, cancelled.message_id}
    assert [line["what"] for line in lines] == ["written", "written", "pending", "pending"]


@pytest.mark.parametrize("about", ["W-0", "", "' OR 1=1"])
def test_an_unknown_message_is_said_and_is_a_failure(about: str) -> None:
    outbox_row()

    with pytest.raises(CommandError, match="No message has the id or subject") as error:
        printed("show", about)
    assert error.value.returncode == 1


def test_what_errors_quote_is_masked_unless_asked() -> None:
    row = inbox_row(state=InboxMessage.State.DEAD, reason="no answer for +8613800138000 by http://gateway:pw@sms/")

    for arguments in (["list"], ["list", "--groups"], ["show", row.message_id], ["list", "--json"]):
        assert "no answer for *** by http://gateway:***@sms/" in printed(*arguments)
        assert row.reason in printed(*arguments, "--unmasked")

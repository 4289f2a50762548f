"""`manage.py messages replay`, `cancel`, `discard` and `settle`: what is done to messages from a terminal."""

import json
import os
import pwd
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection
from django.db.models import QuerySet

from messaging import database, outbox
from messaging.actions import action
from messaging.actions.publish_now import publish_now
from messaging.consumers import Consumer
from messaging.models import Effect, InboxMessage, OperatorAction, OutboxMessage
from messaging.worker import handling
from tests.support.command_line import messages
from tests.support.consuming import (
    a_consumer,
    a_dead_message,
    an_effect,
    an_inbox_row,
    an_outbox_row,
    delivery_of,
    registered,
)

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def consumer() -> Iterator[Consumer]:
    consumer = a_consumer()
    with registered(consumer):
        yield consumer


def printed(*arguments: str) -> str:
    """What a command writes that does all that it was asked for."""
    said = messages(*arguments)
    assert (said.code, said.err) == (0, "")
    return said.out


def refused(*arguments: str) -> tuple[int, str]:
    """Exit code and words of a command that ends so."""
    said = messages(*arguments)
    return said.code, said.err


# --- replay ------------------------------------------------------------------------------------------------


def test_replay_by_id_says_what_it_did_and_what_became_of_it_before(consumer: Consumer) -> None:
    row = a_dead_message(consumer)
    assert printed("replay", row.message_id) == "1 replayed. So far 0 handled, 0 failed again.\n"
    assert refused("replay", row.message_id) == (1, "Nothing was done: 1 already replayed.")
    handling.handle(consumer, delivery_of(OutboxMessage.objects.get(), queue=consumer.queue))
    assert refused("replay", row.message_id) == (1, "Nothing was done: 1 already handled.")


def test_a_dry_run_tells_and_does_nothing(consumer: Consumer) -> None:
    for _ in range(2):
        a_dead_message(consumer)
    a_dead_message(a_consumer(name="gone"))
    an_inbox_row()

    assert printed("replay", "--type", "test.noted", "--dry-run").splitlines() == [
        "runs\t2\tnotes\ttest.noted",
        "already handled\t1\tnotes\ttest.noted",
        "no handler\t1\tgone\ttest.noted",
    ]
    first = printed("replay", "--all", "--dry-run", "--json").splitlines()[0]
    assert json.loads(first) == {"what": "runs", "count": 2, "consumer": "notes", "type": "test.noted"}
    assert not OutboxMessage.objects.exists()
    assert not OperatorAction.objects.exists()


def test_a_canary_that_is_not_handled_ends_with_exit_code_7(consumer: Consumer) -> None:
    for _ in range(3):
        a_dead_message(consumer)
    assert refused("replay", "--all", "--canary", "1", "--canary-wait", "0.01") == (
        7,
        "Stopped: 1 of the first 1 had not been handled after 0.01 s; is `manage.py run_consumer notes` running? "
        "2 were not replayed.",
    )


def test_a_replay_that_failed_again_is_no_success_though_nothing_is_left(
    consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(12):
        a_dead_message(consumer)
    resend = outbox.resend

    def dies_again(row: InboxMessage, **told: Any) -> None:
        resend(row, **told)
        InboxMessage.objects.filter(pk=row.pk).update(state="dead")

    monkeypatch.setattr(outbox, "resend", dies_again)

    assert refused("replay", "--all") == (
        1, "Too many failures: 12 of 12 failed again: 100%, over the limit of 20%. All were replayed."
    )  # fmt: skip


def test_a_summary_for_programs(consumer: Consumer) -> None:
    a_dead_message(consumer)
    assert json.loads(printed("replay", "--consumer", "notes", "--json")) == {
        "replayed": 1,
        "missed": 0,
        "succeeded": 0,
        "failed": 0,
        "stopped": "",
        "timed_out": False,
        "left": 0,
    }


def a_finished_row() -> OutboxMessage:
    long_ago = database.in_future(-100 * 86_400)
    return an_outbox_row(state="published", published_at=long_ago, created_at=long_ago)


@pytest.mark.parametrize(
    ("command", "make", "left"),
    [
        ("replay --all", lambda: a_dead_message(a_consumer()), lambda: InboxMessage.objects.filter(state="dead")),
        ("discard --all", lambda: a_dead_message(a_consumer()), lambda: InboxMessage.objects.filter(state="dead")),
        ("cancel --all", an_outbox_row, lambda: OutboxMessage.objects.filter(state="pending")),
        ("prune --batch 1", a_finished_row, OutboxMessage.objects.all),
    ],
)
def test_ctrl_c_stops_it_between_two_pages_and_ends_with_130(
    monkeypatch: pytest.MonkeyPatch, command: str, make: Callable[[], Any], left: Callable[[], QuerySet[Any]]
) -> None:
    monkeypatch.setattr(action, "SIZE", 1)
    for _ in range(3):
        make()
    interrupts = [signal.SIGINT]

    def interrupt(execute: Callable[..., Any], sql: str, *arguments: Any) -> Any:
        if interrupts and sql.startswith(("INSERT", "DELETE")):
            signal.raise_signal(interrupts.pop())
        return execute(sql, *arguments)

    with connection.execute_wrapper(interrupt):
        code, words = refused(*command.split())

    assert (code, words.startswith("Stopped: told to stop.")) == (130, True)
    assert left().count() == 2


@pytest.mark.parametrize("command", ["replay", "cancel", "discard"])
def test_nothing_said_or_an_id_that_is_mistyped_changes_nothing(command: str, consumer: Consumer) -> None:
    row = a_dead_message(consumer)
    an_outbox_row()
    assert refused(command) == (2, "Say which messages: ids, filters, or --all and nothing else.")
    assert refused(command, "--all", "--consumer", "notes")[0] == 2
    code, words = refused(command, row.message_id, "m-0")
    assert code == 1
    assert words.startswith("No message has the id m-0.")
    assert InboxMessage.objects.get().state == "dead"
    assert OutboxMessage.objects.get().state == "pending"


@pytest.mark.parametrize(
    "wrong",
    [
        *(f"--rate={rate}" for rate in ("0", "-1", "abc", "nan", "inf")),
        *(f"--max-failures={share}" for share in ("-0.1", "1.1", "nan")),
        *(f"--canary={number}" for number in ("0", "x")),
        "--canary-wait=0",
        "--since=soon",
    ],
)
def test_a_number_that_makes_no_sense_is_refused(wrong: str) -> None:
    assert wrong.partition("=")[2] in messages("replay", "--all", wrong).err


# --- publish, cancel and discard ------------------------------------------------------------------------------------


def test_what_waits_is_published_now() -> None:
    an_outbox_row(state="failed")
    assert refused("replay", "m-1") == (1, "Nothing was done: no such message is dead.")
    told = f"1 outbox message would be made due now. {publish_now.afterwards}\n"
    assert printed("publish", "--type", "test.noted", "--dry-run") == told
    assert OutboxMessage.objects.get().state == "failed"
    assert json.loads(printed("publish", "--type", "test.noted", "--json")) == {"made_due_now": 1}
    assert OutboxMessage.objects.get().state == "pending"
    assert refused("publish", "--all")[0] == 1


def test_cancel_says_how_many_and_what_it_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USER", "LOGNAME"):
        monkeypatch.setenv(name, "mallory")
    an_outbox_row()
    an_outbox_row(lease_until=database.in_future(20))
    left = "1 left alone: being published at this moment.\n"
    assert printed("cancel", "--all", "--dry-run") == (
        f"1 outbox message and 0 inbox messages would be cancelled. {left}"
    )
    told = printed("cancel", "m-1", "--note", "wrong price", "--json")
    assert json.loads(told) == {"outbox": 1, "inbox": 0, "leased": 1}
    assert refused("cancel", "--all") == (1, "Nothing was done: 1 being published at this moment.")
    # The account is the system's, whatever the environment says.
    account = f"{pwd.getpwuid(os.geteuid()).pw_name}@{socket.gethostname()}"
    assert OperatorAction.objects.earliest("pk").actor == account
    assert OutboxMessage.objects.get(state="cancelled").last_error == f"cancelled by {account}: wrong price"


def test_discard_says_how_many(consumer: Consumer) -> None:
    row = a_dead_message(consumer)
    assert printed("discard", "--group", row.failure_group, "--dry-run") == "1 inbox message would be discarded.\n"
    assert InboxMessage.objects.get().state == "dead"
    assert printed("discard", "--group", row.failure_group) == "1 inbox message discarded.\n"
    assert refused("discard", row.message_id) == (1, "Nothing was done: no such message is dead.")


# --- settle ------------------------------------------------------------------------------------------------


def test_settle_says_what_the_effect_is_now() -> None:
    effect = an_effect()
    told = json.loads(printed("settle", effect.key, "--not-done", "--json"))
    assert told == {"id": effect.pk, "key": "m-1:notes:text", "state": "intended"}
    Effect.objects.update(state="unknown")
    said = printed("settle", str(effect.pk), "--done", "--reference", "SM1")
    assert said == f"Effect {effect.pk} (text of message m-1): done, SM1.\n"
    assert refused("settle", effect.key, "--not-done") == (
        1, f"Nothing was done: effect {effect.pk} is done, SM1, and cannot be settled as not done."
    )  # fmt: skip


def test_a_refusal_to_settle_names_what_is_possible() -> None:
    effect = an_effect()
    Effect.objects.update(state="intended")
    assert refused("settle", effect.key, "--done") == (
        1, f"Nothing was done: effect {effect.pk} is intended, and cannot be settled as done, only as give up."
    )  # fmt: skip


def test_settling_nothing_or_without_a_decision_is_refused() -> None:
    effect = str(an_effect().pk)
    assert refused("settle", "m-1:notes:fax", "--done")[0] == 1
    assert refused("settle", effect, "--give-up", "--reference", "SM1")[0] == 2
    assert "required" in refused("settle", effect)[1]
    assert "not allowed with" in refused("settle", effect, "--done", "--give-up")[1]
    assert Effect.objects.get().state == "unknown"


def test_effects_are_settled_and_retried_by_filters_or_by_a_name_and_never_by_both() -> None:
    for number in range(3):
        an_effect(message_id=f"m-{number}", failure_group="g-1", error="no answer")
    other = an_effect(message_id="m-9", failure_group="g-2", error="reset")
    assert "3 effects settled." in printed("settle", "--group", "g-1", "--not-done", "--note", "not in their log")
    Effect.objects.filter(state="intended").update(send_at=database.in_future(300))
    assert "would be made due now" in printed("retry", "--consumer", "notes", "--dry-run")
    assert "3 effects made due now." in printed("retry", "--all")
    assert not Effect.objects.filter(state="intended", send_at__gt=database.in_future(0)).exists()
    other.refresh_from_db()
    assert other.state == "unknown"

    assert refused("retry", "--all")[0] == 1
    for wrong in (
        ["settle", "--done"],
        ["settle", str(other.pk), "--group", "g-2", "--done"],
        ["retry", "17", "--all"],
    ):
        assert refused(*wrong)[0] == 2
